"""The fast path of HiWin: the same tensor as `hiwin.hiwin_attention`, computed in the encoder's width.

With the weights folded as `weight_folding` describes, the maps are upsampled, normalized and pooled band by band: no
map of a high level is ever whole, and none has the language model's width. Attention then runs on the pooled
coordinates, and one small matrix per head turns its weighted sums into values.

With gradients, the intermediates of a band are recomputed in the backward pass, so that a training step keeps the
encoder's maps and the pooled coordinates only. Weights are folded once per model for inference and once per step in
training.

Shapes: N views of one shape, h w the encoder's map, H W map of a level, C channels of the encoder, K coordinates,
S query sets, G query grid, L bins of a window at one level, heads of d channels, E hidden size of the language model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .autocast import matmul_dtype, without_autocast
from .compilation import not_compiled
from .folded_weights import HiWinWeights, fold_projector, level_fixups
from .level_geometry import LevelGeometry, WindowOptions, level_geometries
from .pyramid import JBUPyramid
from .upsample_2x import bands, pad_source, piece_size, tile_matrices, upsample_2x_band, upsample_2x_tiled
from .weight_folding import FoldedWeights, PushedThrough, push_through


def fused_hiwin_attention(
    projector: HiWinWeights, groups: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Attention output of the query sets, computed with folded weights.

    Args:
        projector: the module that holds the weights; `reason_not_to_fuse` must be None for it.
        groups: features (N, C, H, W) and pixels (N, 3, ., .) of each group of views.

    Returns:
        (views of all groups, G², S, E).
    """
    # In training also without gradients, so that reentrant checkpointing sees the same numbers twice.
    with_gradient = (torch.is_grad_enabled() or projector.training) and (
        any(group_features.requires_grad for group_features, _ in groups)
        or any(p.requires_grad for p in projector.parameters())
    )
    if with_gradient:
        heads = _heads_output_with_gradient(projector, groups)
    else:
        dtype = matmul_dtype(groups[0][0])
        with without_autocast(groups[0][0].device):
            folded = projector.folded_weights.get(projector, dtype)
        heads = torch.cat([_group_output(projector, *group, folded, dtype, False) for group in groups])
    attended: torch.Tensor = projector.attention.out_proj(heads)
    return attended


# Left out of compiled graphs: folding has an autograd function of its own, and bands are recomputed by checkpoints.
@not_compiled
def _heads_output_with_gradient(
    projector: HiWinWeights, groups: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Attention output of all heads before the output projection: (views of all groups, G², S, E)."""
    features = groups[0][0]
    with without_autocast(features.device):
        folded = fold_projector(projector, with_gradient=True)
    dtype = matmul_dtype(features)
    return torch.cat([_group_output(projector, *group, folded, dtype, True) for group in groups])


def _group_output(
    projector: HiWinWeights,
    features: torch.Tensor,
    pixels: torch.Tensor,
    folded: FoldedWeights,
    dtype: torch.dtype,
    with_gradient: bool,
) -> torch.Tensor:
    """Attention output for views of one shape: (N, C, h, w) to (N, G², S, E)."""
    device, shape = features.device, (features.shape[2], features.shape[3])
    windows = WindowOptions(
        tuple(projector.levels), projector.query_grid, projector.box_dtype, projector.aligned, projector.bin_grid
    )
    geometries = level_geometries(shape, windows, device)
    kernels: list[torch.Tensor] | None = None
    keep: list[torch.Tensor | None] = []
    if isinstance(projector.upsampler, JBUPyramid):
        kernels, keep = projector.upsampler.kernels(shape, pixels)
    with without_autocast(device):
        x = features.float().flatten(2).transpose(1, 2)  # N, h·w, C
        if with_gradient or any(factors is not None for factors in keep):
            pushed = [
                push_through(x, fixups, level.r_factor, with_source=with_gradient)
                for fixups, level in zip(level_fixups(projector, keep), folded.levels, strict=True)
            ]
        else:
            pushed = [PushedThrough([x @ level.parts[0][0]], level.offsets) for level in folded.push_through]
        pooled = upsample_normalize_pool(
            pushed,
            shape,
            projector.levels,
            kernels,
            geometries,
            projector.query_grid,
            projector.ln_kv.normalized_shape[0],
            projector.ln_kv.eps,
        )
        return attend(pooled, folded, geometries, dtype).to(features.dtype)


def recomputed(function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Call a function; where gradients are recorded, intermediates are recomputed in the backward pass."""
    if torch.is_grad_enabled():
        result: torch.Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result
    return function(*arguments)


def normalize_and_pool_width(
    maps: Sequence[torch.Tensor], columns: torch.Tensor, hidden_size: int, eps: float
) -> torch.Tensor:
    """Normalize some rows of a level's map and pool them along its width: (N, R, W, ·) to (N, R, G · pw, K).

    Args:
        maps: the parts of `PushedThrough` at this level; one for inference, two where gradients are needed.
        columns: (G · pw, W).
        hidden_size: E, number of channels that the variance is a mean over.
        eps: epsilon of the LayerNorm.
    """
    norm: torch.Tensor = torch.linalg.vector_norm(maps[-1], dim=-1)
    scale = (norm.square() / hidden_size + eps).rsqrt()  # N, R, W
    weights = columns * scale[:, :, None]  # N, R, G · pw, W
    pooled = weights @ maps[0]
    if len(maps) > 1:
        pooled = torch.cat([pooled, weights.sum(dim=-1, keepdim=True)], dim=-1)
    return pooled


def pool_height(pooled_width: torch.Tensor, geometry: LevelGeometry, query_grid: int) -> torch.Tensor:
    """Pool along the height what was pooled along the width: (N, H, G · pw, K) to (G², N, L, K + 1).

    The last coordinate is the coverage.
    """
    n, _, columns, channels = pooled_width.shape
    g = query_grid
    pooled = geometry.rows @ pooled_width.flatten(2)  # N, G · ph, G · pw · K
    windows = pooled.view(n, g, -1, g, columns // g, channels).permute(1, 3, 0, 2, 4, 5)  # G, G, N, ph, pw, K
    windows = windows.reshape(g * g, n, -1, channels)
    return torch.cat([windows, geometry.coverage[:, None, :, None].expand(-1, n, -1, 1)], dim=-1)


def upsample_normalize_pool(
    pushed: Sequence[PushedThrough],
    shape: tuple[int, int],
    levels: Sequence[int],
    kernels: Sequence[torch.Tensor] | None,
    geometries: Sequence[LevelGeometry],
    query_grid: int,
    hidden_size: int,
    eps: float,
) -> list[torch.Tensor]:
    """Upsample the pushed-through maps, apply the LayerNorm and pool the windows of every level.

    Args:
        pushed: maps of each level, parts (N, h · w, ·).
        shape: (h, w).
        levels: levels of the pyramid, ascending.
        kernels: JBU kernels of each 2x step, (N, 49, 2h, 2w) and so on; None where maps are interpolated bilinearly.
        geometries: constants of each level, from `level_geometries`.
        query_grid: G.
        hidden_size: E.
        eps: epsilon of the LayerNorm behind the projections.

    Returns:
        Pooled features of every level, each (G², N, L, K + 1).
    """
    maps = {
        level: [
            part.view(len(part), *shape, part.shape[-1]) + offset[:, None, None]
            for part, offset in zip(level_parts.parts, level_parts.offsets[0], strict=True)
        ]
        for level, level_parts in zip(levels, pushed, strict=True)
    }
    geometry = dict(zip(levels, geometries, strict=True))
    offsets = {level: level_parts.offsets for level, level_parts in zip(levels, pushed, strict=True)}

    def pool(level: int, *parts: torch.Tensor) -> torch.Tensor:
        return normalize_and_pool_width(parts, geometry[level].columns, hidden_size, eps)

    def interpolate_and_pool(level: int, *parts: torch.Tensor) -> torch.Tensor:
        interpolated = [
            F.interpolate(part.permute(0, 3, 1, 2), scale_factor=level, mode="bilinear", align_corners=False)
            for part in parts
        ]
        return pool(level, *(part.permute(0, 2, 3, 1) for part in interpolated))

    def upsample_and_pool(
        level: int, first: int, last: int, map_shape: tuple[int, int], tiles: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        half = len(tensors) // 2
        band = [
            upsample_2x_band(padded, tiles[:, first:last], first, map_shape, offset)
            for padded, offset in zip(tensors[:half], tensors[half:], strict=True)
        ]
        return pool(level, *band)

    pooled_width = {}
    if kernels is None:
        for level in levels:
            function = pool if level == 1 else interpolate_and_pool
            pooled_width[level] = recomputed(function, level, *maps[level])
    else:
        pooled_width[1] = recomputed(pool, 1, *maps[1])
        for step, of_step in enumerate(kernels, start=1):
            tiles, map_shape = tile_matrices(of_step), (of_step.shape[2], of_step.shape[3])
            for level in levels:
                if level == 2**step:
                    padded = [pad_source(part, tiles) for part in maps.pop(level)]
                    tensors = (tiles, *padded, *offsets[level][step])
                    pieces = bands(tiles, padded[-1].shape[-1])
                    of_bands = [recomputed(upsample_and_pool, level, *piece, map_shape, *tensors) for piece in pieces]
                    pooled_width[level] = torch.cat(of_bands, dim=1)
                elif level > 2**step:
                    maps[level] = [
                        recomputed(upsample_2x_tiled, part, tiles, map_shape, offset)
                        for part, offset in zip(maps[level], offsets[level][step], strict=True)
                    ]
    return [pool_height(pooled_width[level], geometry[level], query_grid) for level in levels]


def attend(
    pooled: Sequence[torch.Tensor],
    folded: FoldedWeights,
    geometries: Sequence[LevelGeometry],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Attend from each window's queries to its pooled coordinates.

    Args:
        pooled: pooled coordinates of each level, (G², N, L, K + 1).
        folded: folded weights.
        geometries: constants of each level, from `level_geometries`.
        dtype: dtype of the product with the value matrices; the scores, like all before them, are float32.

    Returns:
        (N, G², S, E), the heads side by side, before the output projection.
    """
    num_windows, n = pooled[0].shape[:2]
    heads, _, head_size = folded.levels[0].values.shape
    scores = []
    for pooled_level, level, geometry in zip(pooled, folded.levels, geometries, strict=True):
        of_view = level.scores @ pooled_level.flatten(1, 2).transpose(1, 2)  # G², h · S, N · L
        of_shape = folded.positional_scores @ geometry.position_weights + folded.key_bias  # G², h · S, L
        if level.bin_scores is not None:
            of_shape = of_shape + level.bin_scores @ geometry.bin_weights
        scores.append(of_view.view(*of_view.shape[:2], n, of_view.shape[2] // n) + of_shape[:, :, None])
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)  # G², h · S, N, L of all levels
    weights = weights.transpose(1, 2).flatten(0, 1)  # G² · N, h · S, L of all levels
    num_sets = weights.shape[1] // heads
    lengths = [pooled_level.shape[2] for pooled_level in pooled]

    weights, pooled = weights.to(dtype), [pooled_level.to(dtype) for pooled_level in pooled]

    def attend_heads(first: int, last: int, weights: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        half, out = len(tensors) // 2, None
        weights_by_level = torch.split(weights[:, first * num_sets : last * num_sets], lengths, dim=-1)
        for level_weights, pooled_level, values in zip(weights_by_level, tensors[:half], tensors[half:], strict=True):
            summed = level_weights @ pooled_level.flatten(0, 1)  # G² · N, heads here · S, K + 1
            # One product for each head and set: their rows lie at one stride, so that nothing is copied.
            values = values[first:last].repeat_interleave(num_sets, dim=0)  # heads here · S, K + 1, d
            summed = summed.transpose(0, 1)  # heads here · S, G² · N, K + 1
            out = summed @ values if out is None else torch.baddbmm(out, summed, values)
        assert out is not None
        return out

    values = [level.values.to(dtype) for level in folded.levels]
    count = max(piece_size(weights.device) // (len(weights) * num_sets * values[0].shape[1]), 1)
    groups = [
        recomputed(attend_heads, first, min(first + count, heads), weights, *pooled, *values)
        for first in range(0, heads, count)
    ]
    out = torch.cat(groups).view(heads, num_sets, num_windows, n, head_size)
    out = out + folded.value_bias.to(dtype)[:, :, None, None]  # h, S, G², N, d
    out = out.permute(3, 2, 1, 0, 4)  # N, G², S, h, d
    return out.reshape(n, num_windows, num_sets, heads * head_size)
