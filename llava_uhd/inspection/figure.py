"""The picture of `llava-uhd explain`: the slices on the image, and the pyramid of the overview in false colours.

Needs matplotlib (`pip install llava-uhd[plot]`).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.hiwin import HiWinProjector
from ..model.image_processing_llava_uhd import decode_image
from ..model.vision_tower import encode_views, patches_to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@torch.no_grad()
def view_pyramid(
    model: "LlavaUhdForConditionalGeneration", processor: "LlavaUhdProcessor", image: Any, view: int = -1
) -> dict[int, torch.Tensor]:
    """The pyramid of one view of an image, the overview by default: level to (C, H, W).

    Raises:
        ValueError: the model's projector uses no pyramid.
    """
    projector = model.model.multi_modal_projector
    if not isinstance(projector, HiWinProjector):
        raise ValueError(f"a projector of type {model.config.projector.type!r} has no pyramid")
    inputs = processor.image_processor(image, return_tensors="pt")
    shapes = [(rows, columns) for rows, columns in inputs["view_shapes"].tolist()]
    patches = inputs["pixel_values"].split([rows * columns for rows, columns in shapes])[view]
    shape = shapes[view]
    features = encode_views(
        model.model.vision_tower, patches[None].to(model.device), shape, model.config.vision_feature_layer
    )
    pixels = patches_to_pixels(patches[None], shape, model.config.vision_config.patch_size)
    maps = projector.upsampler(features, pixels.to(features.device, features.dtype))
    return {level: map_[0] for level, map_ in zip(projector.levels, maps, strict=True)}


def principal_colours(maps: dict[int, torch.Tensor]) -> dict[int, np.ndarray]:
    """Maps in false colours: level to (H, W, 3) in [0, 1].

    Red, green and blue are the first three principal components of all levels' features together, so that the same
    colour means the same at every level.
    """
    flat = {level: map_.float().flatten(1).T for level, map_ in maps.items()}  # H·W, C
    # Every level weighs the same, however many positions it has.
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
    """The image with its slices outlined, and the overview's pyramid level by level."""
    from matplotlib.figure import Figure

    picture = decode_image(image)
    plan = processor.image_processor.plan(*picture.size, max_slices=max_slices)
    colours = principal_colours(view_pyramid(model, processor, picture))
    figure = Figure(figsize=(3.2 * (1 + len(colours)), 4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 1 + len(colours), squeeze=False)[0]
    axes[0].imshow(picture)
    axes[0].set_title(f"{plan.num_slices} slices + overview" if plan.grid else "overview alone")
    columns, rows = plan.grid or (1, 1)
    for column in range(1, columns):
        axes[0].axvline(column * picture.width / columns - 0.5, color="tab:red", linewidth=1)
    for row in range(1, rows):
        axes[0].axhline(row * picture.height / rows - 0.5, color="tab:red", linewidth=1)
    for axis, (level, colour) in zip(axes[1:], colours.items(), strict=True):
        axis.imshow(colour, interpolation="nearest")
        axis.set_title(f"{level}x: {colour.shape[0]} x {colour.shape[1]}")
    for axis in axes:
        axis.set_axis_off()
    return figure
