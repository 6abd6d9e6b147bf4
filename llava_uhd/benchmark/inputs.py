"""Images, prompts and the reference vision path, for a model of any size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model.image_processing_llava_uhd import LlavaUhdImageProcessor
from ..model.layout import TokenType, plan_layout
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, token_grid
from .reference import view_tokens
from .sizes import Sizes

PROMPT_TOKENS = 48


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random blocks of color: no two views of it look alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width])


@dataclass(frozen=True)
class Images:
    """Images, packed as the model takes them.

    Attributes:
        inputs: `pixel_values`, `view_shapes`, `num_views` and `grids`.
        shapes: (rows, columns) of patches of each view, image after image.
        input_ids: (1, length), a prompt with all the images in it.
    """

    inputs: dict[str, torch.Tensor]
    shapes: list[tuple[int, int]]
    input_ids: torch.Tensor


def prepare(
    sizes: Sizes,
    model: LlavaUhdForConditionalGeneration,
    image_sizes: list[tuple[int, int]],
    max_slices: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Images:
    """Draw random images of these (width, height), and a prompt of random tokens about them."""
    processor = LlavaUhdImageProcessor(view_size=sizes.view_size, max_slices=max_slices)
    drawn = [random_image(*size, seed=index) for index, size in enumerate(image_sizes)]
    inputs: dict[str, Any] = dict(processor(drawn, return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(device, dtype)
    config = model.config
    ids = {
        TokenType.IMAGE: config.image_token_id,
        TokenType.SLICE_SEPARATOR: config.slice_separator_id,
        TokenType.ROW_SEPARATOR: config.row_separator_id,
    }
    words = np.random.default_rng(0).integers(5, config.text_config.vocab_size, PROMPT_TOKENS).tolist()
    prompt = [1, *words[: PROMPT_TOKENS // 2]]
    for size in image_sizes:
        prompt += [
            ids[token_type]
            for token_type in plan_layout(processor.plan(*size), token_grid(config), config.layout).template
        ]
    prompt += words[PROMPT_TOKENS // 2 :]
    shapes = [(rows, columns) for rows, columns in inputs["view_shapes"].tolist()]
    return Images(inputs, shapes, torch.tensor([prompt], device=device))


def plain_image_features(model: LlavaUhdForConditionalGeneration, images: Images) -> torch.Tensor:
    """Compute the tokens of all images in the order of the sequence, (T, E), by the reference formulation.

    Every image's slices go together, then its overview, each through all the tower's layers.
    """
    inner, inputs = model.model, images.inputs
    grouped = inner.group_views(
        len(inputs["pixel_values"]), inputs["view_shapes"], inputs["num_views"], inputs["grids"]
    )
    views = inputs["pixel_values"].split([rows * columns for rows, columns in images.shapes])
    of_shape: dict[tuple[int, int], list[torch.Tensor]] = {group.shape: [] for group in grouped.groups}
    view = 0
    for count in inputs["num_views"].tolist():
        overview = view + count - 1
        if count > 1:
            slices = view_tokens(inner, torch.stack(views[view:overview]), images.shapes[view])
            of_shape[images.shapes[view]].append(slices.flatten(0, 1))
        of_shape[images.shapes[overview]].append(
            view_tokens(inner, views[overview][None], images.shapes[overview]).flatten(0, 1)
        )
        view += count
    tokens = torch.cat([torch.cat(of_shape[group.shape]) for group in grouped.groups])
    return tokens[grouped.order.to(tokens.device)]


def image_features(model: LlavaUhdForConditionalGeneration, images: Images) -> torch.Tensor:
    """Compute the same by the model itself."""
    return torch.cat(model.get_image_features(**images.inputs).pooler_output)
