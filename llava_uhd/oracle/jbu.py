"""The pyramid as published (FeatUp's joint bilateral up-sampling): doubled bicubically, then 49 weighted shifts.

Shapes: N views, C channels, h w source map, H W = 2h 2w, P = 49 taps in row-major order.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..model.pyramid import BilinearPyramid, JBUPyramid, JointBilateralUpsampler


def shift(map_: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """The map moved by up to three positions, (N, C, H, W); reflected at its border, or repeated if too small."""
    mode = "reflect" if min(map_.shape[-2:]) > 3 else "replicate"
    height, width = map_.shape[-2:]
    return F.pad(map_, (3, 3, 3, 3), mode=mode)[..., 3 + dy : 3 + dy + height, 3 + dx : 3 + dx + width]


OFFSETS = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]


def kernels(up: JointBilateralUpsampler, guidance: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) pixels to (N, P, H, W) weights.

    softmax over taps of exp(temperature) · <key, shifted key>, times exp(-distance² / 2 sigma²) with distances in
    thirds, normalised, plus 0.1 times a correction.
    """
    keys = up.range_proj(guidance)
    likeness = torch.stack([(shift(keys, dy, dx) * keys).sum(dim=1) for dy, dx in OFFSETS], dim=1)
    range_kernel = (up.range_temp.exp().clamp(1e-4, 1e4) * likeness).softmax(dim=1)
    distances = torch.tensor([(dy / 3) ** 2 + (dx / 3) ** 2 for dy, dx in OFFSETS], device=keys.device)
    spatial_kernel = torch.exp(-distances / (2 * up.sigma_spatial**2)).view(1, -1, 1, 1)
    combined = range_kernel * spatial_kernel
    combined = combined / combined.sum(dim=1, keepdim=True).clamp(min=1e-7)
    return combined + 0.1 * up.fixup_proj(torch.cat([combined.to(guidance.dtype), guidance], dim=1))


def upsample(up: JointBilateralUpsampler, source: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) and pixels at any resolution to (N, C, H, W), summed in float32."""
    shape = (2 * source.shape[-2], 2 * source.shape[-1])
    weights = kernels(up, F.adaptive_avg_pool2d(pixels, shape))
    doubled = F.interpolate(source, size=shape, mode="bicubic", align_corners=False).to(weights.dtype)
    padded = F.pad(doubled, (3, 3, 3, 3), mode="reflect" if min(shape) > 3 else "replicate")
    out, learns = torch.zeros_like(doubled), doubled.requires_grad or weights.requires_grad
    for tap, (dy, dx) in enumerate(OFFSETS):
        shifted = padded[..., 3 + dy : 3 + dy + shape[0], 3 + dx : 3 + dx + shape[1]]
        weight = weights[:, tap, None]
        # In place where no gradient is asked for: the baseline makes no needless copies.
        out = torch.addcmul(out, shifted, weight) if learns else out.addcmul_(shifted, weight)
    return out.to(source.dtype)


def correct(fixup: nn.Sequential, map_: torch.Tensor) -> torch.Tensor:
    """x + 0.1 · (1 x 1 convolution of x)."""
    return map_ + 0.1 * fixup(map_)


def maps(pyramid: JBUPyramid | BilinearPyramid, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The maps of a pyramid's levels: (N, C, h, w) to a list of (N, C, s·h, s·w)."""
    if isinstance(pyramid, BilinearPyramid):
        return [
            F.interpolate(features, scale_factor=level, mode="bilinear", align_corners=False)
            for level in pyramid.levels
        ]
    of_level = {1: features, 2: upsample(pyramid.up1, features, pixels)}
    if pyramid.highest == 8:
        of_level[2] = correct(pyramid.fixup_proj_2x, of_level[2])
        of_level[4] = correct(pyramid.fixup_proj_4x, upsample(pyramid.up2, of_level[2], pixels))
        of_level[8] = correct(pyramid.fixup_proj_8x, upsample(pyramid.up3, of_level[4], pixels))
    elif pyramid.highest == 4:
        of_level[4] = correct(pyramid.fixup_proj, upsample(pyramid.up2, of_level[2], pixels))
    else:
        of_level[2] = correct(pyramid.fixup_proj, of_level[2])
    return [of_level[level] for level in pyramid.levels]
