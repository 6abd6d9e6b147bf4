"""How good an up-sampled map is, in numbers, against what needs no training.

The measure is what the tower sees when it looks closer: of the picture enlarged by a level's factor, tile by tile at
its own resolution, as slices are. An up-sampled map is as good as it points in the same directions: mean cosine.
"""

import torch
from torch.nn import functional as F

from ...model.pyramid import JBUPyramid
from .features import Features
from .pictures import Pictures


@torch.no_grad()
def measure(pyramid: JBUPyramid, features: Features, pictures: Pictures, device: torch.device) -> dict[str, float]:
    """Mean cosines of up-sampled maps with the tower's closer look, of held-out pictures.

    Returns:
        For each level such as 2x: `2x_jbu`, `2x_bilinear`, `2x_bicubic`.
    """
    pyramid.eval()
    totals: dict[str, float] = {}
    for index in range(len(pictures)):
        pixels = pictures[index][None].to(device)
        low = features(pixels)
        for level, map_ in zip(pyramid.levels, pyramid(low, pixels), strict=True):
            if level == 1:
                continue
            closer = features.of_tiles(pictures.at_scale(index, level)[None].to(device), level)
            plain = {way: F.interpolate(low, scale_factor=level, mode=way) for way in ("bilinear", "bicubic")}
            for way, upsampled in {"jbu": map_, **plain}.items():
                name = f"{level}x_{way}"
                cosine = F.cosine_similarity(upsampled, closer, dim=1).mean().item()
                totals[name] = totals.get(name, 0.0) + cosine / len(pictures)
    return totals


@torch.no_grad()
def false_colours(maps: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Maps (C, h, w) side by side as a picture (3, H, maps · W): the first three principal components of all."""
    pixels = torch.cat([map_.flatten(1).T for map_ in maps])  # all positions, C
    centre = pixels.mean(dim=0)
    _, _, directions = torch.linalg.svd(pixels - centre, full_matrices=False)
    shown = []
    for map_ in maps:
        colours = (directions[:3] @ (map_.flatten(1) - centre[:, None])).unflatten(1, map_.shape[1:])
        low, high = (colours.flatten(1).quantile(share, dim=1)[:, None, None] for share in (0.02, 0.98))
        colours = ((colours - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        shown.append(F.interpolate(colours[None], size=size, mode="nearest")[0])
    return torch.cat(shown, dim=2)
