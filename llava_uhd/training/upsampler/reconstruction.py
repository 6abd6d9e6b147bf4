"""Modules for training the up-sampler alone: downsampler to the low resolution, and its uncertainty.

Shapes: N images, C channels, H W of the up-sampled map, h w of the tower's, k side of a pooled square.
"""

import torch
from torch import nn
from torch.nn import functional as F

DROPPED = 0.2
LEAST_SCALE = 1e-4
BLUR_SPAN, BLUR_SIGMA = 5, 1.0


def gaussian_blur(x: torch.Tensor) -> torch.Tensor:
    """5 x 5 Gaussian of standard deviation 1 on (N, C, H, W), borders reflected."""
    axis = torch.arange(BLUR_SPAN, device=x.device, dtype=x.dtype) - BLUR_SPAN // 2
    weights = torch.exp(-(axis**2) / (2 * BLUR_SIGMA**2))
    weights = weights / weights.sum()
    channels, pad = x.shape[1], BLUR_SPAN // 2
    x = F.pad(x, (pad,) * 4, mode="reflect")
    x = F.conv2d(x, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


class AttentionDownsampler(nn.Module):
    """Pools each k x k square of a blurred map by learned weights: how a tower's patch sums up its pixels.

    The weights are a softmax over the square of what the features say, times and plus a learned mask. At a fifth of
    the output positions, drawn anew each time, the features have no say.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.attention = nn.Sequential(nn.Dropout(DROPPED), nn.Linear(channels, 1))
        self.weight = nn.Parameter(torch.ones(kernel, kernel) + 0.01 * torch.randn(kernel, kernel))
        self.bias = nn.Parameter(0.01 * torch.randn(kernel, kernel))

    def forward(self, x: torch.Tensor, shape: tuple[int, int], drawn: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) to (N, C, h, w).

        Args:
            x: up-sampled maps.
            shape: (h, w).
            drawn: (N, h, w, 1) uniform numbers that decide where the features have a say; drawn if not given.
        """
        k = self.kernel
        stride_y, stride_x = ((side - k) // max(to - 1, 1) or 1 for side, to in zip(x.shape[2:], shape, strict=True))
        squares = gaussian_blur(x).unfold(2, k, stride_y).unfold(3, k, stride_x)  # N, C, h, w, k, k
        squares = squares[:, :, : shape[0], : shape[1]].permute(0, 2, 3, 4, 5, 1).flatten(3, 4)  # N, h, w, k², C
        logits = self.attention(squares).squeeze(-1)  # N, h, w, k²
        if drawn is None:
            drawn = torch.rand(*logits.shape[:3], 1, device=x.device)
        logits = logits * (drawn > DROPPED) * self.weight.flatten() + self.bias.flatten()
        return torch.einsum("nhwk,nhwkc->nchw", logits.softmax(dim=-1), squares)


class ScaleNet(nn.Module):
    """Uncertainty of a reconstruction at every position: (N, C, h, w) to (N, 1, h, w), positive."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)
        with torch.no_grad():
            for parameter in self.conv.parameters():
                parameter.mul_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(self.conv(x) + 0.1).clamp(min=LEAST_SCALE)
