"""The perceiver resampler: queries that attend to the whole map, without windows.

The row "perceiver resampler" of the tables of both papers, and the projector of many models before v1. It differs from
the v1 resampler in one thing: every query sees every position.

Shapes: N views of one shape, C channels of the encoder, H W feature map, E hidden size of the language model, G query
grid.
"""

import torch

from .attention import resize_positions
from .projector import SpatiallyConstrainedResampler, input_map


class PerceiverResampler(SpatiallyConstrainedResampler):
    """(N, C, h, w) features to (N, G², E) tokens by one cross-attention over all positions.

    The weights have the names and shapes of the v1 resampler; the options of windows have no effect.

    Args:
        config: settings of the projector.
        in_channels: channels of the encoder, C.
        hidden_size: hidden size of the language model, E.
    """

    def project(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """See `Projector.project`; the pixels guide the up-sampler, where there is one."""
        feature_map = input_map(self.upsampler, features, pixels)  # N, C, H, W
        values = self.ln_kv(self.kv_proj(feature_map.permute(0, 2, 3, 1)))  # N, H, W, E
        keys = values + resize_positions(self.positions, values.shape[1:3])
        queries = self.ln_q(self.queries) + self.positions  # 1, G², E
        # The whole map is one window: N, 1, H·W, E.
        attended = self.attention(queries, keys.flatten(1, 2)[:, None], values.flatten(1, 2)[:, None])  # N, 1, G², E
        tokens: torch.Tensor = self.ln_post(attended.squeeze(1))
        return tokens @ self.proj
