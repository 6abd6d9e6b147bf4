"""What both adapters share: a model that answers prompts about at most one image each, in batches."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from ...loading import load
from ..generation import BatchGenerator, GenerationOptions
from ..samples import Sample

# A text and its image: a file, a decoded image, or none.
Question = tuple[str, Path | Image.Image | None]


def load_generator(model: str, device: str | None, dtype: str, options: GenerationOptions) -> BatchGenerator:
    """Load a model by name, ready to answer."""
    loaded, processor = load(model, device, dtype)
    return BatchGenerator(loaded, processor, options)


def answer_questions(generator: BatchGenerator, questions: Sequence[Question]) -> list[str]:
    """Answer questions as one batch.

    Raises:
        ValueError: an image cannot be read.
    """
    samples = [
        Sample(index, text, image_source=partial(Image.Image.copy, image) if isinstance(image, Image.Image) else image)
        for index, (text, image) in enumerate(questions)
    ]
    with ThreadPoolExecutor() as pool:
        batch = generator.batches.build(samples, range(len(samples)), pool)
    if batch.errors:
        raise ValueError("; ".join(batch.errors.values()))
    answers = generator.generate(batch)
    return [answers[index] for index in range(len(samples))]
