"""Attention written out, for training short sequences in bfloat16 on a CPU.

PyTorch's fused kernel computes the scores of a CPU in float32 whatever it is given: for sequences of some hundred
tokens, matrix products in bfloat16 around a softmax take half of its time, forward and backward.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

WRITTEN_OUT = "written_out"


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over all tokens, or over those before where the module is causal; an attention function of transformers.

    Args:
        module: attention layer, with `is_causal`.
        query: (B, H, L, D).
        key: (B, G, L, D), H a multiple of G.
        value: (B, G, L, D).
        attention_mask: not used: padding is on the right of causal sequences, and views have none.
        scaling: factor of the scores.

    Returns:
        (B, L, H, D), and None for the weights.
    """
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scores = (query * scaling) @ key.transpose(-1, -2)
    if module.is_causal:
        length = scores.shape[-1]
        scores += torch.full((length, length), -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


def write_out_attention(*models: PreTrainedModel) -> None:
    """Let models attend by `attention`."""
    AttentionInterface.register(WRITTEN_OUT, attention)
    AttentionMaskInterface.register(WRITTEN_OUT, lambda *_, **__: None)
    for model in models:
        model.set_attn_implementation(WRITTEN_OUT)
