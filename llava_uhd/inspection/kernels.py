"""Kernels of joint bilateral upsampling (JBU) at one point of a view.

A kernel is the product of the range kernel (similarity of pixels) and the spatial kernel (distance), normalized, plus
a learned correction; see `model.pyramid`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ..model.pyramid import JBUPyramid
from ..model.upsample_2x import SPAN
from .view import encode_view, hiwin_projector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@dataclass(frozen=True)
class PointKernel:
    """Kernel of one 2x step at one position.

    Attributes:
        level: level of the upsampled map.
        position: (row, column) in that map.
        guidance: (H, W, 3) pixels at that resolution, scaled to [0, 1] for display.
        range: (7, 7) weights by color similarity.
        spatial: (7, 7) weights by distance.
        kernel: (7, 7) applied weights, the learned correction included; may be negative.
    """

    level: int
    position: tuple[int, int]
    guidance: np.ndarray
    range: np.ndarray
    spatial: np.ndarray
    kernel: np.ndarray


@torch.no_grad()
def point_kernels(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    point: tuple[float, float] = (0.5, 0.5),
    view: int = -1,
    max_slices: int | None = None,
) -> list[PointKernel]:
    """Return the kernels of all 2x steps at a point of a view, lowest level first.

    Args:
        model: loaded model.
        processor: processor of the model.
        image: path, URL, bytes, array or PIL image.
        point: (x, y) in the view, from 0 to 1.
        view: index of the view, see `encode_view`.
        max_slices: maximum number of slices; None for the model's own.

    Raises:
        ValueError: the point is outside the view, or the model does not upsample by JBU.
    """
    if not all(0 <= coordinate <= 1 for coordinate in point):
        raise ValueError(f"a point has coordinates from 0 to 1, got {point}")
    pyramid = hiwin_projector(model).upsampler
    if not isinstance(pyramid, JBUPyramid):
        raise ValueError(f"an up-sampler of type {model.config.projector.upsampler!r} has no kernels")
    encoded = encode_view(model, processor, image, view, max_slices)
    kernels = []
    for stage, (upsampler, _) in enumerate(pyramid.steps(), start=1):
        height, width = (side * 2**stage for side in encoded.features.shape[-2:])
        guidance = F.adaptive_avg_pool2d(encoded.pixels, (height, width))
        row, column = (min(int(part * side), side - 1) for part, side in ((point[1], height), (point[0], width)))
        shown = guidance[0].permute(1, 2, 0).float()
        low, high = shown.amin(), shown.amax()

        def at_point(weights: torch.Tensor, row: int = row, column: int = column) -> np.ndarray:
            return weights[0, :, row, column].float().view(SPAN, SPAN).cpu().numpy()

        kernels.append(
            PointKernel(
                level=2**stage,
                position=(row, column),
                guidance=((shown - low) / (high - low).clamp(min=1e-6)).cpu().numpy(),
                range=at_point(upsampler.range_kernel(guidance)),
                spatial=at_point(upsampler.spatial_kernel(), 0, 0),
                kernel=at_point(upsampler(guidance)),
            )
        )
    return kernels


def kernel_figure(kernels: list[PointKernel]) -> "Figure":
    """Draw a row per 2x step: the point on the pixels, the range, spatial and applied kernels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(kernels)), dpi=150, layout="constrained")
    for axes, point in zip(figure.subplots(len(kernels), 4, squeeze=False), kernels, strict=True):
        row, column = point.position
        axes[0].imshow(point.guidance)
        axes[0].plot(column, row, "+", color="tab:red", markersize=12)
        axes[0].set_title(f"{point.level}x map")
        largest = float(np.abs(point.kernel).max())
        axes[1].imshow(point.range, cmap="viridis")
        axes[1].set_title("by color")
        axes[2].imshow(point.spatial, cmap="viridis")
        axes[2].set_title("by distance")
        drawn = axes[3].imshow(point.kernel, cmap="coolwarm", vmin=-largest, vmax=largest)
        axes[3].set_title("as applied")
        figure.colorbar(drawn, ax=axes[3], shrink=0.8)
        for axis in axes:
            axis.set_axis_off()
    return figure
