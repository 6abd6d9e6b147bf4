"""Attention of the HiWin projector's queries within their windows, level by level.

Shapes: G query grid, K levels, S query sets, L = ph·pw bins of a window at one level.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.hiwin import pooled_keys_and_values
from ..model.windows import bin_shape
from .view import encode_view, hiwin_projector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@dataclass(frozen=True)
class WindowAttention:
    """Attention weights of a view's queries, averaged over heads.

    Attributes:
        levels: levels of the pyramid.
        weights: (S, G, G, K, ph, pw) attention weights; they sum to 1 over the last three axes.
    """

    levels: list[int]
    weights: np.ndarray

    def shares(self) -> np.ndarray:
        """Return (K, G, G) each window's attention share of every level, averaged over the query sets."""
        return self.weights.mean(axis=0).sum(axis=(-2, -1)).transpose(2, 0, 1)

    def maps(self) -> np.ndarray:
        """Return (K, G·ph, G·pw) weights of the bins in view order, averaged over the query sets."""
        mean = self.weights.mean(axis=0).transpose(2, 0, 3, 1, 4)  # K, G, ph, G, pw
        levels, rows, bin_rows, columns, bin_columns = mean.shape
        return mean.reshape(levels, rows * bin_rows, columns * bin_columns)


@torch.no_grad()
def window_attention(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    image: Any,
    view: int = -1,
    max_slices: int | None = None,
) -> WindowAttention:
    """Return the projector's attention on one view of an image; see `encode_view` for the arguments.

    Raises:
        ValueError: the model's projector uses no pyramid, or its levels differ in bins.
    """
    projector = hiwin_projector(model)
    if projector.bin_grid == "pyramid":
        raise ValueError("the windows of bin_grid 'pyramid' have other bins at each level, and are not drawn")
    encoded = encode_view(model, processor, image, view, max_slices)
    keys, _ = pooled_keys_and_values(projector, encoded.features, encoded.pixels)  # 1, G², K·L, E
    queries = projector.ln_q(projector.queries) + projector.positions  # S, G², E
    attention = projector.attention
    q = attention.heads(attention.q_proj(queries.transpose(0, 1)))  # G², h, S, d
    k = attention.heads(attention.k_proj(keys))[0]  # G², h, K·L, d
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).float().softmax(dim=-1).mean(dim=1)  # G², S, K·L
    grid, bins = projector.query_grid, bin_shape(encoded.features.shape[-2:], projector.bin_grid)
    by_set = weights.transpose(0, 1).reshape(-1, grid, grid, len(projector.levels), *bins)
    return WindowAttention(projector.levels, by_set.cpu().numpy())


def window_figure(attention: WindowAttention) -> "Figure":
    """Draw a column per level: attention share per window above, weight per bin below."""
    from matplotlib.figure import Figure

    shares, maps = attention.shares(), attention.maps()
    figure = Figure(figsize=(2.8 * len(shares) + 0.6, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots(2, len(shares), squeeze=False)
    for column, (level, share, map_) in enumerate(zip(attention.levels, shares, maps, strict=True)):
        shown = axes[0, column].imshow(share, vmin=0, vmax=1, cmap="viridis")
        axes[0, column].set_title(f"{level}x: {share.mean():.0%} of the attention")
        weights = axes[1, column].imshow(map_, vmin=0, vmax=float(maps.max()), cmap="magma")
    figure.colorbar(shown, ax=axes[0], label="share per window")
    figure.colorbar(weights, ax=axes[1], label="weight per bin")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure
