"""Batched decoding: one step for many requests, each exactly as if it were alone.

Every request has a KV cache of its own: it joins after its prompt was read and leaves when its answer ends, without
padding and without touching the others. In a step the linear layers process all requests together, which makes
batching fast; attention runs request by request over that request's cache, so no mask is needed.

A matrix product may round differently for another number of rows. A step therefore always has the same number of
rows, unused ones included: the logits of a request depend on that request alone. Prompts are read, and images encoded,
one at a time for the same reason.

Shapes: B rows of a step, R of them in use, h heads of d channels, L tokens of one request's cache, E hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..model.modeling_llava_uhd import CACHE_NAME
from .kv_cache import has_experts, has_full_attention, new_cache

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration

ROW_BY_ROW = "llava_uhd_row_by_row"


class RowCaches(Cache):
    """KV caches of the requests of one step, passed to the language model as one cache. Lives for that step."""

    def __init__(self, caches: Sequence[DynamicCache]):
        super().__init__(layers=[])
        self.caches = caches

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest cache."""
        return max(cache.get_seq_length(layer_idx) for cache in self.caches)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Append (B, h, 1, d) to the R caches; return keys and values as one (1, h, L, d) tensor per row in use."""
        grown = [
            cache.update(key_states[row : row + 1], value_states[row : row + 1], layer_idx, *args, **kwargs)
            for row, cache in enumerate(self.caches)
        ]
        return [keys for keys, _ in grown], [values for _, values in grown]


def attend_row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: list[torch.Tensor],
    value: list[torch.Tensor],
    attention_mask: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from (B, h, 1, d) queries to the caches of `RowCaches.update`: (B, 1, h, d), zeros in unused rows."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    rows = [
        attend(module, query[row : row + 1], keys, values, None, **kwargs)[0]
        for row, (keys, values) in enumerate(zip(key, value, strict=True))
    ]
    unused = len(query) - len(rows)
    return torch.cat([*rows, *[torch.zeros_like(rows[0])] * unused]), None


# No mask is registered under this name, so transformers makes none.
AttentionInterface.register(ROW_BY_ROW, attend_row_by_row)


class Decoder:
    """Encode images, read prompts and decode in steps. All calls come from one thread.

    A language model is decoded in batches if its attention can be replaced, if each layer is full attention over an
    ordinary KV cache, and if no token is routed to experts, whose matrix products would have as many rows as the
    tokens of other requests decide. Any other is decoded one request at a time.

    Args:
        model: loaded model.
        batch_size: number of rows per step.
    """

    def __init__(self, model: "LlavaUhdForConditionalGeneration", batch_size: int = 1):
        self.model = model
        self.language_config = model.model.language_model.config
        self.context: int = model.config.text_config.max_position_embeddings
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        self.end_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
        dispatches = model.model.language_model._supports_attention_backend
        is_plain = self.language_config._attn_implementation in ALL_ATTENTION_FUNCTIONS
        is_exact = has_full_attention(self.language_config) and not has_experts(self.language_config)
        self.batch_size = batch_size if dispatches and is_plain and is_exact else 1

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the (tokens, E) features of each image.

        Args:
            inputs: outputs of the image processor.
        """
        on_device = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return self.model.get_image_features(**on_device).pooler_output

    @torch.inference_mode()
    def read(
        self,
        input_ids: torch.Tensor,
        features: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Read prompts of one length, or a part of them (prefill).

        Args:
            input_ids: (B, length) token ids.
            features: (tokens, E) features of the image tokens.
            cache: KV cache of the tokens before, grown by this call; None for a new one.
            attention_mask: (B, length) mask of prompts that are padded on the left; None without padding.

        Returns:
            (B, vocabulary) logits of the next tokens, and the KV cache.
        """
        cache = new_cache(self.language_config) if cache is None else cache
        padded = {}
        if attention_mask is not None:
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            padded = {"attention_mask": attention_mask, "position_ids": positions}
        outputs = self.model(
            input_ids=input_ids.to(self.model.device),
            image_features=features,
            **padded,
            **{CACHE_NAME: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1], cache

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: Sequence[int], caches: Sequence[DynamicCache]) -> torch.Tensor:
        """Append a token to each of R requests; return the (R, vocabulary) logits of the next tokens.

        Args:
            tokens: last token of each request; at most `batch_size` requests.
            positions: position of each token in its request.
            caches: KV caches of the requests, grown by this call.
        """
        unused = self.batch_size - len(tokens)
        device = self.model.device
        input_ids = torch.tensor([*tokens, *[0] * unused], device=device)[:, None]
        position_ids = torch.tensor([*positions, *[0] * unused], device=device)[:, None]
        if self.batch_size == 1:
            past, attention = caches[0], self.language_config._attn_implementation
        else:
            past, attention = RowCaches(caches), ROW_BY_ROW
        with self._attention(attention):
            outputs = self.model(
                input_ids=input_ids,
                position_ids=position_ids,
                **{CACHE_NAME: past},
                use_cache=True,
                logits_to_keep=1,
            )
        return outputs.logits[: len(tokens), -1]

    @contextmanager
    def _attention(self, implementation: str) -> Iterator[None]:
        """Replace the attention of the language model."""
        before = self.language_config._attn_implementation
        self.language_config._attn_implementation = implementation
        try:
            yield
        finally:
            self.language_config._attn_implementation = before
