"""Slice plan and token counts of an image, computed without weights."""

from typing import TYPE_CHECKING, Any

from ..planning import ImagePlanner

if TYPE_CHECKING:
    from ..model.processing_llava_uhd import LlavaUhdProcessor


def explain_image(
    processor: "LlavaUhdProcessor | ImagePlanner", image: Any, max_slices: int | None = None
) -> dict[str, Any]:
    """Return grid, sizes and token counts of an image, ready for JSON.

    Sizes are [width, height] in pixels, the grid is [columns, rows].

    Args:
        processor: processor of the model, or an image planner with its settings.
        image: path, URL, bytes, array or PIL image.
        max_slices: maximum number of slices; None for the model's own.

    Raises:
        ValueError: the image cannot be read.
    """
    from ..model.images import decode_image

    planner = processor if isinstance(processor, ImagePlanner) else ImagePlanner.from_processor(processor)
    decoded = decode_image(image)
    width, height = planner.fit_letters(decoded, max_slices).size
    plan = planner.plan(width, height, max_slices=max_slices)
    layout = planner.image_layout(width, height, max_slices=max_slices)
    return {
        "size": list(decoded.size),
        **({} if planner.letter_height is None else {"fitted_size": [width, height]}),
        "grid": list(plan.grid) if plan.grid else None,
        "slice_size": list(plan.slice_size) if plan.slice_size else None,
        "overview_size": list(plan.overview_size),
        "num_views": plan.num_views,
        "num_image_tokens": layout.num_image_tokens,
        "sequence_length": layout.length,
        "layout": planner.layout,
    }
