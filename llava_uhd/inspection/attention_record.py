"""Record the language model's attention layer by layer, averaged over heads.

`output_attentions` stores every head of every layer; the attention function registered here stores their mean, which
takes 1/heads of the memory. Shapes: h heads of d channels, L tokens of the conversation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration

RECORDED = "llava_uhd_recorded"


def recorded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    recorded: list[torch.Tensor] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of one conversation (1, h, L, d); append its (L, L) mean over heads to `recorded`."""
    assert recorded is not None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2) * scale).float()  # 1, h, L, L
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    recorded.append(weights[0].mean(dim=0))
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), weights


# No mask is registered under this name, so transformers makes none.
AttentionInterface.register(RECORDED, recorded_attention)


@contextmanager
def recording(model: "LlavaUhdForConditionalGeneration") -> Iterator[list[torch.Tensor]]:
    """Yield a list that a forward pass with `recorded=` this list fills, first layer first.

    Raises:
        ValueError: the language model does not support attention backends.
    """
    language_model = model.model.language_model
    if not language_model._supports_attention_backend:
        raise ValueError(
            f"{type(language_model).__name__} does not support attention backends, so its attention cannot be recorded"
        )
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = RECORDED
    try:
        yield []
    finally:
        config._attn_implementation = before
