"""The two projectors beside HiWin, with its interface: (N, C, H, W) features and their pixels to (N, T, E) tokens."""

import torch
from torch import nn
from torch.nn import functional as F

from .attention import HEAD_CHANNELS, WindowAttention, resize_positions, sincos_position_embedding
from .configuration_llava_uhd import LlavaUhdProjectorConfig
from .hiwin import EPS
from .windows import bin_shape, pool_windows


class SpatiallyConstrainedResampler(nn.Module):
    """The resampler of LLaVA-UHD v1: one query per window of the encoder's own map; the pixels are not looked at."""

    def __init__(self, config: LlavaUhdProjectorConfig, in_channels: int, channels: int):
        super().__init__()
        self.query_grid = config.query_grid
        self.box_dtype = config.box_dtype
        same = in_channels == channels
        self.kv_proj: nn.Module = nn.Identity() if same else nn.Linear(in_channels, channels, bias=False)
        positions = sincos_position_embedding(channels, self.query_grid)
        # In the type the model is built in: a parameter of another type would keep it when weights are loaded.
        self.positions = nn.Parameter(positions.to(torch.get_default_dtype()), requires_grad=False)
        self.queries = nn.Parameter(torch.empty(1, self.query_grid**2, channels))
        self.attention = WindowAttention(channels, config.num_attention_heads or channels // HEAD_CHANNELS)
        self.ln_q = nn.LayerNorm(channels, EPS)
        self.ln_kv = nn.LayerNorm(channels, EPS)
        self.ln_post = nn.LayerNorm(channels, EPS)
        self.proj = nn.Parameter(torch.empty(channels, channels))

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        bins = bin_shape(features.shape[-2:])
        value = self.ln_kv(self.kv_proj(features.permute(0, 2, 3, 1)))  # N, H, W, E
        place = resize_positions(self.positions, value.shape[1:3])
        pooled, pooled_place = (
            pool_windows(maps.float(), self.query_grid, bins, self.box_dtype).to(value.dtype)
            for maps in (value, place)
        )
        queries = self.ln_q(self.queries) + self.positions  # 1, G², E
        attended = self.attention(queries.transpose(0, 1), pooled + pooled_place, pooled)  # N, G², 1, E
        return self.ln_post(attended.squeeze(2)) @ self.proj


class UnshuffleMLP(nn.Module):
    """The plain baseline: squares of patches joined by channel, then two linear layers.

    Maps whose sides the factor does not divide are completed by repeating their last row and column.
    """

    def __init__(self, config: LlavaUhdProjectorConfig, in_channels: int, channels: int):
        super().__init__()
        self.factor = config.unshuffle_factor
        self.linear_1 = nn.Linear(in_channels * self.factor**2, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[-2:]
        padded = F.pad(features, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        squares = F.pixel_unshuffle(padded, self.factor).flatten(2).transpose(1, 2)  # N, T, C·factor²
        return self.linear_2(F.gelu(self.linear_1(squares)))
