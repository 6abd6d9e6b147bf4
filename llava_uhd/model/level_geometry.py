"""Constants of the windows on each level of the pyramid: pooling matrices, coverage, weights of positions and bins.

Shapes: H W map of a level, G query grid, L bins of a window at one level, of ph rows and pw columns.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .attention import resize_positions
from .autocast import without_autocast
from .compilation import constant_result
from .windows import BinGrid, bin_shape, bin_weights, pool_windows, pooling_matrices


class LevelGeometry(NamedTuple):
    """Constants of a level that depend on its shape alone.

    Attributes:
        rows, columns: the pooling matrices, (G · ph, H) and (G · pw, W).
        coverage: (G², L), a map of ones pooled: less than 1 where windows reach beyond a small map.
        position_weights: (G², G², L), weight of each position of the query grid in each window's bins.
        bin_weights: (9, L), weight of each bin embedding in each bin.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    coverage: torch.Tensor
    position_weights: torch.Tensor
    bin_weights: torch.Tensor


class WindowOptions(NamedTuple):
    """Options of a projector that decide, with a map's shape, what its windows pool."""

    levels: tuple[int, ...]
    query_grid: int
    box_dtype: str
    aligned: bool
    bin_grid: BinGrid


def level_geometries(shape: tuple[int, int], windows: WindowOptions, device: torch.device) -> list[LevelGeometry]:
    """Return the geometry of every level of a map of `shape`, (h, w); in float32, cached, constants of a graph."""
    tensors = _geometry_tensors(shape, device, *windows)
    size = len(tensors) // len(windows.levels)
    return [LevelGeometry(*tensors[first : first + size]) for first in range(0, len(tensors), size)]


@constant_result
def _geometry_tensors(shape: tuple[int, int], device: torch.device, *windows: Any) -> tuple[torch.Tensor, ...]:
    """Compute the geometry of `WindowOptions(*windows)`: PyTorch's compiler hands on named tuples empty."""
    geometries = cached_geometries(shape, WindowOptions(*windows), device)
    return tuple(tensor for geometry in geometries for tensor in geometry)


@lru_cache(maxsize=32)
def cached_geometries(shape: tuple[int, int], windows: WindowOptions, device: torch.device) -> list[LevelGeometry]:
    """Compute the geometry of every level; see `level_geometries`."""
    levels, query_grid, box_dtype, aligned, bin_grid = windows
    geometries = []
    # Made outside of inference mode and autocast even when first asked for inside: others may ask for the same later.
    with torch.inference_mode(False), torch.no_grad(), without_autocast(device):
        for level in levels:
            map_shape, bins = (level * shape[0], level * shape[1]), bin_shape(shape, bin_grid, level)
            rows, columns = pooling_matrices(map_shape, query_grid, bins, box_dtype, aligned, device, torch.float32)
            positions = resize_positions(torch.eye(query_grid**2, device=device), map_shape)  # 1, H, W, G²
            whole = torch.ones(1, *map_shape, 1, device=device)
            pooled = pool_windows(torch.cat([positions, whole], dim=-1), query_grid, bins, box_dtype, aligned)[0]
            geometries.append(
                LevelGeometry(
                    rows,
                    columns,
                    pooled[..., -1].contiguous(),
                    pooled[..., :-1].transpose(1, 2).contiguous(),
                    bin_weights(bins).T.contiguous().to(device),
                )
            )
    return geometries
