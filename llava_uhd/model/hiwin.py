"""The hierarchical-window (HiWin) projector of LLaVA-UHD v2 (arXiv 2412.13871, section 3.3).

A query stands for one window of the view. It attends to what lies in its window, pooled from every level of the
pyramid: coarse meaning from 1x, fine strokes from 2x and 4x. Four sets of queries do so side by side and are joined by
channel.

Shapes: N views, C channels of the encoder, E of the language model, G query grid, L bins of a window at one level.
"""

import torch
from torch import nn

from .attention import HEAD_CHANNELS, WindowAttention, resize_positions, sincos_position_embedding
from .configuration_llava_uhd import LlavaUhdProjectorConfig
from .pyramid import build_pyramid
from .windows import bin_shape, pool_windows

QUERY_SETS = 4
EPS = 1e-6


class LevelProjection(nn.Module):
    """Takes one level of the pyramid to the language model's width, and names it."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(in_channels, channels)
        self.embedding = nn.Parameter(torch.zeros(channels))


class HiWinProjector(nn.Module):
    """(N, C, H, W) features and their pixels to (N, G², E) tokens."""

    def __init__(self, config: LlavaUhdProjectorConfig, in_channels: int, channels: int):
        super().__init__()
        self.levels: list[int] = config.levels
        self.query_grid = config.query_grid
        self.box_dtype = config.box_dtype
        self.upsampler = build_pyramid(config.upsampler, in_channels, config.levels)
        self.projections = nn.ModuleDict(
            {f"{level}x": LevelProjection(in_channels, channels) for level in self.levels}
        )
        positions = sincos_position_embedding(channels, self.query_grid)
        # In the type the model is built in: a parameter of another type would keep it when weights are loaded.
        self.positions = nn.Parameter(positions.to(torch.get_default_dtype()), requires_grad=False)
        self.queries = nn.Parameter(torch.empty(QUERY_SETS, self.query_grid**2, channels))
        self.attention = WindowAttention(channels, config.num_attention_heads or channels // HEAD_CHANNELS)
        self.ln_q = nn.LayerNorm(channels, EPS)
        self.ln_kv = nn.LayerNorm(channels, EPS)
        self.ln_proj = nn.LayerNorm(channels, EPS)
        self.ln_post = nn.LayerNorm(channels, EPS)
        self.join = nn.Linear(QUERY_SETS * channels, channels)
        self.proj = nn.Parameter(torch.empty(channels, channels))

    def keys_and_values(self, features: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the queries see: (N, C, H, W) to two of (N, G², levels · L, E), level by level.

        Pooling is linear: pooling the value, the position and the level's embedding one by one and adding them pools
        the key, and the last two do not depend on the view.
        """
        bins = bin_shape(features.shape[-2:])
        keys, values = [], []
        for level, map_ in zip(self.levels, self.upsampler(features, pixels), strict=True):
            projection = self.projections[f"{level}x"]
            assert isinstance(projection, LevelProjection)
            value = self.ln_kv(projection.linear(map_.permute(0, 2, 3, 1)))  # N, H, W, E
            place = resize_positions(self.positions, value.shape[1:3]) + projection.embedding
            pooled = self.pool(value, bins)
            values.append(pooled)
            keys.append(pooled + self.pool(place.to(value.dtype), bins))
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def pool(self, maps: torch.Tensor, bins: tuple[int, int]) -> torch.Tensor:
        # RoI-Align is computed in float32 whatever the features' type, as published.
        return pool_windows(maps.float(), self.query_grid, bins, self.box_dtype).to(maps.dtype)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        keys, values = self.keys_and_values(features, pixels)
        queries = self.ln_q(self.queries) + self.positions  # S, G², E
        attended = self.attention(queries.transpose(0, 1), keys, values)  # N, G², S, E
        tokens = self.join(self.ln_proj(attended).flatten(-2))
        return self.ln_post(tokens) @ self.proj
