"""Vision features and pixels of one view of an image, the input of the other figures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..model.hiwin import HiWinProjector
from ..model.vision_tower import encode_views, patches_to_pixels

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@dataclass(frozen=True)
class View:
    """Features and pixels of a slice or of the overview.

    Attributes:
        features: (1, C, H, W) feature map of the vision tower.
        pixels: (1, 3, H·p, W·p) normalized pixels in the features' dtype.
    """

    features: torch.Tensor
    pixels: torch.Tensor


@torch.no_grad()
def encode_view(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    view: int = -1,
    max_slices: int | None = None,
) -> View:
    """Encode one view of an image.

    Args:
        model: loaded model.
        processor: processor of the model.
        image: path, URL, bytes, array or PIL image.
        view: index of the view: slices row by row from 0, then the overview; -1 for the overview.
        max_slices: maximum number of slices; None for the model's own.

    Raises:
        ValueError: the image has no such view.
    """
    options = {} if max_slices is None else {"max_slices": max_slices}
    inputs = processor.image_processor(image, return_tensors="pt", **options)
    shapes = [(rows, columns) for rows, columns in inputs["view_shapes"].tolist()]
    if not -len(shapes) <= view < len(shapes):
        raise ValueError(f"the image has {len(shapes)} views, so there is no view {view}")
    patches = inputs["pixel_values"].split([rows * columns for rows, columns in shapes])[view]
    shape = shapes[view]
    features = encode_views(
        model.model.vision_tower, patches[None].to(model.device), shape, model.config.vision_feature_layer
    )
    pixels = patches_to_pixels(patches[None], shape, model.config.vision_config.patch_size)
    return View(features, pixels.to(features.device, features.dtype))


def hiwin_projector(model: "LlavaUhdForConditionalGeneration") -> HiWinProjector:
    """Return the model's HiWin projector.

    Raises:
        ValueError: the projector is of another type.
    """
    projector = model.model.multi_modal_projector
    if not isinstance(projector, HiWinProjector):
        raise ValueError(f"a projector of type {model.config.projector.type!r} has no pyramid")
    return projector
