"""Batching of questions and preparation of model inputs.

Which questions form a batch depends on the data alone, not on the number of ranks or on what an earlier run left
undone, so an answer never depends on how the work was spread.

Questions about one image stay together. A batch holds each image once, and says how many tokens the prompts about it
have in common, for the language model to read them once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from ..generation.prompt import prefix_length, question_message, render
from .images import image_size, load_image
from .samples import ImageSource, Sample

if TYPE_CHECKING:
    from transformers import BatchEncoding, BatchFeature

    from ..model.processing_llava_uhd import LlavaUhdProcessor

Inputs = TypeVar("Inputs", "BatchFeature", "BatchEncoding")
IMAGE_THREADS = 4


@dataclass(frozen=True)
class Batch:
    """Questions by position in the data, and model inputs of those whose image could be read.

    Attributes:
        readable: positions of the questions that can be answered, in the order of the rows of `text`.
        errors: error messages of the other questions, by position.
        text: `input_ids` and `attention_mask`, padded on the left, the first `num_shared` columns and the others each
            by themselves; None if nothing is readable.
        images: pixels and shapes of the images, each once, however many questions ask about it; None without any.
        image_of_question: index into `images` for every readable question with an image, in order.
        num_shared: columns of `text` up to the images' last tokens, the same for all questions about an image; 0 if
            they are not to be read once for all.
    """

    readable: list[int]
    errors: dict[int, str]
    text: "BatchEncoding | None"
    images: "BatchFeature | None"
    image_of_question: list[int]
    num_shared: int


class BatchBuilder:
    """Plan batches, load their images and build their inputs.

    Args:
        processor: model processor.
        max_side: long side to which images are scaled before slicing, in pixels; None leaves them.
        max_slices: maximum number of slices per image; None takes the model's default.
        num_beams: number of beams per question.
        share: True computes the prefix shared by the questions about an image once (see `Batch.num_shared`); False for
            a model whose KV prefix cannot be shared.
    """

    def __init__(
        self,
        processor: "LlavaUhdProcessor",
        max_side: int | None = None,
        max_slices: int | None = None,
        num_beams: int = 1,
        share: bool = True,
    ):
        self.processor = processor
        self.max_side = max_side
        self.slices = {} if max_slices is None else {"max_slices": max_slices}
        self.num_beams = num_beams
        self.share = share

    def plan(self, samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
        """Group question positions by number and shapes of views and by text length, longest first.

        Views of one shape go through the tower together, and give as many tokens. Among these, questions about one
        image stay together. Sizes are those of the files: with a `letter_height` views are others, and the order only
        resembles theirs.
        """
        about: dict[ImageSource | int, list[int]] = {}  # a question without an image is a group of its own
        for position, sample in enumerate(samples):
            about.setdefault(position if sample.image_source is None else sample.image_source, []).append(position)

        def cost(positions: list[int]) -> tuple[int, tuple[int, int], int, int]:
            longest = max(len(samples[position].prompt) for position in positions)
            size = image_size(samples[positions[0]], self.max_side)
            if size is None:
                return 0, (0, 0), -longest, positions[0]
            try:
                plan = self.processor.image_processor.plan(*size, **self.slices)
            except ValueError:  # too narrow, which `_load` says
                return 0, (0, 0), -longest, positions[0]
            return -plan.num_views, plan.view_shapes[0], -longest, positions[0]

        with ThreadPoolExecutor(IMAGE_THREADS) as pool:
            costs = pool.map(cost, about.values())
            groups = [positions for _, positions in sorted(zip(costs, about.values(), strict=True))]
        order = [
            position
            for positions in groups
            for position in sorted(positions, key=lambda position: (-len(samples[position].prompt), position))
        ]
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def prompt(self, sample: Sample) -> str:
        """Render a conversation with an image placeholder; lone surrogates are replaced by U+FFFD."""
        images = [sample.image_source] if sample.image_source is not None else []
        question = sample.prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        message = question_message(images, question)
        return render(self.processor, [message])

    def build(self, samples: Sequence[Sample], positions: Sequence[int], pool: ThreadPoolExecutor) -> Batch:
        """Build the batch of the questions at these positions. The pool loads each image once.

        To be called by one thread at a time, as tokenizers allow.
        """
        asked = {position: samples[position] for position in positions}
        first: dict[ImageSource, Sample] = {}  # first question of each image
        for sample in asked.values():
            if sample.image_source is not None:
                first.setdefault(sample.image_source, sample)
        loaded = dict(zip(first, pool.map(self._load, first.values()), strict=True))
        images = {source: image for source, image in loaded.items() if not isinstance(image, str)}
        place = {source: index for index, source in enumerate(images)}

        readable, errors, ids, image_of_question = [], {}, [], []
        for position, sample in asked.items():
            image = None if sample.image_source is None else loaded[sample.image_source]
            if isinstance(image, str):
                errors[position] = image
                continue
            readable.append(position)
            ids.append(self.processor.encode_prompt(self.prompt(sample), image))
            if sample.image_source is not None:
                image_of_question.append(place[sample.image_source])
        shared = self._shared_lengths(ids, image_of_question)
        return Batch(
            readable,
            errors,
            self._padded(ids, shared) if ids else None,
            _joined(list(images.values())) if images else None,
            image_of_question,
            max(shared, default=0),
        )

    def _load(self, sample: Sample) -> "BatchFeature | str":
        """Return the processed image, or the error message if the image cannot be read or is too narrow."""
        try:
            image = load_image(sample, self.max_side)
            return self.processor.image_processor(image, return_tensors="pt", **self.slices)
        except ValueError as error:
            return str(error)

    def _shared_lengths(self, ids: list[list[int]], image_of_question: list[int]) -> list[int]:
        """Return the number of tokens of each prompt up to its last image token.

        Zeros unless all prompts have an image, begin alike where it is the same one, and there are more answers (or
        beams) than images.
        """
        num_images = len(set(image_of_question))
        if self.share and len(image_of_question) == len(ids) and num_images < len(ids) * self.num_beams:
            lengths = [prefix_length(prompt, self.processor.image_token_id) for prompt in ids]
            prefixes = [prompt[:length] for prompt, length in zip(ids, lengths, strict=True)]
            different = {(image, *prefix) for image, prefix in zip(image_of_question, prefixes, strict=True)}
            if len(different) == num_images and all(lengths):
                return lengths
        return [0] * len(ids)

    def _padded(self, ids: list[list[int]], shared: list[int]) -> "BatchEncoding":
        """Return token ids and mask, (questions, length)."""
        beginnings = [prompt[:length] for prompt, length in zip(ids, shared, strict=True)]
        rest = [prompt[length:] for prompt, length in zip(ids, shared, strict=True)]
        parts = [
            self.processor.tokenizer.pad({"input_ids": part}, padding_side="left", return_tensors="pt")
            for part in (beginnings, rest)
            if any(part)
        ]
        return _joined(parts, dim=1)


def _joined(parts: list[Inputs], dim: int = 0) -> Inputs:
    """Concatenate tensors of the same names."""
    return type(parts[0])({name: torch.cat([part[name] for part in parts], dim=dim) for name in parts[0]})
