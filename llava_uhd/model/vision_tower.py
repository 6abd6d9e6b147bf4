"""The vision tower at any grid: CLIP or SigLIP of transformers, run on packed patches.

Views of one shape go through together, without padding, up to the layer whose output is used: the published code runs
one layer more and drops the result.

Shapes: N views of one shape, H W their grid of patches, p patch side in pixels, D width of the tower.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


def patches_to_pixels(patches: torch.Tensor, shape: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Puts patches back together: (N, H·W, 3·p·p) to (N, 3, H·p, W·p)."""
    (height, width), p = shape, patch_size
    grid = patches.view(-1, height, width, 3, p, p)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, height * p, width * p)


def position_embedding(table: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The table of a square grid at another one: (g², D) to (H·W, D), resized bicubically unless it fits."""
    side = round(len(table) ** 0.5)
    if shape == (side, side):
        return table
    grid = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=shape, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).squeeze(0).to(table.dtype)


def num_layers_used(num_layers: int, feature_layer: int) -> int:
    """Layers to run for `hidden_states[feature_layer]`; hidden state 0 is the embedding, n the output of layer n.

    Raises:
        ValueError: there is no such hidden state.
    """
    used = feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
    if not 0 <= used <= num_layers:
        raise ValueError(f"vision_feature_layer {feature_layer} does not exist: the tower has {num_layers} layers")
    return used


def embed_patches(tower: PreTrainedModel, patches: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The input of the first layer: (N, H·W, 3·p·p) to (N, [1 +] H·W, D), the class token first if there is one."""
    embeddings = tower.embeddings
    projection: nn.Conv2d = embeddings.patch_embedding
    hidden = F.linear(patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)
    table = embeddings.position_embedding.weight
    if tower.config.model_type != "clip_vision_model":
        return hidden + position_embedding(table, shape)
    hidden = hidden + position_embedding(table[1:], shape)
    class_token = (embeddings.class_embedding + table[0]).expand(len(hidden), 1, -1)
    return tower.pre_layrnorm(torch.cat([class_token, hidden], dim=1))


def encode_views(
    tower: PreTrainedModel, patches: torch.Tensor, shape: tuple[int, int], feature_layer: int
) -> torch.Tensor:
    """Features of views of one shape.

    Args:
        tower: a `CLIPVisionModel` or `SiglipVisionModel`.
        patches: (N, H·W, 3·p·p), each patch channel by channel, rows of pixels within.
        shape: (rows, columns) of patches, H and W.
        feature_layer: index of the hidden state, -2 for the output of the last layer but one.

    Returns:
        (N, D, H, W), the class token dropped.
    """
    hidden = embed_patches(tower, patches, shape)
    layers = tower.encoder.layers
    for layer in layers[: num_layers_used(len(layers), feature_layer)]:
        hidden = layer(hidden, None)
    height, width = shape
    return hidden[:, -height * width :].transpose(1, 2).unflatten(2, shape)
