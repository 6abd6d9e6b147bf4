"""Quality of up-sampled maps against the closer look, beside baselines that need no training.

The closer look is what the tower sees of the image enlarged by a level's factor, tile by tile at its own resolution,
as slices are encoded. Raw cosine similarity to it rewards blur: features share a large mean, and a constant map scores
high. The measures here do not:

- `centered_cosine`: mean cosine after each side's own mean feature is subtracted. Blind to scale and offset.
- `nmse`: squared error divided by the closer look's variance. The constant map scores 1; lower is better.
- `ridge_r2`: share of the closer look's variance that a linear readout of the map explains, fitted by ridge
  regression on one half of the images and measured on the other, mean of both ways round.

`cosine`, the raw one, is reported beside them for comparison with older figures and ranks nothing.

Shapes: C channels, h w the tower's map, s factor of a level, P positions of a map.
"""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional as F

from ...deprecation import former_names
from .features import Features
from .images import Images

# (features, pixels, size) to a map of that size: any up-sampler, trained or not.
Upsample = Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor]
Quality = dict[str, dict[str, dict[str, float]]]
# Ridge penalty, relative to the mean variance of a channel.
RIDGE = 0.3
CONSTANT = "constant"


def interpolate(mode: str) -> Upsample:
    """Interpolation of the map alone: `nearest`, `bilinear` or `bicubic`."""

    def upsample(features: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(features, size=size, mode=mode)

    return upsample


def constant(feature: torch.Tensor) -> Upsample:
    """The map that says the same feature, (C,), everywhere."""

    def upsample(features: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return feature[:, None, None].expand(len(features), -1, *size)

    return upsample


BASELINES: dict[str, Upsample] = {mode: interpolate(mode) for mode in ("nearest", "bilinear", "bicubic")}


def pyramid_upsample(pyramid: Any) -> Upsample:
    """An up-sampler from a pyramid module: the map of the level whose size is asked for.

    Args:
        pyramid: module with `levels` whose forward pass takes features and pixels and returns the levels' maps.
    """

    def upsample(features: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        pyramid.eval()
        return next(map_ for map_ in pyramid(features, pixels) if tuple(map_.shape[2:]) == size)

    return upsample


class Moments:
    """Sums of products of maps (as rows x with a 1 appended) and closer looks (rows y), in float64.

    Args:
        channels: C.
        device: device of the sums.
    """

    def __init__(self, channels: int, device: torch.device):
        zeros: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.xx = torch.zeros(channels + 1, channels + 1, **zeros)
        self.xy = torch.zeros(channels + 1, channels, **zeros)
        self.yy = torch.zeros(channels, **zeros)
        self.positions = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the positions of an image.

        Args:
            x: up-sampled features, (P, C).
            y: features of the closer look, (P, C).
        """
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).double()
        y = y.double()
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum(dim=0)
        self.positions += len(x)

    @property
    def variance(self) -> torch.Tensor:
        """Sum over positions and channels of (y - mean)²."""
        return (self.yy - self.xy[-1].square() / self.positions).sum()

    def squared_error(self, readout: torch.Tensor) -> torch.Tensor:
        """Sum over positions and channels of (readout(x) - y)².

        Args:
            readout: (C + 1, C), the bias in its last row.
        """
        explained = (readout * (self.xx @ readout)).sum() - 2 * (readout * self.xy).sum()
        return self.yy.sum() + explained

    def ridge(self) -> torch.Tensor:
        """Fit the readout, (C + 1, C); the bias is not penalized."""
        channels = len(self.xx) - 1
        mean = self.xx[-1, :-1] / self.positions
        variance = (self.xx.diagonal()[:-1] - self.positions * mean.square()).sum() / channels
        penalty = torch.zeros_like(self.xx.diagonal())
        penalty[:-1] = RIDGE * variance.clamp(min=torch.finfo(torch.float32).eps)
        return torch.linalg.solve(self.xx + penalty.diag(), self.xy)


@torch.no_grad()
def measure(
    upsamplers: Mapping[str, Upsample],
    features: Features,
    images: Images,
    levels: list[int],
    device: torch.device,
    with_baselines: bool = True,
) -> Quality:
    """Measure up-samplers, interpolation and the constant map on held-out images.

    Args:
        upsamplers: up-samplers by name.
        features: the frozen tower.
        images: held-out images.
        levels: levels to measure, such as 2 and 4.
        device: device to compute on.
        with_baselines: also measure `nearest`, `bilinear`, `bicubic` and `constant`.

    Returns:
        the measures by level, such as `2x`, and up-sampler; `ridge_r2` only of two images or more.
    """
    candidates = {**BASELINES, **upsamplers} if with_baselines else dict(upsamplers)
    found: Quality = {}
    for level in levels:
        closer_looks = _closer_looks(features, images, level, device)
        mean = torch.cat([y for _, _, y in closer_looks]).mean(dim=0)  # C
        found[f"{level}x"] = {
            name: _measure_one(upsample, closer_looks, mean, level) for name, upsample in candidates.items()
        }
        if with_baselines:
            found[f"{level}x"][CONSTANT] = _measure_one(constant(mean), closer_looks, mean, level)
    return found


def _closer_looks(
    features: Features, images: Images, level: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return each image's map, (1, C, h, w), its pixels, and its closer look, (P, C)."""
    looks = []
    for index in range(len(images)):
        pixels = images[index][None].to(device)
        closer = features.of_tiles(images.at_scale(index, level)[None].to(device), level)
        looks.append((features(pixels), pixels, closer[0].flatten(1).T))
    return looks


def _measure_one(
    upsample: Upsample,
    closer_looks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    mean: torch.Tensor,
    level: int,
) -> dict[str, float]:
    channels, device = len(mean), mean.device
    halves = Moments(channels, device), Moments(channels, device)
    maps = []
    for index, (low, pixels, closer) in enumerate(closer_looks):
        size = (level * low.shape[2], level * low.shape[3])
        map_ = upsample(low, pixels, size)
        if tuple(map_.shape) != (1, channels, *size):
            raise ValueError(f"the up-sampler gave {tuple(map_.shape)}, expected {(1, channels, *size)}")
        maps.append(map_[0].float().flatten(1).T)  # P, C
        halves[index % 2].add(maps[-1], closer)
    x, y = torch.cat(maps), torch.cat([closer for _, _, closer in closer_looks])
    centered = y - mean
    measured = {
        "cosine": F.cosine_similarity(x, y, dim=1).mean().item(),
        # A constant map has no direction: what rounding leaves of it after centering counts as 0.
        "centered_cosine": F.cosine_similarity(
            x - x.mean(dim=0), centered, dim=1, eps=float(1e-3 * y.norm(dim=1).mean())
        )
        .mean()
        .item(),
        "nmse": ((x - y).square().mean() / centered.square().mean()).item(),
    }
    if len(closer_looks) > 1:
        first, second = halves
        ways = ((first, second), (second, first))
        measured["ridge_r2"] = fmean(
            1 - (held_out.squared_error(fit.ridge()) / held_out.variance).item() for fit, held_out in ways
        )
    return measured


@torch.no_grad()
def false_colors(maps: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Maps (C, h, w) side by side as an image (3, H, maps · W): the first three principal components of all."""
    pixels = torch.cat([map_.flatten(1).T for map_ in maps])  # all positions, C
    center = pixels.mean(dim=0)
    _, _, directions = torch.linalg.svd(pixels - center, full_matrices=False)
    shown = []
    for map_ in maps:
        colors = (directions[:3] @ (map_.flatten(1) - center[:, None])).unflatten(1, map_.shape[1:])
        low, high = (colors.flatten(1).quantile(share, dim=1)[:, None, None] for share in (0.02, 0.98))
        colors = ((colors - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        shown.append(F.interpolate(colors[None], size=size, mode="nearest")[0])
    return torch.cat(shown, dim=2)


__getattr__ = former_names(__name__, {"false_colours": "false_colors"})  # former name
