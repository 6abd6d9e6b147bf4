"""Window attention and the fixed position embedding of the query grid, shared by HiWin and the v1 resampler.

Shapes: N views, W windows, S query sets, L keys of a window, E hidden size of the language model, h heads of d
channels, H W feature map, g side of the query grid.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

# Channels of a head where a config names no number of heads, as in the reference implementation.
HEAD_SIZE = 128


def sincos_position_embedding(hidden_size: int, query_grid: int) -> torch.Tensor:
    """Sine-cosine embedding of a square grid: (query_grid², hidden_size), in the default dtype.

    The first half of the channels encodes the column, the second the row; each half is [sin, cos] of the index times
    10000^(-i / (hidden_size / 4)).
    """
    omega = 10000.0 ** (-torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size / 4))
    angles = torch.arange(query_grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # query_grid, hidden_size / 2
    columns = axis[None, :, :].expand(query_grid, -1, -1)
    rows = axis[:, None, :].expand(-1, query_grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(query_grid**2, hidden_size).to(torch.get_default_dtype())


def resize_positions(positions: torch.Tensor, map_shape: Sequence[int]) -> torch.Tensor:
    """Resize a square grid's embedding bicubically, at least in float32: (g², E) to (1, H, W, E)."""
    side = round(len(positions) ** 0.5)
    precise = positions.to(torch.promote_types(positions.dtype, torch.float32))
    grid = precise.view(1, side, side, -1).permute(0, 3, 1, 2)  # 1, E, g, g
    grid = F.interpolate(grid, size=tuple(map_shape), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).to(positions.dtype)


class WindowAttention(nn.Module):
    """Multi-head attention of each window's queries to that window's keys alone."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(
                f"hidden size {hidden_size} cannot be split into {num_heads} attention heads; without "
                f"num_attention_heads in the projector's config a head has {HEAD_SIZE} channels"
            )
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    @torch.no_grad()
    def reset_in_projection(self) -> None:
        """Draw q, k and v as the one (3E, E) matrix that they are in `nn.MultiheadAttention`: Xavier uniform."""
        bound = (6 / (4 * self.q_proj.in_features)) ** 0.5
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            init.uniform_(layer.weight, -bound, bound)
            init.zeros_(layer.bias)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Split channels into heads: (..., T, E) to (..., h, T, d)."""
        return x.view(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads).transpose(-3, -2)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attend from queries (W, S, E), shared by all views, to keys and values (N, W, L, E); (N, W, S, E).

        The S queries of a window do not see one another, so all sets share one pass over the keys.
        """
        q = self.heads(self.q_proj(queries)).expand(len(keys), -1, -1, -1, -1)  # N, W, h, S, d
        k, v = self.heads(self.k_proj(keys)), self.heads(self.v_proj(values))  # N, W, h, L, d
        out = F.scaled_dot_product_attention(q, k, v)
        attended: torch.Tensor = self.out_proj(out.transpose(-3, -2).flatten(-2))
        return attended
