"""Model loading and generation shared by both adapters, with any number of images per question."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...generation.batch import answer
from ...generation.prompt import prepare
from ...loading import load
from ..generation import BatchGenerator, GenerationOptions
from ..images import load_image
from ..samples import Sample

# Interleaved texts and images; an image is a path or decoded.
Question = Sequence[str | Path | Image.Image]


def load_generator(model: str, device: str | None, dtype: str, options: GenerationOptions) -> BatchGenerator:
    """Load a model by name, ready to answer."""
    loaded, processor = load(model, device, dtype)
    return BatchGenerator(loaded, processor, options)


def answer_questions(generator: BatchGenerator, questions: Sequence[Question]) -> list[str]:
    """Answer questions: those with at most one image as one batch, the image first; the others one by one, in order.

    Raises:
        ValueError: an image cannot be read, or a prompt leaves no room for an answer.
    """
    answers: dict[int, str] = {}
    samples: dict[int, Sample] = {}
    for index, question in enumerate(questions):
        images = [part for part in question if not isinstance(part, str)]
        if len(images) > 1:
            answers[index] = _answer_about_images(generator, question)
        else:
            text = "\n".join(part for part in question if isinstance(part, str)).strip()
            samples[index] = _sample(index, text, *images)
    if samples:
        with ThreadPoolExecutor() as pool:
            batch = generator.batches.build(list(samples.values()), range(len(samples)), pool)
        if batch.errors:
            raise ValueError("; ".join(batch.errors.values()))
        texts = generator.generate(batch).texts
        answers |= {index: texts[position] for position, index in enumerate(samples)}
    return [answers[index] for index in range(len(questions))]


def _sample(index: int, text: str, image: Path | Image.Image | None = None) -> Sample:
    source = partial(Image.Image.copy, image) if isinstance(image, Image.Image) else image
    return Sample(index, text, image_source=source)


def _answer_about_images(generator: BatchGenerator, question: Question) -> str:
    """Answer one question with interleaved texts and images."""
    options = generator.options
    content: list[dict[str, Any]] = []
    for index, part in enumerate(question):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            image = load_image(_sample(index, "", part), options.max_side)
            content.append({"type": "image", "image": image})
    inputs = prepare(
        generator.model,
        generator.processor,
        [{"role": "user", "content": content}],
        max_new_tokens=1,
        **generator.batches.slices,
    )
    room = generator.decoder.context - inputs["input_ids"].shape[1]
    return answer(
        generator.model,
        generator.processor,
        inputs,
        min(options.max_new_tokens, room),
        do_sample=False,
        num_beams=options.num_beams,
    )
