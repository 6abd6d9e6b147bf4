"""The vision tower at any grid: CLIP or SigLIP of transformers.

`adapt_tower` changes two things of a tower, and nothing of its weights or of the way it is called: positions are
resized to the grid of the view as in the reference implementation, and layers behind the one whose output is used do
not run, though they stay in the checkpoint. The tower is then called as any other, so that hooks, adapters, offloading
and quantization of its modules work.

Shapes: N views of one shape, H W their grid of patches, p patch side in pixels, D width of the tower.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings


def patches_to_pixels(patches: torch.Tensor, shape: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Put patches back together: (N, H·W, 3·p·p) to (N, 3, H·p, W·p)."""
    (height, width), p = shape, patch_size
    grid = patches.view(-1, height, width, 3, p, p)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, height * p, width * p)


def position_embedding(table: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Resize the table of a square grid to another one, bicubically in float32: (g², D) to (H·W, D)."""
    side = round(len(table) ** 0.5)
    if shape == (side, side):
        return table
    grid = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)  # 1, D, g, g
    grid = F.interpolate(grid, size=shape, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).squeeze(0).to(table.dtype)


class AnyGridCLIPEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings with positions resized to the view's grid; the class token keeps its own."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return (1, 1 + H·W, D) for a view of (height, width) pixels."""
        # The module is called, not its weight read: an offloaded or adapted table works too.
        table = self.position_embedding(self.position_ids)[0]
        shape = (height // self.patch_size, width // self.patch_size)
        return torch.cat([table[:1], position_embedding(table[1:], shape)])[None]


class AnyGridSiglipEmbeddings(SiglipVisionEmbeddings):
    """SigLIP's embeddings with positions resized to the view's grid."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return (1, H·W, D) for a view of (height, width) pixels."""
        table = self.position_embedding(self.position_ids)[0]
        return position_embedding(table, (height // self.patch_size, width // self.patch_size))[None]


class UnusedCLIPLayer(CLIPEncoderLayer):  # type: ignore[no-untyped-call]  # `__init_subclass__` has no types
    """A layer behind the one whose output is used: kept for the checkpoint, not run."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the input."""
        return hidden_states


class UnusedSiglipLayer(SiglipEncoderLayer):  # type: ignore[no-untyped-call]  # likewise
    """A layer behind the one whose output is used: kept for the checkpoint, not run."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the input."""
        return hidden_states


_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    CLIPVisionEmbeddings: AnyGridCLIPEmbeddings,
    SiglipVisionEmbeddings: AnyGridSiglipEmbeddings,
}
_UNUSED: dict[type[nn.Module], type[nn.Module]] = {
    CLIPEncoderLayer: UnusedCLIPLayer,
    SiglipEncoderLayer: UnusedSiglipLayer,
}


def num_layers_used(num_layers: int, feature_layer: int) -> int:
    """Return the number of layers to run for `hidden_states[feature_layer]`.

    Hidden state 0 is the embedding, n the output of layer n.

    Raises:
        ValueError: there is no such hidden state.
    """
    used = feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
    if not 0 <= used <= num_layers:
        raise ValueError(f"vision_feature_layer {feature_layer} does not exist: the tower has {num_layers} layers")
    return used


def adapt_tower(tower: PreTrainedModel, feature_layer: int) -> PreTrainedModel:
    """Let a tower take views of any grid, and stop after the layer whose output is used. Changes it in place.

    Only classes of modules change: parameters, their names and the modules themselves stay. Can be called again, with
    another layer too.

    Args:
        tower: a `CLIPVisionModel` or `SiglipVisionModel`.
        feature_layer: index of the hidden state that is used, -2 for the output of the last layer but one.

    Raises:
        ValueError: the tower is of another kind or has no such hidden state.
    """
    embeddings = getattr(tower, "embeddings", None)
    if not isinstance(embeddings, CLIPVisionEmbeddings | SiglipVisionEmbeddings):
        raise ValueError(f"the vision tower must be a CLIP or SigLIP vision model, got {type(tower).__name__}")
    layers = tower.encoder.layers
    _change_class(embeddings, _ADAPTED)
    used = num_layers_used(len(layers), feature_layer)
    as_used = {unused: layer for layer, unused in _UNUSED.items()}
    for index, layer in enumerate(layers):
        _change_class(layer, as_used if index < used else _UNUSED)
    return tower


def _change_class(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Give a module the class that belongs to its own; it keeps another one."""
    module.__class__ = classes.get(type(module), type(module))


def encode_pixels(tower: PreTrainedModel, pixels: torch.Tensor, feature_layer: int) -> torch.Tensor:
    """Encode views of one shape, given as pixels.

    Args:
        tower: a tower that went through `adapt_tower` with this layer.
        pixels: (N, 3, H·p, W·p), normalized.
        feature_layer: index of the hidden state, as in `adapt_tower`.

    Returns:
        (N, D, H, W), the class token dropped.
    """
    p = tower.config.patch_size
    shape = (pixels.shape[2] // p, pixels.shape[3] // p)
    hidden: torch.Tensor
    if tower.config.model_type == "clip_vision_model":
        # What comes out of the last layer that runs: CLIP's LayerNorm behind it serves the pooled output alone.
        hidden = tower(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    else:
        outputs = tower(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)
        hidden = outputs.hidden_states[feature_layer]
    return hidden[:, -shape[0] * shape[1] :].transpose(1, 2).view(len(hidden), hidden.shape[-1], *shape)


def encode_views(
    tower: PreTrainedModel, patches: torch.Tensor, shape: tuple[int, int], feature_layer: int
) -> torch.Tensor:
    """Encode views of one shape, given as patches, with a tower of any origin; it goes through `adapt_tower`.

    Args:
        tower: a `CLIPVisionModel` or `SiglipVisionModel`.
        patches: (N, H·W, 3·p·p), each patch channel by channel, rows of pixels within.
        shape: (rows, columns) of patches, H and W.
        feature_layer: index of the hidden state, as in `adapt_tower`.

    Returns:
        (N, D, H, W), the class token dropped.
    """
    pixels = patches_to_pixels(patches, shape, tower.config.patch_size)
    return encode_pixels(adapt_tower(tower, feature_layer), pixels, feature_layer)
