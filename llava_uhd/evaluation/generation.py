"""Batched generation for evaluation: the next batch is prepared while the device generates."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..confidence import AnswerProbability
from ..generation.batch import generate_batch
from ..generation.decoding import Decoder
from ..generation.kv_cache import can_fork, new_cache
from .batches import IMAGE_THREADS, Batch, BatchBuilder
from .samples import Sample

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

Done = TypeVar("Done")
_LOOK_AHEAD = 2  # batches prepared in advance


@dataclass(frozen=True)
class GenerationOptions:
    """Generation options.

    Attributes:
        max_side: long side to which images are scaled before slicing, in pixels; None leaves them.
        max_slices: maximum number of slices per image; None takes the model's default.
        num_beams: number of beams; 1 is greedy.
        max_new_tokens: maximum number of new tokens; reduced to fit the context length.
        batch_size: questions per batch.
    """

    max_side: int | None
    max_slices: int | None
    num_beams: int
    max_new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Answers:
    """Result of one batch by question position.

    Attributes:
        texts: answers.
        errors: error messages of the other questions.
        probabilities: probabilities of the answers; empty with beams.
    """

    texts: dict[int, str]
    errors: dict[int, str]
    probabilities: dict[int, AnswerProbability]


def run_ahead(
    pool: Executor, work: Callable[[Sequence[int]], Done], batches: Iterable[Sequence[int]], ahead: int
) -> Iterator[Done]:
    """Yield the pool's results in batch order, submitting a bounded number of batches ahead."""
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


class BatchGenerator:
    """Generate answers to batches of questions with one model."""

    def __init__(
        self,
        model: "LlavaUhdForConditionalGeneration",
        processor: "LlavaUhdProcessor",
        options: GenerationOptions,
    ):
        self.model = model
        self.processor = processor
        self.options = options
        self.decoder = Decoder(model)
        share = can_fork(new_cache(model.config.text_config))
        self.batches = BatchBuilder(processor, options.max_side, options.max_slices, options.num_beams, share)

    def generate_all(self, samples: Sequence[Sample], batches: Iterable[Sequence[int]]) -> Iterator[Answers]:
        """Yield answers in batch order; upcoming batches are prepared in the background.

        One thread prepares, as tokenizers allow, and several decode images.
        """
        with ThreadPoolExecutor(1) as preparing, ThreadPoolExecutor(IMAGE_THREADS) as decoding:
            build = self.batches.build
            for batch in run_ahead(preparing, lambda p: build(samples, p, decoding), batches, _LOOK_AHEAD):
                yield self.generate(batch)

    def generate(self, batch: Batch) -> Answers:
        """Return the answers of a batch.

        Raises:
            ValueError: a prompt leaves no room for an answer in the model's context.
        """
        if batch.text is None:
            return Answers({}, batch.errors, {})
        token_ids, probabilities = generate_batch(
            self.decoder,
            batch.text,
            batch.images,
            batch.image_of_question,
            batch.num_shared,
            num_beams=self.options.num_beams,
            max_new_tokens=self.options.max_new_tokens,
        )
        texts = self.processor.batch_decode(token_ids, skip_special_tokens=True)
        return Answers(
            {position: text.strip() for position, text in zip(batch.readable, texts, strict=True)},
            batch.errors,
            {
                position: AnswerProbability.of(tokens)
                for position, tokens in zip(batch.readable, probabilities, strict=False)
            },
        )
