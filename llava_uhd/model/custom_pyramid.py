"""Pyramid of a registered up-sampler: every level above 1x by the user's own module.

Shapes: N views, C channels of the encoder, h w the encoder's map, H W map of a level.
"""

import torch
from torch import nn
from transformers import initialization as init

from .upsampler_registry import upsampler_factory


class CustomPyramid(nn.Module):
    """Levels of a module `(features, pixels, size) -> map`; see `upsampler_registry`.

    Args:
        name: registered name of the up-sampler.
        channels: channels of the encoder, C.
        levels: levels of the pyramid, ascending.
    """

    def __init__(self, name: str, channels: int, levels: list[int]):
        super().__init__()
        self.name, self.channels, self.levels = name, channels, levels
        self.module = self._build().to(torch.get_default_device())
        # In no checkpoint, so that transformers calls `reset_parameters` after loading too, for buffers like it.
        self.register_buffer("not_saved", torch.zeros(1), persistent=False)

    def _build(self) -> nn.Module:
        """Call the factory on a CPU, so that it can read files even where a model is built without memory."""
        with torch.device("cpu"):
            module = upsampler_factory(self.name)(self.channels)
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"the factory of up-sampler {self.name!r} must return a torch module, got {type(module).__name__}"
            )
        return module

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Copy parameters and buffers from a new module of the factory, except those that a checkpoint has set."""
        fresh = self._build()
        for tensors, new in (
            (self.module.named_parameters(), dict(fresh.named_parameters())),
            (self.module.named_buffers(), dict(fresh.named_buffers())),
        ):
            for name, tensor in tensors:
                init.copy_(tensor, new[name])

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of the levels, ascending: (N, C, h, w), (N, 3, ., .) to a list of (N, C, s·h, s·w).

        Raises:
            ValueError: the module returned a map of another shape.
        """
        maps = []
        for level in self.levels:
            size = (level * features.shape[2], level * features.shape[3])
            map_ = features if level == 1 else self.module(features, pixels, size)
            expected = (len(features), self.channels, *size)
            if tuple(map_.shape) != expected:
                raise ValueError(f"up-sampler {self.name!r} returned {tuple(map_.shape)}, expected {expected}")
            maps.append(map_.to(features.dtype))
        return maps
