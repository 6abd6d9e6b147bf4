"""The frozen tower of stage 0: maps of whole images, and of an image's tiles."""

import json
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoConfig, CLIPVisionModel, PreTrainedModel, SiglipVisionModel

from ...loading import BUILT_IN, load
from ...model.vision_tower import encode_views

TOWERS = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}


def is_own_model(name: str) -> bool:
    """Return True if a name is a model of this package: a built-in one, or a folder of its format."""
    config_file = Path(name).expanduser() / "config.json"
    return name in BUILT_IN or (
        config_file.is_file() and json.loads(config_file.read_text()).get("model_type") == "llava_uhd"
    )


def load_tower(name: str) -> PreTrainedModel:
    """A frozen tower in float32: of a model of this package, or CLIP's or SigLIP's own.

    Raises:
        ValueError: it is none of them.
    """
    if is_own_model(name):
        tower = load(name, "cpu", "float32")[0].model.vision_tower
    else:
        config = AutoConfig.from_pretrained(name)
        model_type = getattr(config, "vision_config", config).model_type
        if model_type not in TOWERS:
            raise ValueError(f"vision_tower: {name} is a {model_type}, neither of {', '.join(TOWERS)}")
        tower = TOWERS[model_type].from_pretrained(name, dtype=torch.float32)
    return tower.eval().requires_grad_(False)


class Features:
    """Feature maps of images.

    Args:
        tower: see `load_tower`.
        layer: hidden state that is taken.
    """

    def __init__(self, tower: PreTrainedModel, layer: int):
        self.tower, self.layer = tower, layer
        self.patch_size: int = tower.config.patch_size
        self.channels: int = tower.config.hidden_size

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W), sides multiples of the patch, to (N, C, h, w)."""
        p = self.patch_size
        shape = (pixels.shape[2] // p, pixels.shape[3] // p)
        patches = F.unfold(pixels, p, stride=p).transpose(1, 2)  # N, h·w, 3·p·p
        return encode_views(self.tower, patches, shape, self.layer)

    def of_tiles(self, pixels: torch.Tensor, tiles: int) -> torch.Tensor:
        """Maps of tiles x tiles parts of images, each encoded by itself, joined: (N, C, h, w)."""
        rows = [
            torch.cat([self(tile) for tile in row.chunk(tiles, dim=3)], dim=3) for row in pixels.chunk(tiles, dim=2)
        ]
        return torch.cat(rows, dim=2)
