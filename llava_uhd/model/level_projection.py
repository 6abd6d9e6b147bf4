"""Projection of one level of the pyramid to the language model's width.

Shapes: C channels of the encoder, E hidden size of the language model.
"""

import torch
from torch import nn
from transformers import initialization as init

from .windows import BIN_GRID


class LevelProjection(nn.Module):
    """A linear layer, and the embeddings that name the level and its bins.

    Attributes:
        embedding: (E,), added to every key of the level.
        bin_embedding: (BIN_GRID², E), added to the keys by their place in the window; None if not configured.
    """

    def __init__(self, in_channels: int, hidden_size: int, bin_embedding: bool):
        super().__init__()
        self.linear = nn.Linear(in_channels, hidden_size)
        self.embedding = nn.Parameter(torch.zeros(hidden_size))
        self.bin_embedding = nn.Parameter(torch.empty(BIN_GRID**2, hidden_size)) if bin_embedding else None

    def reset_embeddings(self) -> None:
        """Draw the embeddings: zeros for the level as in the reference implementation, std 1 for the bins."""
        init.zeros_(self.embedding)
        if self.bin_embedding is not None:
            init.normal_(self.bin_embedding, std=1.0)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Project (..., C) to (..., E). Embeddings are returned too: offloading brings them in with the call."""
        return self.linear(feature_map), self.embedding, self.bin_embedding
