"""Figure of the slice plan: slice boundaries, overview and token count."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.images import decode_image
from ..model.slicing import enlarged_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from ..model.processing_llava_uhd import LlavaUhdProcessor


# Left, top, right and bottom, in units of an image's width and height.
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def canvas_box(processor: "LlavaUhdProcessor", image: "Image.Image", max_slices: int | None = None) -> Box:
    """Return the box that the views show: the whole image, and what it is padded with on both sides.

    Args:
        processor: processor of the model.
        image: decoded image.
        max_slices: maximum number of slices; None for the model's own.
    """
    fitted = processor.image_processor.fit_letters(image, max_slices=max_slices)
    planned, whole, (left, top) = _canvas(processor, fitted.width, fitted.height, max_slices)
    width, height = planned
    return left / width, top / height, (left + whole[0]) / width, (top + whole[1]) / height


def _canvas(
    processor: "LlavaUhdProcessor", width: int, height: int, max_slices: int | None
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return (width, height) of the image that is cut and of the canvas, and the canvas's corner in the image."""
    plan = processor.image_processor.plan(width, height, max_slices=max_slices)
    max_side = _max_side(processor, max_slices)
    planned = (width, height) if max_side is None else enlarged_size(width, height, max_side)
    whole = plan.padded_size or planned
    return planned, whole, (-((whole[0] - planned[0]) // 2), -((whole[1] - planned[1]) // 2))


def slice_boxes(processor: "LlavaUhdProcessor", width: int, height: int, max_slices: int | None = None) -> np.ndarray:
    """Return (slices, 4) left, top, right, bottom of every slice in image pixels, row by row; (0, 4) without.

    Slices of a padded image reach beyond its borders.
    """
    plan = processor.image_processor.plan(width, height, max_slices=max_slices)
    columns, rows = plan.grid or (0, 0)
    planned, (whole_width, whole_height), (left, top) = _canvas(processor, width, height, max_slices)
    slice_width, slice_height = whole_width / max(columns, 1), whole_height / max(rows, 1)
    corners = [(left + x * slice_width, top + y * slice_height) for y in range(rows) for x in range(columns)]
    boxes = np.array([(x, y, x + slice_width, y + slice_height) for x, y in corners]).reshape(-1, 4)
    return boxes * np.array([width / planned[0], height / planned[1]] * 2)


def _max_side(processor: "LlavaUhdProcessor", max_slices: int | None) -> int | None:
    """Long side that small images are enlarged to as they are cut; None where `fit_letters` has done so."""
    images = processor.image_processor
    return images.max_side if images.used_height(max_slices=max_slices) is None else None


def draw_slices(
    axis: "Axes", image: "Image.Image", processor: "LlavaUhdProcessor", max_slices: int | None = None
) -> None:
    """Draw an image with its slices outlined and numbered in sequence order."""
    axis.imshow(image)
    width, height = processor.image_processor.fit_letters(image, max_slices=max_slices).size
    plan = processor.image_processor.plan(width, height, max_slices=max_slices)
    scale = np.array([image.width / width, image.height / height] * 2)
    boxes = slice_boxes(processor, width, height, max_slices) * scale
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
        axis.plot(*(np.array(side) - 0.5 for side in corners), color="tab:red", linewidth=1)
        axis.text(left, top, str(number), va="top", color="white", backgroundcolor="tab:red", fontsize=7)
    axis.set_title(f"{plan.num_slices} slices + overview" if plan.grid else "overview alone")
    axis.set_axis_off()


def slice_figure(processor: "LlavaUhdProcessor", image: Any, max_slices: int | None = None) -> "Figure":
    """Draw the slices on the image, and beside it the overview at its resized resolution.

    Raises:
        ValueError: the image cannot be read.
    """
    from matplotlib.figure import Figure

    from ..model.image_processing_llava_uhd import cut_views

    decoded = decode_image(image)
    fitted = processor.image_processor.fit_letters(decoded, max_slices=max_slices)
    plan = processor.image_processor.plan(*fitted.size, max_slices=max_slices)
    layout = processor.image_layout(*fitted.size, max_slices=max_slices)
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_slices(left, decoded, processor, max_slices)
    right.imshow(cut_views(fitted, plan, max_side=_max_side(processor, max_slices))[-1])
    right.set_title(f"overview: {plan.overview_size[0]} x {plan.overview_size[1]}")
    right.set_axis_off()
    sizes = f"slices of {plan.slice_size[0]} x {plan.slice_size[1]}, " if plan.slice_size else ""
    figure.suptitle(f"{decoded.width} x {decoded.height} pixels: {sizes}{layout.num_image_tokens} image tokens")
    return figure
