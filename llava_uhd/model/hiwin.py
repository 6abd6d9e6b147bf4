"""The hierarchical-window (HiWin) projector of LLaVA-UHD v2 (arXiv 2412.13871, section 3.3).

A query stands for one window of the view. It attends to what lies in its window, pooled into a few bins from every
level of the feature pyramid: coarse meaning from 1x, fine strokes from 2x and 4x. Four sets of queries do so in
parallel and are joined by channel.

This file is the formula, step by step and in plain autograd. `hiwin_fused.py` computes the same tensor about ten times
cheaper and is used wherever the weights can be read; `HiWinProjector.project_groups` is the place of the choice.

Shapes: N views of one shape, C channels of the encoder, E hidden size of the language model, H W map of a level,
S query sets, G query grid, L bins of a window at one level, K keys of a window over all levels.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils import logging

from .attention import HEAD_SIZE, WindowAttention, resize_positions
from .configuration_llava_uhd import LlavaUhdProjectorConfig
from .folded_weights import FoldedWeightCache, reason_not_to_fuse
from .hiwin_fused import fused_hiwin_attention
from .level_projection import LevelProjection
from .projector import LAYER_NORM_EPS, Projector, fixed_positions, reset_query_projector
from .pyramid import build_pyramid
from .windows import bin_shape, pool_windows, resize_bins

logger = logging.get_logger(__name__)

NUM_QUERY_SETS = 4


class HiWinProjector(Projector):
    """(N, C, H, W) features and their pixels to (N, G², E) tokens.

    Weights folded for the fast path are cached between inference calls and belong to no checkpoint; see
    `FoldedWeightCache` for when they are folded anew.

    Args:
        config: settings of the projector.
        in_channels: channels of the encoder, C.
        hidden_size: width of the language model, E.
    """

    def __init__(self, config: LlavaUhdProjectorConfig, in_channels: int, hidden_size: int):
        super().__init__()
        self.levels: list[int] = config.levels
        self.query_grid = config.query_grid
        self.box_dtype = config.box_dtype
        self.aligned = config.aligned_windows
        self.bin_grid = config.bin_grid
        self.upsampler = build_pyramid(config.upsampler, in_channels, config.levels)
        self.projections = nn.ModuleDict(
            {f"{level}x": LevelProjection(in_channels, hidden_size, config.bin_embedding) for level in self.levels}
        )
        self.positions = fixed_positions(hidden_size, self.query_grid)
        self.queries = nn.Parameter(torch.empty(NUM_QUERY_SETS, self.query_grid**2, hidden_size))
        self.attention = WindowAttention(hidden_size, config.num_attention_heads or hidden_size // HEAD_SIZE)
        self.ln_q = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.ln_kv = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.ln_proj = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.ln_post = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.join = nn.Linear(NUM_QUERY_SETS * hidden_size, hidden_size)
        self.proj = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.folded_weights = FoldedWeightCache()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights as the reference implementation does; see also `LevelProjection`."""
        reset_query_projector(self, self.queries, self.positions, self.proj, self.attention)
        self.upsampler.reset_parameters()
        for projection in self.projections.values():
            assert isinstance(projection, LevelProjection)
            projection.reset_embeddings()

    def project_groups(self, groups: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """See `Projector.project_groups`. The groups share the folded weights, however many shapes there are."""
        reason = reason_not_to_fuse(self)
        if reason is None:
            attended = fused_hiwin_attention(self, groups)
        else:
            logger.info_once(f"HiWin is computed by its formula, not by the fused path: {reason}")
            attended = hiwin_attention(self, groups)
        tokens = self.join(self.ln_proj(attended).flatten(-2))  # views of all groups, G², E
        tokens = self.ln_post(tokens) @ self.proj
        return list(tokens.split([len(features) for features, _ in groups]))

    def project(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """See `Projector.project`."""
        return self.project_groups([(features, pixels)])[0]


def hiwin_attention(projector: HiWinProjector, groups: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention output of the query sets, by the formula.

    Args:
        projector: the module that holds the weights.
        groups: features (N, C, H, W) and pixels (N, 3, ., .) of each group of views.

    Returns:
        (views of all groups, G², S, E).
    """
    queries = (projector.ln_q(projector.queries) + projector.positions).transpose(0, 1)  # G², S, E
    return torch.cat([projector.attention(queries, *pooled_keys_and_values(projector, *group)) for group in groups])


def pooled_keys_and_values(
    projector: HiWinProjector, features: torch.Tensor, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pyramid, projection and norm of each level, window pooling: (N, C, H, W) to two of (N, G², K, E).

    Keys are level by level, the bins of a window row by row.
    """
    keys, values = [], []
    for level, feature_map in zip(projector.levels, projector.upsampler(features, pixels), strict=True):
        projected, embedding, bin_embedding = projector.projections[f"{level}x"](feature_map.permute(0, 2, 3, 1))
        bins = bin_shape(features.shape[-2:], projector.bin_grid, level)
        value = projector.ln_kv(projected)  # N, H, W, E
        key = value + resize_positions(projector.positions, value.shape[1:3]) + embedding
        pooled_key, pooled_value = pool(projector, key, bins), pool(projector, value, bins)  # N, G², L, E
        if bin_embedding is not None:
            pooled_key = pooled_key + resize_bins(bin_embedding, bins).to(pooled_key.dtype)
        keys.append(pooled_key)
        values.append(pooled_value)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def pool(projector: HiWinProjector, maps: torch.Tensor, bins: tuple[int, int]) -> torch.Tensor:
    """RoI-Align of every window, at least in float32: (N, H, W, E) to (N, G², L, E)."""
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    pooled = pool_windows(precise, projector.query_grid, bins, projector.box_dtype, projector.aligned)
    return pooled.to(maps.dtype)
