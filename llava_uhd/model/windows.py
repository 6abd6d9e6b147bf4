"""Windows: the regions of a feature map that the queries of a view attend to, and their pooling.

A map of H x W is tiled by G x G equal windows, one per query. Each is pooled by RoI-Align into a few bins whose number
follows the map's aspect ratio. Since the windows tile the map, RoI-Align is separable: pooled = A_y · map · A_xᵀ, with
two small matrices that depend on the shape alone.

Shapes: G query grid, H W map, ph pw bins of a window, L = ph·pw, C channels, N views.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

# (width, height) in bins, in the order in which the reference implementation tries them: the first minimum wins.
BIN_CANDIDATES = ((4, 2), (3, 2), (4, 3), (3, 3), (2, 4), (2, 3), (3, 4))
BinGrid = Literal["selective", "fixed", "pyramid"]
# Side of the grid that bin embeddings are learned on.
BIN_GRID = 3


def bin_shape(map_shape: Sequence[int], bin_grid: BinGrid = "selective", level: int = 1) -> tuple[int, int]:
    """Return the (rows, columns) of bins in a window of a level.

    Args:
        map_shape: (rows, columns) of the encoder's map.
        bin_grid: `selective`, the grid nearest in aspect ratio to the map, the same at all levels, as published;
            `fixed`, 3 x 3 for every map; `pyramid`, level x level, so that a bin has the same number of feature
            pixels at every level.
        level: level of the pyramid.
    """
    if bin_grid == "fixed":
        return BIN_GRID, BIN_GRID
    if bin_grid == "pyramid":
        return level, level
    height, width = map_shape
    ratio = math.log(width / height)
    columns, rows = min(BIN_CANDIDATES, key=lambda size: abs(ratio - math.log(size[0] / size[1])))
    return rows, columns


def bin_weights(bins: tuple[int, int]) -> torch.Tensor:
    """Weights of the 3 x 3 grid of bin embeddings in each bin of a window, bilinear: (L, 9), float32."""
    identity = torch.eye(BIN_GRID**2).view(1, BIN_GRID**2, BIN_GRID, BIN_GRID)
    resized = F.interpolate(identity, size=bins, mode="bilinear", align_corners=False)  # 1, 9, ph, pw
    return resized.flatten(2)[0].T


def resize_bins(embedding: torch.Tensor, bins: tuple[int, int]) -> torch.Tensor:
    """Embeddings of the bins of a window from those of the 3 x 3 grid: (9, C) to (L, C), at least in float32."""
    precision = torch.promote_types(embedding.dtype, torch.float32)
    return bin_weights(bins).to(embedding.device, precision) @ embedding.to(precision)


def window_edges(side: int, query_grid: int, box_dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the windows along one side of a map, in feature pixels: two float32 arrays of (query_grid,).

    With `box_dtype` `bfloat16` the edges are rounded to bf16, as the reference implementation does when its features
    are bf16.
    """
    step = side / query_grid
    index = np.arange(query_grid, dtype=np.float64)
    edges = np.stack([index * step, index * step + step]).astype(np.float32)
    if box_dtype == "bfloat16":
        edges = torch.from_numpy(edges).bfloat16().float().numpy()
    return edges[0], edges[1]


def pooling_matrix(
    side: int, query_grid: int, bins: int, box_dtype: str = "float32", aligned: bool = False
) -> np.ndarray:
    """RoI-Align along one side: (query_grid · bins, side), float32.

    A bin averages ceil(width / bins) bilinear samples (adaptive sampling); all arithmetic is float32. Legacy RoI-Align
    (`aligned=False`, the original checkpoints) reads half a feature pixel off, counts a window as at least one pixel
    wide, and takes a sample beyond the map as zero, so that rows may sum to less than 1 on maps with a side of about
    8 or less.

    Args:
        side: length of the map's side, in feature pixels.
        query_grid: windows along the side.
        bins: bins of a window along the side.
        box_dtype: precision of the window edges, see `window_edges`.
        aligned: place samples relative to pixel centers, as RoI-Align's `aligned=True`.
    """
    starts, ends = window_edges(side, query_grid, box_dtype)
    one, half = np.float32(1), np.float32(0.5)
    matrix = np.zeros((query_grid * bins, side), dtype=np.float32)
    for window, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if aligned:
            start, width = start - half, end - start
        else:
            width = max(end - start, one)
        bin_width = width / np.float32(bins)
        samples = int(np.ceil(width / np.float32(bins)))
        for b in range(bins):
            row = matrix[window * bins + b]
            for s in range(samples):
                offset = (np.float32(s) + half) * bin_width / np.float32(samples)
                position = start + np.float32(b) * bin_width + offset
                if position > side:
                    continue
                position = max(position, np.float32(0))
                low = int(position)
                fraction = position - np.float32(low)
                if low >= side - 1:
                    low, fraction = side - 1, np.float32(0)
                row[low] += (one - fraction) / np.float32(samples)
                if fraction > 0:
                    row[low + 1] += fraction / np.float32(samples)
    return matrix


@lru_cache(maxsize=512)
def pooling_matrices(
    map_shape: tuple[int, int],
    query_grid: int,
    bins: tuple[int, int],
    box_dtype: str,
    aligned: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pooling matrices of a map's shape, (G·ph, H) and (G·pw, W); cached, since they hold no weights."""
    # Created outside of inference mode even when first asked for inside it: a later training step may use them.
    with torch.inference_mode(False):
        rows, columns = (
            torch.from_numpy(pooling_matrix(side, query_grid, count, box_dtype, aligned)).to(device, dtype)
            for side, count in zip(map_shape, bins, strict=True)
        )
    return rows, columns


def pool_windows(
    features: torch.Tensor,
    query_grid: int,
    bins: tuple[int, int],
    box_dtype: str = "float32",
    aligned: bool = False,
) -> torch.Tensor:
    """Pool every window of every map: (N, H, W, C) to (N, G², L, C); windows and bins in row-major order."""
    num_views, height, width, channels = features.shape
    g, (ph, pw) = query_grid, bins
    a_y, a_x = pooling_matrices((height, width), g, bins, box_dtype, aligned, features.device, features.dtype)
    pooled = torch.matmul(a_y, features.reshape(num_views, height, width * channels))  # N, G·ph, W·C
    pooled = torch.matmul(a_x, pooled.view(num_views, g * ph, width, channels))  # N, G·ph, G·pw, C
    pooled = pooled.view(num_views, g, ph, g, pw, channels).transpose(2, 3)  # N, G, G, ph, pw, C
    return pooled.reshape(num_views, g * g, ph * pw, channels)
