"""Attention written out, for training in bfloat16 on a CPU.

PyTorch's fused kernel computes the scores of a CPU in float32 whatever it is given: matrix products in bfloat16 around
a softmax take half of its time, forward and backward. Causal attention goes through the queries in blocks, each with
the keys up to its end: half of the scores are never computed, and a block stays in the cache.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

WRITTEN_OUT = "written_out"
BLOCK = 128  # queries of a block; 64 to 256 take the same time within a tenth


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
    # Rotary positions give float32, the layer of the values what autocast multiplies in.
    query, key = (query * scaling).to(value.dtype), key.to(value.dtype)
    groups, length = key.shape[1], query.shape[2]
    grouped = query.unflatten(1, (groups, -1))  # (B, G, R, L, D)
    if module.is_causal:
        rows = grouped.transpose(2, 3).flatten(2, 3).contiguous()
        attended = _CausalAttention.apply(rows, key, value).unflatten(2, (length, -1)).transpose(2, 3)
    else:
        rows = grouped.flatten(2, 3)
        attended = ((rows @ key.transpose(-1, -2)).softmax(dim=-1) @ value).unflatten(2, (-1, length))
    return attended.flatten(1, 2).transpose(1, 2).contiguous(), None


class _CausalAttention(torch.autograd.Function):
    """Causal attention of scaled queries, block by block of them.

    The R queries of a position that share a key are neighbors: queries and result (B, G, L·R, D), keys and values
    (B, G, L, D), all of one type.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        length = key.shape[2]
        shared = query.shape[2] // length
        place = torch.arange(BLOCK, device=query.device)
        later = torch.zeros(BLOCK * shared, BLOCK, dtype=query.dtype, device=query.device)
        later.masked_fill_(place > place.repeat_interleave(shared)[:, None], -torch.inf)
        attended, weights = torch.empty_like(query), []
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            rows = slice(start * shared, end * shared)
            scores = query[:, :, rows] @ key[:, :, :end].transpose(-1, -2)
            scores[..., start:] += later[: scores.shape[2], : end - start]
            weights.append(scores.softmax(dim=-1))
            attended[:, :, rows] = weights[-1] @ value[:, :, :end]
        ctx.save_for_backward(query, key, value, *weights)
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, *weights = ctx.saved_tensors
        (gradient,) = gradients
        shared = query.shape[2] // key.shape[2]
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
        for number, attention in enumerate(weights):
            end = attention.shape[-1]
            rows = slice(number * BLOCK * shared, end * shared)
            of_value[:, :, :end] += attention.transpose(-1, -2) @ gradient[:, :, rows]
            of_attention = gradient[:, :, rows] @ value[:, :, :end].transpose(-1, -2)
            of_scores = torch.ops.aten._softmax_backward_data(of_attention, attention, -1, attention.dtype)
            of_query[:, :, rows] = of_scores @ key[:, :, :end]
            of_key[:, :, :end] += of_scores.transpose(-1, -2) @ query[:, :, rows]
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype)


def write_out_attention(*models: PreTrainedModel) -> None:
    """Let models attend by `attention`."""
    AttentionInterface.register(WRITTEN_OUT, attention)
    AttentionMaskInterface.register(WRITTEN_OUT, lambda *_, **__: None)
    for model in models:
        model.set_attn_implementation(WRITTEN_OUT)
