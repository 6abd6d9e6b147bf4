"""The HiWin projector's way from the encoder's map to what its windows saw, in the coordinates of `folding`.

The maps are up-sampled, normalised and pooled band by band: no map of a high level is ever whole, and none has the
language model's width. What the windows' queries see is then weighted and brought to the heads' channels.

With gradients a band is computed again when its gradient is asked for, so that a training step keeps the encoder's
maps and the pooled coordinates, not what lies between.

Shapes: N views, h w the encoder's map, H W a level's, K coordinates, S query sets, G query grid, L bins of a window at
one level, h heads of d channels, E channels of the language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import resize_positions
from .doubling import bands, double_band, double_tiled, pad_source, piece_size, tile_matrices
from .folding import Carried, Folded
from .windows import bin_shape, pool_windows, pooling_matrices


@dataclass(frozen=True)
class LevelGeometry:
    """What depends on a level's shape alone.

    Attributes:
        rows, columns: the pooling matrices, (G · ph, H) and (G · pw, W).
        ones: (G², L), a map of ones pooled: less than 1 where windows reach beyond a small map.
        places: (G², G², L), the query grid's positions, resized to the map and pooled: each window's and bin's shares.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    ones: torch.Tensor
    places: torch.Tensor


@lru_cache(maxsize=32)
def geometry(
    shape: tuple[int, int], levels: tuple[int, ...], query_grid: int, box_dtype: str, device: torch.device
) -> list[LevelGeometry]:
    """The geometry of every level of a map of `shape`, (h, w); in float32."""
    bins, of_levels = bin_shape(shape), []
    # Made outside of inference mode and autocast even when first asked for inside: others may ask for the same later.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        for level in levels:
            map_shape = (level * shape[0], level * shape[1])
            rows, columns = pooling_matrices(map_shape, query_grid, bins, box_dtype, device, torch.float32)
            shares = resize_positions(torch.eye(query_grid**2, device=device), map_shape)  # 1, H, W, G²
            ones = torch.ones(1, *map_shape, 1, device=device)
            pooled = pool_windows(torch.cat([shares, ones], dim=-1), query_grid, bins, box_dtype)[0]
            places = pooled[..., :-1].transpose(1, 2).contiguous()
            of_levels.append(LevelGeometry(rows, columns, pooled[..., -1].contiguous(), places))
    return of_levels


def recomputed(function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Calls a function; where gradients are recorded, its intermediates are not kept but computed again."""
    if torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return function(*arguments)


def pool_across(maps: Sequence[torch.Tensor], columns: torch.Tensor, channels: int, eps: float) -> torch.Tensor:
    """Normalises some rows of a level's map and pools them along its width: (N, R, W, ·) to (N, R, G · pw, K).

    Args:
        maps: the parts of `Carried` at this level; one for inference, two where gradients are needed.
        columns: (G · pw, W).
        channels: E, of which sigma is a mean.
        eps: of the LayerNorm.
    """
    norm = torch.linalg.vector_norm(maps[-1], dim=-1)
    scale = (norm.square() / channels + eps).rsqrt()  # N, R, W
    across = columns * scale[:, :, None]  # N, R, G · pw, W
    pooled = across @ maps[0]
    if len(maps) > 1:
        pooled = torch.cat([pooled, across.sum(dim=-1, keepdim=True)], dim=-1)
    return pooled


def pool_down(across: torch.Tensor, geometry: LevelGeometry, query_grid: int) -> torch.Tensor:
    """Pools along the height what was pooled along the width: (N, H, G · pw, K) to (G², N, L, K + 1).

    The last coordinate is the pooled ones.
    """
    n, _, columns, channels = across.shape
    g = query_grid
    pooled = geometry.rows @ across.flatten(2)  # N, G · ph, G · pw · K
    windows = pooled.view(n, g, -1, g, columns // g, channels).permute(1, 3, 0, 2, 4, 5)
    windows = windows.reshape(g * g, n, -1, channels)
    return torch.cat([windows, geometry.ones[:, None, :, None].expand(-1, n, -1, 1)], dim=-1)


def condense(
    carried: Sequence[Carried],
    shape: tuple[int, int],
    levels: Sequence[int],
    kernels: Sequence[torch.Tensor] | None,
    of_levels: Sequence[LevelGeometry],
    query_grid: int,
    channels: int,
    eps: float,
) -> list[torch.Tensor]:
    """What every window sees of every level.

    Args:
        carried: of each level, parts (N, h · w, ·).
        shape: (h, w).
        levels: ascending.
        kernels: of each doubling, (N, 49, 2h, 2w) and so on; None where the maps are interpolated bilinearly.
        of_levels: from `geometry`.
        query_grid: G.
        channels: E.
        eps: of the LayerNorm behind the projections.

    Returns:
        for each level (G², N, L, K + 1).
    """
    maps = {
        level: [
            part.unflatten(1, shape) + offset[:, None, None]
            for part, offset in zip(of_level.parts, of_level.offsets[0], strict=True)
        ]
        for level, of_level in zip(levels, carried, strict=True)
    }
    geometries = dict(zip(levels, of_levels, strict=True))
    offsets = {level: of_level.offsets for level, of_level in zip(levels, carried, strict=True)}

    def pool(level: int, *parts: torch.Tensor) -> torch.Tensor:
        return pool_across(parts, geometries[level].columns, channels, eps)

    def interpolate_and_pool(level: int, *parts: torch.Tensor) -> torch.Tensor:
        moved = [
            F.interpolate(part.permute(0, 3, 1, 2), scale_factor=level, mode="bilinear", align_corners=False)
            for part in parts
        ]
        return pool(level, *(part.permute(0, 2, 3, 1) for part in moved))

    def double_and_pool(
        level: int, first: int, last: int, map_shape: tuple[int, int], tiles: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        half = len(tensors) // 2
        band = [
            double_band(padded, tiles[:, first:last], first, map_shape, offset)
            for padded, offset in zip(tensors[:half], tensors[half:], strict=True)
        ]
        return pool(level, *band)

    pooled = {}
    if kernels is None:
        for level in levels:
            function = pool if level == 1 else interpolate_and_pool
            pooled[level] = recomputed(function, level, *maps[level])
    else:
        pooled[1] = recomputed(pool, 1, *maps[1])
        for stage, of_stage in enumerate(kernels, start=1):
            tiles, map_shape = tile_matrices(of_stage), (of_stage.shape[2], of_stage.shape[3])
            for level in levels:
                if level == 2**stage:
                    padded = [pad_source(part, tiles) for part in maps.pop(level)]
                    tensors = (tiles, *padded, *offsets[level][stage])
                    pieces = bands(tiles, padded[-1].shape[-1])
                    of_bands = [recomputed(double_and_pool, level, *piece, map_shape, *tensors) for piece in pieces]
                    pooled[level] = torch.cat(of_bands, dim=1)
                elif level > 2**stage:
                    maps[level] = [
                        recomputed(double_tiled, part, tiles, map_shape, offset)
                        for part, offset in zip(maps[level], offsets[level][stage], strict=True)
                    ]
    return [pool_down(pooled[level], geometries[level], query_grid) for level in levels]


def attend(
    windows: Sequence[torch.Tensor], folded: Folded, of_levels: Sequence[LevelGeometry], dtype: torch.dtype
) -> torch.Tensor:
    """Each window's queries attend to what the window saw.

    Args:
        windows: of each level (G², N, L, K + 1).
        folded: the weights.
        of_levels: from `geometry`.
        dtype: of the product with the values' weights; the scores, like all before them, are float32.

    Returns:
        (N, G², S, E), the heads side by side, before the output projection.
    """
    num_windows, n = windows[0].shape[:2]
    heads, _, head_channels = folded.levels[0].values.shape
    scores = []
    for seen, level, of_level in zip(windows, folded.levels, of_levels, strict=True):
        of_view = level.scores @ seen.flatten(1, 2).transpose(1, 2)  # G², h · S, N · L
        of_place = folded.places @ of_level.places + folded.key_bias  # G², h · S, L
        scores.append(of_view.unflatten(2, (n, -1)) + of_place[:, :, None])
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)  # G², h · S, N, L of all levels
    weights = weights.transpose(1, 2).flatten(0, 1)  # G² · N, h · S, L of all levels
    sets = weights.shape[1] // heads
    lengths = [seen.shape[2] for seen in windows]

    def attend_heads(first: int, last: int, weights: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        half, out = len(tensors) // 2, None
        of_levels = weights[:, first * sets : last * sets].split(lengths, dim=-1)
        for of_level, seen, values in zip(of_levels, tensors[:half], tensors[half:], strict=True):
            summed = (of_level @ seen.flatten(0, 1)).to(dtype)  # G² · N, heads here · S, K + 1
            summed = summed.unflatten(1, (-1, sets)).transpose(0, 1).flatten(1, 2)  # heads here, G² · N · S, K + 1
            values = values[first:last]
            out = summed @ values if out is None else torch.baddbmm(out, summed, values)
        assert out is not None
        return out

    values = [level.values.to(dtype) for level in folded.levels]
    count = max(piece_size(weights.device) // (len(weights) * sets * values[0].shape[1]), 1)
    groups = [
        recomputed(attend_heads, first, min(first + count, heads), weights, *windows, *values)
        for first in range(0, heads, count)
    ]
    out = torch.cat(groups) + folded.value_bias.to(dtype)  # h, G² · N · S, d
    out = out.view(heads, num_windows, n, sets, head_channels).permute(2, 1, 3, 0, 4)
    return out.reshape(n, num_windows, sets, heads * head_channels)
