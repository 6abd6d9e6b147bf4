"""Batched generation: questions of like length together, the next batch prepared while the device answers this one.

Which questions form a batch depends on the data alone, not on the number of ranks or on what an earlier run left
undone, so an answer never depends on how the work was spread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image

from ..answering import question_message
from .images import image_size, load_image
from .samples import Sample

if TYPE_CHECKING:
    from transformers import BatchFeature

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

Done = TypeVar("Done")
_LOOK_AHEAD = 2  # batches prepared in advance
_IMAGE_THREADS = 4


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are made.

    Attributes:
        max_side: long side to which images are scaled before slicing, in pixels; None leaves them.
        max_slices: most slices per image; None as the model was trained.
        num_beams: 1 is greedy.
        max_new_tokens: longest answer; shortened where the context leaves less.
        batch_size: questions at a time.
    """

    max_side: int | None
    max_slices: int | None
    num_beams: int
    max_new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Batch:
    """Questions by their positions in the data, and what the model needs to answer those whose image could be read.

    Attributes:
        readable: positions with inputs, in the order of the inputs' rows.
        errors: why the others have none, by position.
        inputs: None if nothing is readable.
    """

    readable: list[int]
    errors: dict[int, str]
    inputs: "BatchFeature | None"


@dataclass(frozen=True)
class Answers:
    """Of one batch, by the questions' positions: the answers, and why the others have none."""

    texts: dict[int, str]
    errors: dict[int, str]


def plan_batches(
    samples: Sequence[Sample], processor: "LlavaUhdProcessor", options: GenerationOptions
) -> list[list[int]]:
    """Group positions of questions with like numbers and shapes of views and lengths of text, the longest first.

    Views of one shape go through the tower together, and give as many tokens.
    """
    slices = {} if options.max_slices is None else {"max_slices": options.max_slices}

    def cost(position: int) -> tuple[int, tuple[int, int], int, int]:
        sample = samples[position]
        size = image_size(sample, options.max_side)
        if size is None:
            return 0, (0, 0), -len(sample.prompt), position
        plan = processor.image_processor.plan(*size, **slices)
        return -plan.num_views, plan.view_shapes[0], -len(sample.prompt), position

    with ThreadPoolExecutor(_IMAGE_THREADS) as pool:
        order = [entry[-1] for entry in sorted(pool.map(cost, range(len(samples))))]
    return [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]


def run_ahead(
    pool: Executor, work: Callable[[Sequence[int]], Done], batches: Iterable[Sequence[int]], ahead: int
) -> Iterator[Done]:
    """What the pool makes of the batches, in their order, at most so many batches ahead of what is asked for."""
    pending: deque[Future[Done]] = deque()
    try:
        for positions in batches:
            pending.append(pool.submit(work, positions))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class Answerer:
    """Answers batches of questions with one model."""

    def __init__(
        self,
        model: "LlavaUhdForConditionalGeneration",
        processor: "LlavaUhdProcessor",
        options: GenerationOptions,
    ):
        self.model = model
        self.processor = processor
        self.options = options
        self.context = model.config.text_config.max_position_embeddings

    def prompt(self, sample: Sample) -> str:
        """The text of a whole conversation, an image placeholder in it."""
        images = [sample.image_source] if sample.image_source is not None else []
        message = question_message(images, sample.prompt)
        return self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def prepare(self, samples: Sequence[Sample], positions: Sequence[int], pool: ThreadPoolExecutor) -> Batch:
        """Load the images of a batch and build its inputs."""

        def load(position: int) -> Image.Image | ValueError | None:
            sample = samples[position]
            if sample.image_source is None:
                return None
            try:
                return load_image(sample, self.options.max_side)
            except ValueError as error:
                return error

        loaded = dict(zip(positions, pool.map(load, positions), strict=True))
        errors = {position: str(image) for position, image in loaded.items() if isinstance(image, ValueError)}
        readable = [position for position in positions if position not in errors]
        if not readable:
            return Batch([], errors, None)
        images = [image for position in readable if isinstance(image := loaded[position], Image.Image)]
        slices = {} if self.options.max_slices is None else {"max_slices": self.options.max_slices}
        inputs = self.processor(
            images=images or None,
            text=[self.prompt(samples[position]) for position in readable],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **slices,
        )
        return Batch(readable, errors, inputs)

    def answer_all(self, samples: Sequence[Sample], batches: Iterable[Sequence[int]]) -> Iterator[Answers]:
        """Answers of batches in their order, each prepared in the background before its turn.

        One thread prepares, as tokenizers allow, and several decode images.
        """
        with ThreadPoolExecutor(1) as preparing, ThreadPoolExecutor(_IMAGE_THREADS) as decoding:
            for batch in run_ahead(preparing, lambda p: self.prepare(samples, p, decoding), batches, _LOOK_AHEAD):
                yield Answers(self.answer(batch), batch.errors)

    @torch.inference_mode()
    def answer(self, batch: Batch) -> dict[int, str]:
        """Answers by position.

        Raises:
            ValueError: a prompt leaves no room for an answer in the model's context.
        """
        if batch.inputs is None:
            return {}
        length = batch.inputs["input_ids"].shape[1]
        room = self.context - length
        if room < 1:
            raise ValueError(
                f"a prompt has {length} tokens and the model's context is {self.context}: lower --max-slices"
            )
        generated = self.model.generate(
            **batch.inputs.to(self.model.device, self.model.dtype),
            do_sample=False,
            num_beams=self.options.num_beams,
            max_new_tokens=min(self.options.max_new_tokens, room),
        )
        texts = self.processor.batch_decode(generated[:, length:], skip_special_tokens=True)
        return {position: text.strip() for position, text in zip(batch.readable, texts, strict=True)}
