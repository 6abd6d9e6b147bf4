"""From patches to an image's tokens as the published code does it: slices together, then the overview.

Shapes: N views of one shape, H W their grid of patches, p patch side in pixels, D width of the tower, E channels of
the language model.
"""

import torch
from transformers import PreTrainedModel

from ..model.hiwin import HiWinProjector
from ..model.modeling_llava_uhd import LlavaUhdModel
from ..model.vision_tower import embed_patches, patches_to_pixels
from .hiwin import tokens


def encode(
    tower: PreTrainedModel, patches: torch.Tensor, shape: tuple[int, int], feature_layer: int = -2
) -> torch.Tensor:
    """Hidden state `feature_layer`, the class token dropped: (N, H·W, 3·p·p) to (N, D, H, W).

    Every layer is run and every hidden state kept, as `output_hidden_states=True` does.
    """
    states = [embed_patches(tower, patches, shape)]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    height, width = shape
    return states[feature_layer][:, -height * width :].transpose(1, 2).unflatten(2, shape)


def view_tokens(model: LlavaUhdModel, patches: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The tokens of views of one shape: (N, H·W, 3·p·p) to (N, G², E)."""
    features = encode(model.vision_tower, patches, shape, model.config.vision_feature_layer)
    pixels = patches_to_pixels(patches, shape, model.config.vision_config.patch_size)
    projector = model.multi_modal_projector
    assert isinstance(projector, HiWinProjector), "only this projector has a plain formula here"
    return tokens(projector, features, pixels.to(features.dtype))


def image_tokens(
    model: LlavaUhdModel,
    slices: torch.Tensor | None,
    slice_shape: tuple[int, int] | None,
    overview: torch.Tensor,
    overview_shape: tuple[int, int],
) -> list[torch.Tensor]:
    """The tokens of one image, slices first: two passes, one over its slices, one over its overview."""
    tokens_of_overview = view_tokens(model, overview[None], overview_shape)
    if slices is None or slice_shape is None:
        return [tokens_of_overview]
    return [view_tokens(model, slices, slice_shape), tokens_of_overview]
