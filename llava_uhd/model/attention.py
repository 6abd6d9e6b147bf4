"""What both published projectors share: window attention, and the fixed position embedding of the query grid.

Shapes: N views, W windows, S query sets, L keys of a window, E channels of the language model, h heads of d channels.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

# Channels of a head where a config names no number of heads, as published.
HEAD_CHANNELS = 128


def sincos_position_embedding(channels: int, query_grid: int) -> torch.Tensor:
    """Sine-cosine embedding of a square grid: (query_grid², channels), in the default dtype.

    The first half of the channels tells the column, the second the row; each half is [sin, cos] of the index times
    10000^(-i / (channels / 4)).
    """
    omega = 10000.0 ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    angles = torch.arange(query_grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # query_grid, channels / 2
    columns = axis[None, :, :].expand(query_grid, -1, -1)
    rows = axis[:, None, :].expand(-1, query_grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(query_grid**2, channels).to(torch.get_default_dtype())


def resize_positions(positions: torch.Tensor, map_shape: Sequence[int]) -> torch.Tensor:
    """Bicubic resize, in float32, of a square grid's embedding: (g², E) to (1, H, W, E)."""
    side = round(len(positions) ** 0.5)
    grid = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=tuple(map_shape), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).to(positions.dtype)


class WindowAttention(nn.Module):
    """Multi-head attention of each window's queries to that window's keys alone."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """(..., T, E) to (..., h, T, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Queries (W, S, E), the same for every view; keys and values (N, W, L, E); to (N, W, S, E).

        The S queries of a window do not see one another, so all sets share one pass over the keys.
        """
        q = self.heads(self.q_proj(queries)).expand(len(keys), -1, -1, -1, -1)  # N, W, h, S, d
        k, v = self.heads(self.k_proj(keys)), self.heads(self.v_proj(values))  # N, W, h, L, d
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(-3, -2).flatten(-2))
