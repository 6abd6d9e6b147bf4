"""How an image will be seen, in numbers: no weights needed."""

from typing import TYPE_CHECKING, Any

from ..model.image_processing_llava_uhd import decode_image

if TYPE_CHECKING:
    from ..model.processing_llava_uhd import LlavaUhdProcessor


def explain_image(processor: "LlavaUhdProcessor", image: Any, max_slices: int | None = None) -> dict[str, Any]:
    """Grid, sizes and token counts of an image, ready for JSON. Sizes are [width, height], the grid [columns, rows].

    Raises:
        ValueError: the image cannot be read.
    """
    size = decode_image(image).size
    plan = processor.image_processor.plan(*size, max_slices=max_slices)
    layout = processor.image_layout(*size, max_slices=max_slices)
    return {
        "size": list(size),
        "grid": list(plan.grid) if plan.grid else None,
        "slice_size": list(plan.slice_size) if plan.slice_size else None,
        "overview_size": list(plan.overview_size),
        "num_views": plan.num_views,
        "num_image_tokens": layout.num_image_tokens,
        "sequence_length": layout.length,
        "layout": processor.layout,
    }
