"""The semantic pyramid: a view's feature map at 1x and up-sampled to 2x, 4x, 8x.

Joint bilateral up-sampling (JBU, as in FeatUp): a map is doubled bicubically, then every position becomes a weighted
sum of its 7 x 7 neighbours. The weights come from the view's own pixels: neighbours of similar colour count more
(range kernel), near ones count more (spatial kernel), and a small network corrects both.

Shapes: N views, C channels, h w source map, H W = 2h 2w, P = 49 taps in row-major order.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

RADIUS = 3
SPAN = 2 * RADIUS + 1
TAPS = SPAN**2
# Side of the tiles in which maps are convolved: larger ones repeat less border but multiply more zeros.
TILE = 8
KEY_DIM = 32
# Weight of the learned corrections, of the kernels and of the up-sampled maps, as published.
FIXUP_SCALE = 0.1


def pad_border(x: torch.Tensor) -> torch.Tensor:
    """Pads (N, C, H, W) by the radius: by reflection, or by repetition where a side is too short to reflect.

    The published code fails on such maps; they come from views of one patch on a side.
    """
    mode = "reflect" if min(x.shape[-2:]) > RADIUS else "replicate"
    return F.pad(x, (RADIUS,) * 4, mode=mode)


def shifts(padded: torch.Tensor, shape: Sequence[int]) -> Iterator[torch.Tensor]:
    """The P shifted views of a padded map (..., H+6, W+6), none of them a copy."""
    height, width = shape
    for dy in range(SPAN):
        for dx in range(SPAN):
            yield padded[..., dy : dy + height, dx : dx + width]


@lru_cache
def _tap_places() -> torch.Tensor:
    """Where in a tile's neighbourhood each tap of each of its positions lies: (TILE², P)."""
    # Made outside of inference mode even when first asked for inside it: a later training step may use it.
    with torch.inference_mode(False):
        y, x, dy, dx = torch.meshgrid(*map(torch.arange, (TILE, TILE, SPAN, SPAN)), indexing="ij")
        return ((y + dy) * (TILE + 2 * RADIUS) + x + dx).reshape(TILE**2, TAPS)


def adaptive_convolution(source: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """A convolution with a kernel of its own at every position: (N, C, H, W), (N, P, H, W) to (N, C, H, W).

    out[n, c, y, x] = sum_p kernels[n, p, y, x] · padded[n, c, (y, x) + p], as one matrix product per tile of the map:
    a tile's kernels, spread over the tile with its border, times the map there. The map is copied about three times,
    not 49 times, in both directions.
    """
    n, channels, height, width = source.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    rest = (0, columns * TILE - width, 0, rows * TILE - height)
    side = TILE + 2 * RADIUS
    tiles = F.pad(pad_border(source), rest).unfold(2, side, TILE).unfold(3, side, TILE)
    tiles = tiles.permute(0, 2, 3, 4, 5, 1).reshape(-1, side**2, channels)
    taps = F.pad(kernels, rest).view(n, TAPS, rows, TILE, columns, TILE)
    taps = taps.permute(0, 2, 4, 3, 5, 1).reshape(-1, TILE**2, TAPS)
    places = _tap_places().to(taps.device).expand(len(taps), -1, -1)
    matrices = taps.new_zeros(len(taps), TILE**2, side**2).scatter(2, places, taps)
    with torch.autocast(source.device.type, enabled=False):
        out = torch.bmm(matrices, tiles).view(n, rows, columns, TILE, TILE, channels)
    out = out.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, rows * TILE, columns * TILE)
    return out[..., :height, :width]


class JointBilateralUpsampler(nn.Module):
    """One doubling of a map, guided by pixels."""

    def __init__(self):
        super().__init__()
        self.range_temp = nn.Parameter(torch.zeros(1))
        self.sigma_spatial = nn.Parameter(torch.ones(1))
        self.range_proj = nn.Sequential(
            nn.Conv2d(3, KEY_DIM, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(KEY_DIM, KEY_DIM, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(TAPS + 3, TAPS, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(TAPS, TAPS, 1)
        )

    def range_kernel(self, guidance: torch.Tensor) -> torch.Tensor:
        """Softmax over the neighbours' likeness in colour: (N, 3, H, W) to (N, P, H, W)."""
        keys = self.range_proj(guidance)  # N, 32, H, W
        neighbours = shifts(pad_border(keys), keys.shape[-2:])
        likeness = torch.stack([(shifted * keys).sum(dim=1) for shifted in neighbours], dim=1)
        return (self.range_temp.exp().clamp(1e-4, 1e4) * likeness).softmax(dim=1)

    def spatial_kernel(self) -> torch.Tensor:
        """A Gaussian of the distance, not normalised: (1, P, 1, 1)."""
        axis = torch.linspace(-1, 1, SPAN, device=self.sigma_spatial.device)
        distance = axis[:, None] ** 2 + axis[None, :] ** 2
        return torch.exp(-distance / (2 * self.sigma_spatial**2)).view(1, TAPS, 1, 1)

    def kernels(self, guidance: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, P, H, W). The correction comes after the normalisation: they need not sum to one."""
        combined = self.range_kernel(guidance) * self.spatial_kernel()
        combined = combined / combined.sum(dim=1, keepdim=True).clamp(min=1e-7)
        fixup = self.fixup_proj(torch.cat([combined.to(guidance.dtype), guidance], dim=1))
        return combined + FIXUP_SCALE * fixup

    def forward(self, source: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w), pixels (N, 3, ., .) at any resolution, to (N, C, 2h, 2w)."""
        height, width = 2 * source.shape[-2], 2 * source.shape[-1]
        guidance = F.adaptive_avg_pool2d(pixels, (height, width))
        kernels = self.kernels(guidance)
        doubled = F.interpolate(source, size=(height, width), mode="bicubic", align_corners=False)
        # Summed in the kernels' precision: fp32 even when the features are bf16, as published.
        return adaptive_convolution(doubled.to(kernels.dtype), kernels).to(source.dtype)


def map_fixup(channels: int) -> nn.Sequential:
    """The correction x + 0.1 · fixup(x) that ends a stack of doublings."""
    return nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))


class JBUPyramid(nn.Module):
    """Doublings of a map up to the highest level, parameters named as published.

    The stacks differ: up to 4x only the last map is corrected, and the raw 2x map feeds the next doubling; at 8x each
    map is corrected and the corrected one feeds the next (the released code's `forward_stageloss`; `fixup_proj` is
    then used by nothing, and kept for the checkpoint's sake).
    """

    def __init__(self, channels: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.highest = max(levels)
        self.up1 = JointBilateralUpsampler()
        if self.highest >= 4:
            self.up2 = JointBilateralUpsampler()
        if self.highest >= 8:
            self.up3 = JointBilateralUpsampler()
            self.fixup_proj_2x = map_fixup(channels)
            self.fixup_proj_4x = map_fixup(channels)
            self.fixup_proj_8x = map_fixup(channels)
        self.fixup_proj = map_fixup(channels)

    def stages(self) -> list[tuple[JointBilateralUpsampler, nn.Sequential | None]]:
        """The doublings from low to high, each with the correction of its map."""
        if self.highest == 8:
            return [
                (self.up1, self.fixup_proj_2x),
                (self.up2, self.fixup_proj_4x),
                (self.up3, self.fixup_proj_8x),
            ]
        if self.highest == 4:
            return [(self.up1, None), (self.up2, self.fixup_proj)]
        return [(self.up1, self.fixup_proj)]

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the chosen levels, ascending: (N, C, h, w), (N, 3, ., .) to a list of (N, C, s·h, s·w)."""
        maps = {1: features}
        current = features
        for stage, (upsample, fixup) in enumerate(self.stages(), start=1):
            current = upsample(current, pixels)
            if fixup is not None:
                current = current + FIXUP_SCALE * fixup(current)
            maps[2**stage] = current
        return [maps[level] for level in self.levels]


class BilinearPyramid(nn.Module):
    """The pyramid without learning or guidance: each level interpolated from the encoder's own map."""

    def __init__(self, levels: list[int]):
        super().__init__()
        self.levels = levels

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        """As `JBUPyramid.forward`; the pixels are not looked at."""
        return [
            features
            if level == 1
            else F.interpolate(features, scale_factor=level, mode="bilinear", align_corners=False)
            for level in self.levels
        ]


def build_pyramid(upsampler: str, channels: int, levels: list[int]) -> JBUPyramid | BilinearPyramid:
    """The pyramid of a config; level 1 alone needs no up-sampler, whichever is named."""
    if upsampler == "jbu" and levels != [1]:
        return JBUPyramid(channels, levels)
    return BilinearPyramid(levels)
