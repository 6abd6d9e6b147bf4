"""Figures of the feature pyramid in false colors, and the default figure of `llava-uhd explain`.

Needs matplotlib (`pip install llava-uhd[plot]`).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..deprecation import former_names
from ..model.images import decode_image
from .slices import draw_slices
from .view import encode_view, hiwin_projector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@torch.no_grad()
def view_pyramid(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    view: int = -1,
    max_slices: int | None = None,
) -> dict[int, torch.Tensor]:
    """Return the pyramid of one view of an image, the overview by default: level to (C, H, W).

    Raises:
        ValueError: the model's projector uses no pyramid.
    """
    projector = hiwin_projector(model)
    encoded = encode_view(model, processor, image, view, max_slices)
    maps = projector.upsampler(encoded.features, encoded.pixels)
    return {level: map_[0] for level, map_ in zip(projector.levels, maps, strict=True)}


def principal_colors(maps: dict[int, torch.Tensor]) -> dict[int, np.ndarray]:
    """Return maps in false colors: level to (H, W, 3) in [0, 1].

    Red, green and blue are the first three principal components of all levels' features together, so that equal
    colors mean similar features at every level.
    """
    flat = {level: map_.float().flatten(1).T for level, map_ in maps.items()}  # H·W, C
    # Every level has the same weight, whatever its number of positions.
    weighted = torch.cat([rows / len(rows) ** 0.5 for rows in flat.values()])
    mean = torch.stack([rows.mean(dim=0) for rows in flat.values()]).mean(dim=0)
    _, _, components = torch.linalg.svd(weighted - weighted.mean(dim=0), full_matrices=False)
    projected = {level: (rows - mean) @ components[:3].T for level, rows in flat.items()}
    together = torch.cat(list(projected.values()))
    low, high = together.quantile(0.02, dim=0), together.quantile(0.98, dim=0)
    return {
        level: ((rows - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).view(*maps[level].shape[1:], 3).cpu().numpy()
        for level, rows in projected.items()
    }


def explanation_figure(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    max_slices: int | None = None,
) -> "Figure":
    """Draw the image with its slices outlined, and the overview's pyramid level by level."""
    from matplotlib.figure import Figure

    decoded = decode_image(image)
    colors = principal_colors(view_pyramid(model, processor, decoded, max_slices=max_slices))
    figure = Figure(figsize=(3.2 * (1 + len(colors)), 4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 1 + len(colors), squeeze=False)[0]
    draw_slices(axes[0], decoded, processor, max_slices)
    draw_pyramid(axes[1:], colors)
    return figure


def draw_pyramid(axes: "Sequence[Axes]", colors: dict[int, np.ndarray]) -> None:
    """Draw the levels of a pyramid in false colors, one on each axis."""
    for axis, (level, color) in zip(axes, colors.items(), strict=True):
        axis.imshow(color, interpolation="nearest")
        axis.set_title(f"{level}x: {color.shape[0]} x {color.shape[1]}")
        axis.set_axis_off()


def pyramid_figure(colors: dict[int, np.ndarray]) -> "Figure":
    """Draw the pyramid that `principal_colors` returned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(colors), 3.4), dpi=150, layout="constrained")
    draw_pyramid(figure.subplots(1, len(colors), squeeze=False)[0], colors)
    return figure


__getattr__ = former_names(__name__, {"principal_colours": "principal_colors"})  # former name
