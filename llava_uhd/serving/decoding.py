"""One step for many conversations at once, each exactly as if it were alone.

Every conversation is a row with a key-value cache of its own: it joins after its prompt was read and leaves when its
answer ends, without padding and without touching the others. In a step the linear layers see all rows together, which
is what makes batching fast; attention goes row by row over that row's cache, so nothing is masked.

A matrix product may round differently for another number of rows. So a step always has the same number, empty places
filled with rows nobody reads: a row's logits then depend on that row alone, and the answer to a question does not
depend on who else is asking. Prompts are read, and images encoded, one at a time for the same reason, and a prompt
with images always in the same two parts, whether the first was read before or not.

Shapes: B rows of a step, of which R are in use, h heads of d channels, L tokens of one row's cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..kv_cache import has_experts, has_full_attention

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration

ROW_BY_ROW = "llava_uhd_row_by_row"


class RowCaches(Cache):
    """The caches of the rows of one step, seen by the language model as one. Lives for that step."""

    def __init__(self, caches: Sequence[DynamicCache]):
        super().__init__(layers=[])
        self.caches = caches

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(cache.get_seq_length(layer_idx) for cache in self.caches)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Adds (B, h, 1, d) to the R caches; keys and values as one (1, h, L, d) tensor per row in use."""
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
    """Attention of (B, h, 1, d) queries to what `RowCaches.update` returned: (B, 1, h, d), zeros in unused rows."""
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
    """Reads prompts and takes steps. All calls come from one thread."""

    def __init__(self, model: "LlavaUhdForConditionalGeneration", batch_size: int):
        """Take steps of `batch_size` rows, or of one where rows of the language model cannot be batched exactly.

        They can be if its attention can be replaced, if each layer is full attention over an ordinary KV cache, and if
        no token is routed to experts, whose matrix products would have as many rows as others' tokens decide.
        """
        self.model = model
        self.language_config = model.model.language_model.config
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        self.end_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
        dispatches = model.model.language_model._supports_attention_backend
        is_plain = self.language_config._attn_implementation in ALL_ATTENTION_FUNCTIONS
        is_exact = has_full_attention(self.language_config) and not has_experts(self.language_config)
        self.batch_size = batch_size if dispatches and is_plain and is_exact else 1

    def encode(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The (T, E) features of one image from what the image processor made of it."""
        on_device = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return self.model.get_image_features(**on_device).pooler_output[0]

    def read(
        self, input_ids: torch.Tensor, features: torch.Tensor | None = None, cache: DynamicCache | None = None
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Reads a prompt, or a part of one: the (vocabulary,) logits of its next token, and the row's cache.

        Args:
            input_ids: (1, length).
            features: (T, E) of its image tokens.
            cache: of what came before, grown by this call; None at the beginning.
        """
        cache = DynamicCache(config=self.language_config) if cache is None else cache
        outputs = self.model(
            input_ids=input_ids.to(self.model.device),
            image_features=features,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[0, -1], cache

    def step(self, tokens: Sequence[int], positions: Sequence[int], caches: Sequence[DynamicCache]) -> torch.Tensor:
        """Adds a token to each row: the (R, vocabulary) logits of the tokens after them.

        Args:
            tokens: R of them, at most `batch_size`.
            positions: of each token in its row.
            caches: of the rows, grown by this call.
        """
        unused = self.batch_size - len(tokens)
        device = self.model.device
        input_ids = torch.tensor([*tokens, *[0] * unused], device=device)[:, None]
        position_ids = torch.tensor([*positions, *[0] * unused], device=device)[:, None]
        if self.batch_size == 1:
            past, attention = caches[0], self.language_config._attn_implementation
        else:
            past, attention = RowCaches(caches), ROW_BY_ROW
        with self.attention(attention):
            outputs = self.model(
                input_ids=input_ids, position_ids=position_ids, past_key_values=past, use_cache=True, logits_to_keep=1
            )
        return outputs.logits[: len(tokens), -1]

    @contextmanager
    def attention(self, implementation: str) -> Iterator[None]:
        """The language model's attention replaced for a while."""
        before = self.language_config._attn_implementation
        self.language_config._attn_implementation = implementation
        try:
            yield
        finally:
            self.language_config._attn_implementation = before
