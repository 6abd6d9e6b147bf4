"""The HiWin projector as published (arXiv 2412.13871, section 3.3): every step at the language model's width.

Shapes: N views, C channels of the encoder, E of the language model, G query grid, L keys of a window over all levels,
h heads of d channels.
"""

import torch
from torch.nn import functional as F

from ..model.attention import WindowAttention, resize_positions
from ..model.hiwin import HiWinProjector
from ..model.windows import bin_shape, pool_windows
from .jbu import maps


def keys_and_values(
    projector: HiWinProjector, features: torch.Tensor, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every position of every level projected and normalised; keys and values pooled: two of (N, G², L, E)."""
    bins = bin_shape(features.shape[-2:])
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    of_levels = maps(projector.upsampler, features, pixels)
    for projection, map_ in zip(projector.level_projections(), of_levels, strict=True):
        value = projector.ln_kv(projection.linear(map_.permute(0, 2, 3, 1)))  # N, H, W, E
        key = value + resize_positions(projector.positions, value.shape[1:3]) + projection.embedding
        for pooled, wide in ((keys, key), (values, value)):
            # RoI-Align is computed in float32 whatever the features' type.
            windows = pool_windows(wide.float(), projector.query_grid, bins, projector.box_dtype)
            pooled.append(windows.to(wide.dtype))
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def attend(
    attention: WindowAttention, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """One query per window, (G², E), to its window's keys and values, (N, G², L, E); to (N, G², E)."""
    q = attention.heads(attention.q_proj(queries)[:, None])  # G², h, 1, d
    k, v = attention.heads(attention.k_proj(keys)), attention.heads(attention.v_proj(values))  # N, G², h, L, d
    out = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1, -1), k, v)
    return attention.out_proj(out.flatten(-3))


def tokens(projector: HiWinProjector, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) features and their pixels to (N, G², E) tokens: one attention call for each set of queries."""
    keys, values = keys_and_values(projector, features, pixels)
    sets = [
        projector.ln_proj(attend(projector.attention, projector.ln_q(queries) + projector.positions, keys, values))
        for queries in projector.queries
    ]
    return projector.ln_post(projector.join(torch.cat(sets, dim=-1))) @ projector.proj
