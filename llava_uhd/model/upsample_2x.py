"""Upsampling a map 2x under kernels of its own at every position, tile by tile.

Joint bilateral up-sampling first enlarges a map 2x bicubically and then takes a weighted sum of 7 x 7 neighbors, with
other weights at every position. Both are linear and act on every channel alike, so a tile of 8 x 8 outputs is one
small matrix times the 10 x 10 source positions that reach it. The upsampled map and its 49 shifts are never formed, in
neither direction: the matrices are built from the kernels by two contractions with sliding pieces of the bicubic
matrix, one per side, which depend on the shape alone.

Shapes: N views, h w source map, H W = 2h 2w, P = 49 taps in row-major order, C channels, which come last here;
Ty Tx tiles vertically and horizontally.
"""

from functools import lru_cache

import torch
from torch.nn import functional as F

from .compilation import constant_result

RADIUS = 3
SPAN = 2 * RADIUS + 1
TAPS = SPAN**2
# Side of a tile, and what it needs of the source: half of it, and three positions more on either side.
TILE = 8
STEP = TILE // 2
REACH = STEP + 6
# Elements of an intermediate: small enough to stay near a CPU's cache, or to keep an accelerator busy; more where
# gradients are recorded, since every piece adds to the gradient of the whole.
PIECE = {"cpu": 2**21}
PIECE_ELSEWHERE = 2**27
PIECE_FACTOR_WITH_GRADIENT = 8


def piece_size(device: torch.device) -> int:
    """Return the number of elements an intermediate should have where work is done piece by piece."""
    return PIECE.get(device.type, PIECE_ELSEWHERE) * (PIECE_FACTOR_WITH_GRADIENT if torch.is_grad_enabled() else 1)


def border_mode(shape: tuple[int, int]) -> str:
    """Return the padding mode of a map: reflection, or replication where a side is too short to reflect.

    The reference implementation fails on such maps; they come from views of one patch on a side.
    """
    return "reflect" if min(shape) > RADIUS else "replicate"


@constant_result
def constant_sliding_matrices(
    shape: tuple[int, int], mode: str, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `sliding_matrices` of both sides of a source map of `shape`, as constants of a compiled graph.

    A tuple, because PyTorch's compiler takes several constant tensors of one function for the same.
    """
    height, width = shape
    return sliding_matrices(height, mode, device, dtype), sliding_matrices(width, mode, device, dtype)


@lru_cache(maxsize=256)
def sliding_matrices(side: int, mode: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Express each upsampled position's 7 neighbors along a side as sums of its tile's 10 source positions.

    Returns:
        (8 · tiles, 7, 10), zeros where the last tile reaches beyond the map.
    """
    # Made outside of inference mode even when first asked for inside it: a later training step may use it.
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(side, dtype=torch.float64)[None, None]
        upsampled = F.interpolate(identity, size=(2 * side, side), mode="bicubic", align_corners=False)[0, 0]
        border = F.pad(torch.arange(2.0 * side)[None, None], (RADIUS, RADIUS), mode=mode)[0, 0].long()
        tiles = -(-2 * side // TILE)
        # The source begins three positions before the first tile and ends where the last tile's reach does.
        matrix = F.pad(upsampled[border], (3, (tiles - 1) * STEP + REACH - 3 - side, 0, tiles * TILE - 2 * side))
        position = torch.arange(tiles * TILE)
        neighbors = position[:, None] + torch.arange(SPAN)
        sources = position[:, None] // TILE * STEP + torch.arange(REACH)
        pieces: torch.Tensor = matrix[neighbors[:, :, None], sources[:, None, :]]
        return pieces.to(device, dtype)


def tile_matrices(kernels: torch.Tensor) -> torch.Tensor:
    """Build the matrix of every tile: (N, P, H, W) kernels of an upsampled map to (N, Ty, Tx, 64, 100)."""
    n, _, height, width = kernels.shape
    mode = border_mode((height, width))
    # 8·Ty, 7, 10 and 8·Tx, 7, 10
    vertical, horizontal = constant_sliding_matrices((height // 2, width // 2), mode, kernels.device, kernels.dtype)
    rows, columns = len(vertical), len(horizontal)
    taps = F.pad(kernels, (0, columns - width, 0, rows - height)).view(n, SPAN, SPAN, rows, columns)
    taps = taps.permute(4, 0, 3, 1, 2).reshape(columns, -1, SPAN) @ horizontal  # 8·Tx, N·8·Ty·7, 10
    taps = taps.view(columns, n, rows, SPAN, REACH).permute(2, 3, 1, 0, 4).reshape(rows, SPAN, -1)
    taps = vertical.transpose(1, 2) @ taps  # 8·Ty, 10, N·8·Tx·10
    taps = taps.view(rows // TILE, TILE, REACH, n, columns // TILE, TILE, REACH).permute(3, 0, 4, 1, 5, 2, 6)
    return taps.reshape(n, rows // TILE, columns // TILE, TILE**2, REACH**2)


def pad_source(source: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Pad a source map (N, h, w, C) by the border that the tiles reach into; the matrices are zero there."""
    rows, columns = ((count - 1) * STEP + REACH - 3 for count in tiles.shape[1:3])
    return F.pad(source, (0, 0, 3, columns - source.shape[2], 3, rows - source.shape[1]))


def upsample_2x_band(
    padded: torch.Tensor, tiles: torch.Tensor, first: int, shape: tuple[int, int], offset: torch.Tensor
) -> torch.Tensor:
    """Compute some rows of the upsampled map.

    Args:
        padded: the whole source, padded by `pad_source`.
        tiles: (N, rows of tiles, Tx, 64, 100), matrices of this band.
        first: first row of tiles of the band.
        shape: (H, W), size of the upsampled map.
        offset: (N or 1, C), added at every position.

    Returns:
        (N, rows, W, C).
    """
    n, rows, columns = tiles.shape[:3]
    channels = padded.shape[-1]
    source = padded[:, first * STEP : (first + rows - 1) * STEP + REACH]
    patches = source.unfold(1, REACH, STEP).unfold(2, REACH, STEP).permute(0, 1, 2, 4, 5, 3)
    patches = patches.reshape(-1, REACH**2, channels)
    constant = offset[:, None, None, None, :].expand(n, rows, columns, 1, channels).reshape(-1, 1, channels)
    out = torch.baddbmm(constant, tiles.flatten(0, 2), patches).view(n, rows, columns, TILE, TILE, channels)
    out = out.transpose(2, 3).reshape(n, rows * TILE, columns * TILE, channels)
    return out[:, : shape[0] - first * TILE, : shape[1]]


def bands(tiles: torch.Tensor, channels: int) -> list[tuple[int, int]]:
    """Split the rows of tiles into bands: (first, last) of each, last excluded."""
    n, rows, columns = tiles.shape[:3]
    count = max(piece_size(tiles.device) // (n * columns * REACH**2 * channels), 1)
    return [(first, min(first + count, rows)) for first in range(0, rows, count)]


def upsample_2x_tiled(
    source: torch.Tensor, tiles: torch.Tensor, shape: tuple[int, int], offset: torch.Tensor
) -> torch.Tensor:
    """Compute the whole upsampled map, (N, h, w, C) to (N, H, W, C); arguments as in `upsample_2x_band`."""
    padded = pad_source(source, tiles)
    pieces = bands(tiles, padded.shape[-1])
    out = [upsample_2x_band(padded, tiles[:, first:last], first, shape, offset) for first, last in pieces]
    return torch.cat(out, dim=1) if len(out) > 1 else out[0]


def upsample_2x(source: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Compute the whole upsampled map: (N, C, h, w), (N, P, 2h, 2w) to (N, C, 2h, 2w)."""
    shape, no_offset = (kernels.shape[2], kernels.shape[3]), source.new_zeros(1, source.shape[1])
    upsampled = upsample_2x_tiled(source.permute(0, 2, 3, 1), tile_matrices(kernels), shape, no_offset)
    return upsampled.permute(0, 3, 1, 2)
