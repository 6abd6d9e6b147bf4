"""The terms of stage 0.

Shapes: N images, C channels, h w of the tower's map, P pixels drawn, D random directions.
"""

import torch
from torch.nn import functional as F

# Of the kernels of the conditional random field: position with color, and position alone.
COLOR_WEIGHT, SMOOTH_WEIGHT = 10.0, 3.0
POSITION_SPREAD, COLOR_SPREAD, SMOOTH_SPREAD = 0.1, 0.15, 0.005


def draw_projection(images: int, channels: int, directions: int, device: torch.device) -> torch.Tensor:
    """(N, C, D) random directions of unit length."""
    return F.normalize(torch.randn(images, channels, directions, device=device), dim=1)


def project(x: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
    """(N, C, h, w) onto (N, C, D): (N, D, h, w); unchanged without a projection."""
    return x if projection is None else torch.einsum("nchw,ncd->ndhw", x, projection)


def reconstruction_loss(
    rebuilt: torch.Tensor, features: torch.Tensor, scales: torch.Tensor, projection: torch.Tensor | None
) -> torch.Tensor:
    """Mean of error² / 2s² + ln s over positions and directions: a Gaussian whose width s is predicted.

    Args:
        rebuilt: (N, C, h, w), up-sampled and pooled down again.
        features: (N, C, h, w), of the tower.
        scales: (N, 1, h, w).
        projection: directions onto which both are projected.
    """
    error = project(rebuilt, projection) - project(features, projection)
    return (error**2 / (2 * scales**2) + scales.log()).mean()


def crf_loss(guidance: torch.Tensor, features: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Pixels that are near and alike should have like features: mean over all pairs of the drawn pixels.

    Args:
        guidance: (N, 3, H, W), pixels.
        features: (N, C, H, W).
        positions: (2, P), rows and columns.
    """
    rows, columns = positions
    height, width = guidance.shape[2:]
    position = torch.stack([rows / height, columns / width])  # 2, P
    color, feature = guidance[:, :, rows, columns], features[:, :, rows, columns]  # N, ., P

    def distance(x: torch.Tensor) -> torch.Tensor:
        return (x[..., :, None] - x[..., None, :]).square().sum(dim=-3)  # ..., P, P

    near = distance(position)
    alike = torch.exp(-near / (2 * POSITION_SPREAD) - distance(color) / (2 * COLOR_SPREAD))
    kernel = COLOR_WEIGHT * alike + SMOOTH_WEIGHT * torch.exp(-near / (2 * SMOOTH_SPREAD))
    # |a - b|² = |a|² + |b|² - 2ab: features have many channels, and a difference for each pair would be large.
    length = feature.square().sum(dim=1)
    apart = length[:, :, None] + length[:, None, :] - 2 * feature.transpose(1, 2) @ feature
    return (kernel * apart).mean()


def draw_places(size: tuple[int, int], count: int, device: torch.device) -> torch.Tensor:
    """(2, P) rows and columns of random pixels."""
    return torch.stack([torch.randint(side, (count,), device=device) for side in size])


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """Squared differences of neighbors, per number of the map: (N, C, H, W) to a number."""
    vertical = (x[:, :, 1:] - x[:, :, :-1]).square().sum()
    horizontal = (x[..., 1:] - x[..., :-1]).square().sum()
    return (vertical + horizontal) / x.numel()
