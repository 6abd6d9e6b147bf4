"""Pyramid of deconvolutions: each 2x step a learned transposed convolution, without the pixels.

The row "deconvolution" of the tables of LLaVA-UHD v2. It begins as nearest-neighbor up-sampling and learns with the
projector, in either stage of training.

Shapes: N views, C channels of the encoder, h w the encoder's map.
"""

import torch
from torch import nn
from transformers import initialization as init


class DeconvolutionPyramid(nn.Module):
    """A transposed convolution of 2 x 2 with stride 2 per step.

    Args:
        channels: channels of the encoder, C.
        levels: levels of the pyramid, ascending.
    """

    def __init__(self, channels: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        steps = max(levels).bit_length() - 1
        self.steps = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in range(steps))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin as nearest-neighbor up-sampling: the identity of channels at each of the four positions."""
        for step in self.steps:
            assert isinstance(step, nn.ConvTranspose2d) and step.bias is not None
            identity = torch.eye(step.in_channels, device=step.weight.device, dtype=step.weight.dtype)
            init.copy_(step.weight, identity[:, :, None, None].expand_as(step.weight))
            init.zeros_(step.bias)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of the levels, ascending; the pixels are ignored.

        Args:
            features: (N, C, h, w).
            pixels: (N, 3, ., .).
        """
        maps, current = {1: features}, features
        for number, step in enumerate(self.steps, start=1):
            current = step(current)
            maps[2**number] = current
        return [maps[level] for level in self.levels]
