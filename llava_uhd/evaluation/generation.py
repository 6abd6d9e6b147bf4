"""Batched generation: the next batch is prepared while the device generates.

The images of a batch are encoded once. The language model, too, reads what several prompts begin with once, and goes
on from there with each question and each beam.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import DynamicCache

from ..kv_cache import can_fork
from ..model.modeling_llava_uhd import CACHE_NAME
from ..token_probabilities import TokenProbabilities, end_token_ids
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
        probabilities: mean token probability of the answers; empty with beams.
    """

    texts: dict[int, str]
    errors: dict[int, str]
    probabilities: dict[int, float]


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
        self.context = model.config.text_config.max_position_embeddings
        # Plain keys and values can be shared by several answers.
        share = can_fork(self._new_cache())
        self.batches = BatchBuilder(processor, options.max_side, options.max_slices, options.num_beams, share)

    def generate_all(self, samples: Sequence[Sample], batches: Iterable[Sequence[int]]) -> Iterator[Answers]:
        """Yield answers in batch order; upcoming batches are prepared in the background.

        One thread prepares, as tokenizers allow, and several decode images.
        """
        with ThreadPoolExecutor(1) as preparing, ThreadPoolExecutor(IMAGE_THREADS) as decoding:
            build = self.batches.build
            for batch in run_ahead(preparing, lambda p: build(samples, p, decoding), batches, _LOOK_AHEAD):
                yield self.generate(batch)

    @torch.inference_mode()
    def generate(self, batch: Batch) -> Answers:
        """Return the answers of a batch.

        Raises:
            ValueError: a prompt leaves no room for an answer in the model's context.
        """
        if batch.text is None:
            return Answers({}, batch.errors, {})
        length = batch.text["input_ids"].shape[1]
        room = self.context - length
        if room < 1:
            raise ValueError(
                f"a prompt has {length} tokens and the model's context is {self.context}: lower --max-slices"
            )
        recorder = TokenProbabilities() if self.options.num_beams == 1 else None
        generated = self.model.generate(
            **batch.text.to(self.model.device),
            **self.read_images(batch),
            do_sample=False,
            num_beams=self.options.num_beams,
            max_new_tokens=min(self.options.max_new_tokens, room),
            logits_processor=[] if recorder is None else [recorder],
        )
        new_tokens = generated[:, length:]
        texts = self.processor.batch_decode(new_tokens, skip_special_tokens=True)
        probabilities = recorder.finish(new_tokens, end_token_ids(self.model)) if recorder is not None else []
        return Answers(
            {position: text.strip() for position, text in zip(batch.readable, texts, strict=True)},
            batch.errors,
            {position: fmean(tokens) for position, tokens in zip(batch.readable, probabilities, strict=False)},
        )

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return the (tokens, E) features of each image of a batch."""
        if batch.images is None:
            return []
        return self.model.get_image_features(**batch.images.to(self.model.device, self.model.dtype)).pooler_output

    def read_images(self, batch: Batch) -> dict[str, Any]:
        """Return inputs of `generate`: image features per question, or the KV cache after the shared prefix."""
        features = self.encode(batch)
        if not features:
            return {}
        if not batch.num_shared:
            return {"image_features": torch.cat([features[image] for image in batch.image_of_question])}
        assert batch.text is not None
        first = [batch.image_of_question.index(image) for image in range(len(features))]
        shared = {name: rows[first, : batch.num_shared].to(self.model.device) for name, rows in batch.text.items()}
        cache = self._new_cache()
        self.model(
            **shared,
            position_ids=(shared["attention_mask"].cumsum(dim=1) - 1).clamp(min=0),
            image_features=torch.cat(features),
            **{CACHE_NAME: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        of_beam = torch.tensor(batch.image_of_question).repeat_interleave(self.options.num_beams)
        cache.batch_select_indices(of_beam.to(self.model.device))
        return {CACHE_NAME: cache}

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.text_config)
