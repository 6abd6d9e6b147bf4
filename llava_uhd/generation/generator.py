"""Generation of single requests: image features and prompt prefixes are cached, and tokens decoded in steps.

Images are most of a prompt and precede the question, so the KV cache of a prompt up to its last image is kept: a
further question about the same images, in this conversation or another, reads only the text after them. A prompt is
always read in these two parts, cached or not, so that an answer does not depend on what was cached.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from .bounded import BoundedCache
from .decoding import Decoder
from .kv_cache import cache_bytes, can_fork, fork
from .prompt import EncodedImage, ImageKey, Prompt, room_for_answer
from .request import RequestState
from .result import Result, Timings
from .sampling import Sampling

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

# Token ids as bytes, and the images at the image tokens.
PrefixKey = tuple[bytes, tuple[ImageKey | None, ...]]


def _feature_bytes(image: EncodedImage) -> int:
    assert image.features is not None
    return image.features.nbytes


class Generator:
    """Generate answers with one model. All calls come from one thread.

    Args:
        model: loaded model.
        processor: processor of the model.
        batch_size: number of rows per step.
        max_feature_bytes: maximum size of the image feature cache in bytes.
        max_prefix_bytes: maximum size of the prefix KV cache in bytes.
    """

    def __init__(
        self,
        model: "LlavaUhdForConditionalGeneration",
        processor: "LlavaUhdProcessor",
        batch_size: int = 1,
        max_feature_bytes: int = 0,
        max_prefix_bytes: int = 0,
    ):
        self.processor = processor
        self.decoder = Decoder(model, batch_size)
        self.features: BoundedCache[ImageKey, EncodedImage] = BoundedCache(max_feature_bytes, _feature_bytes)
        self.prefixes: BoundedCache[PrefixKey, DynamicCache] = BoundedCache(max_prefix_bytes, cache_bytes)

    def generate(self, prompt: Prompt, sampling: Sampling) -> Iterator[str | Result]:
        """Yield the text of one answer as it is generated, then the result.

        Args:
            prompt: prompt of the request.
            sampling: sampling parameters.

        Raises:
            ValueError: prompt and answer do not fit the context.
        """
        room = room_for_answer(prompt.input_ids.shape[1], self.decoder.context, sampling.max_new_tokens or 1)
        state = self.new_state(prompt, sampling, sampling.max_new_tokens or room)
        logits = self.prefill(state)
        while True:
            events = state.step(logits)
            yield from events
            if events and isinstance(events[-1], Result):
                return
            (logits,) = self.step([state])

    def new_state(
        self,
        prompt: Prompt,
        sampling: Sampling,
        max_new_tokens: int,
        arrived: float | None = None,
        timings: Timings | None = None,
    ) -> RequestState:
        """Return the state of a request before its prompt is read; see `RequestState` for the arguments."""
        tokenizer, end_ids = self.processor.tokenizer, self.decoder.end_ids
        return RequestState(prompt, sampling, max_new_tokens, tokenizer, end_ids, arrived, timings)

    def prefill(self, state: RequestState) -> torch.Tensor:
        """Read the prompt of a request into its KV cache; return the (vocabulary,) logits of the first token."""
        started = time.monotonic()
        prompt, length = state.prompt, state.prompt.num_prefix_tokens
        if length:
            cache = self._prefix(state)
            logits, state.cache = self.decoder.read(prompt.input_ids[:, length:], cache=cache)
        else:
            logits, state.cache = self.decoder.read(prompt.input_ids, self._encode(state))
        state.timings.prefill = time.monotonic() - started - state.timings.encode
        return logits[0]

    def step(self, states: Sequence[RequestState]) -> torch.Tensor:
        """Append the last token of each request to its KV cache; return the (R, vocabulary) logits of the next."""
        caches = [state.cache for state in states if state.cache is not None]
        return self.decoder.step([state.tokens[-1] for state in states], [state.position for state in states], caches)

    def encode(self, images: Sequence[EncodedImage]) -> tuple[torch.Tensor | None, int]:
        """Return the (T, E) features of the images of a prompt, None without images, and the number cached before."""
        features, num_cached = [], 0
        for image in images:
            cached: EncodedImage | None = image
            if image.features is None:
                cached = None if image.key is None else self.features.get(image.key)
            self.features.count(hits=cached is not None, misses=cached is None)
            num_cached += cached is not None
            if cached is None:
                (image.features,) = self.decoder.encode(image.inputs)
                del image.inputs["pixel_values"]
                if image.key is not None:
                    self.features.put(image.key, image)
                cached = image
            assert cached.features is not None
            features.append(cached.features)
        return torch.cat(features) if features else None, num_cached

    def _encode(self, state: RequestState) -> torch.Tensor | None:
        started = time.monotonic()
        features, state.num_cached_images = self.encode(state.prompt.images)
        state.timings.encode = time.monotonic() - started
        return features

    def _prefix(self, state: RequestState) -> DynamicCache:
        """Return the KV cache of a prompt up to its last image, from the prefix cache if it is there."""
        images = state.prompt.images
        ids = state.prompt.input_ids[:, : state.prompt.num_prefix_tokens]
        key = ids.numpy().tobytes(), tuple(image.key for image in images)
        cached = self.prefixes.get(key)
        self.prefixes.count(hits=cached is not None, misses=cached is None)
        if cached is not None:
            state.num_cached_images = len(images)
            self.features.count(hits=len(images))
            return fork(cached)
        _, cache = self.decoder.read(ids, self._encode(state))
        if can_fork(cache) and None not in key[1]:
            self.prefixes.put(key, fork(cache))
        return cache
