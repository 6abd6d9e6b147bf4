"""The interface of every projector, and those beside HiWin: the v1 resampler, the perceiver and the MLP.

A projector turns the feature map of a view and its pixels into image tokens of the language model's width. Views of
different shapes come as lists, one entry per shape.

Shapes: N views of one shape, C channels of the encoder, H W feature map, E hidden size of the language model, T tokens
of a view, G query grid, L bins of a window.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, overload

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .attention import HEAD_SIZE, WindowAttention, resize_positions, sincos_position_embedding
from .configuration_llava_uhd import LlavaUhdProjectorConfig
from .pyramid import Pyramid, build_pyramid
from .windows import bin_shape, pool_windows

LAYER_NORM_EPS = 1e-6


class Projector(nn.Module, ABC):
    """Views in, image tokens out.

    A subclass implements `project` and `reset_parameters`, which its constructor calls: every projector is usable by
    itself. It overrides `project_groups` if groups of views share work.
    """

    @overload
    def forward(self, features: torch.Tensor, pixels: torch.Tensor | None) -> torch.Tensor: ...

    @overload
    def forward(
        self, features: Sequence[torch.Tensor], pixels: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]: ...

    def forward(
        self,
        features: torch.Tensor | Sequence[torch.Tensor],
        pixels: torch.Tensor | Sequence[torch.Tensor | None] | None,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Project views of one shape, or a list of groups of views, each group of a shape of its own.

        Args:
            features: (N, C, H, W) encoder features, or a list of them.
            pixels: (N, 3, ., .) normalized pixels of the same views, at any resolution, or a list of them. None will
                do where no up-sampler is guided by them.

        Returns:
            (N, T, E) image tokens, or a list of them.

        Raises:
            ValueError: the groups of features and pixels do not match, or the up-sampler needs pixels.
        """
        if isinstance(features, torch.Tensor):
            if isinstance(pixels, Sequence):
                raise ValueError(f"features of one group of views were given, and pixels of {len(pixels)} groups")
            return self._project_some([(features, pixels)])[0]
        if not isinstance(pixels, Sequence):
            raise ValueError(f"features of {len(features)} groups of views were given, and pixels of one")
        return self._project_some(list(zip(features, pixels, strict=True)))

    def _project_some(self, groups: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> list[torch.Tensor]:
        """Project groups; one without views has none of the tokens of a blank view."""
        filled = [
            (_or_blank(features), _or_blank(_without_pixels(features) if pixels is None else pixels))
            for features, pixels in groups
        ]
        tokens = self.project_groups(filled) if filled else []
        return [projected[: len(features)] for projected, (features, _) in zip(tokens, groups, strict=True)]

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set what is trained: all weights but the fixed positions."""
        super().requires_grad_(requires_grad)
        positions = getattr(self, "positions", None)
        if isinstance(positions, torch.Tensor):
            positions.requires_grad_(False)
        return self

    def project_groups(self, groups: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """Project groups of views, each (features, pixels) of one shape; a list of (N, T, E)."""
        return [self.project(features, pixels) for features, pixels in groups]

    @abstractmethod
    def project(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Project views of one shape: (N, C, H, W) and their pixels to (N, T, E)."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw new weights, as the reference implementation does."""


def _without_pixels(features: torch.Tensor) -> torch.Tensor:
    """Return pixels of no size, (N, 3, 0, 0), for the views of features."""
    return features.new_zeros(len(features), 3, 0, 0)


def _or_blank(views: torch.Tensor) -> torch.Tensor:
    """Return views, (N, ...), or one of zeros where there are none, (1, ...)."""
    return views if len(views) else views.new_zeros(1, *views.shape[1:])


@torch.no_grad()
def reset_query_projector(
    projector: nn.Module,
    queries: nn.Parameter,
    positions: nn.Parameter,
    proj: nn.Parameter,
    attention: WindowAttention,
) -> None:
    """Initialize what HiWin and the v1 resampler share, as the reference implementation does.

    Linear layers are truncated normal with std 0.02 and zero bias, queries likewise, `proj` is normal with std
    E^-0.5. The in-projection of the attention is one parameter in the reference, not a linear layer, and keeps
    `nn.MultiheadAttention`'s own initialization: see `WindowAttention.reset_in_projection`.

    Args:
        projector: module whose linear layers and norms are initialized.
        queries: (S, G², E), learned queries.
        positions: (G², E), fixed position embedding of the query grid.
        proj: (E, E), last projection.
        attention: module whose in-projection is initialized.
    """
    hidden_size, query_grid = len(proj), round(len(positions) ** 0.5)
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            init.ones_(layer.weight)
            init.zeros_(layer.bias)
    attention.reset_in_projection()
    init.trunc_normal_(queries, std=0.02)
    init.normal_(proj, std=hidden_size**-0.5)
    init.copy_(positions, sincos_position_embedding(hidden_size, query_grid))


def fixed_positions(hidden_size: int, query_grid: int) -> nn.Parameter:
    """Sine-cosine positions of the query grid, (G², E), frozen and in the dtype the model is built in.

    A parameter of another dtype would keep it when weights are loaded.
    """
    positions = sincos_position_embedding(hidden_size, query_grid)
    return nn.Parameter(positions.to(torch.get_default_dtype()), requires_grad=False)


def input_pyramid(config: LlavaUhdProjectorConfig, in_channels: int) -> Pyramid | None:
    """Build what makes the one level that a projector without a pyramid of its own takes; None for the encoder's map.

    Args:
        config: `input_level` and `upsampler` are read.
        in_channels: channels of the encoder, C.
    """
    if config.input_level == 1:
        return None
    return build_pyramid(config.upsampler, in_channels, [1, config.input_level])


def input_map(upsampler: Pyramid | None, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return the map that is projected: (N, C, h, w) to (N, C, H, W), the encoder's own without an up-sampler."""
    return features if upsampler is None else upsampler(features, pixels)[-1]


class SpatiallyConstrainedResampler(Projector):
    """The resampler of LLaVA-UHD v1 (arXiv 2403.11703, section 3.2): one query per window of the encoder's map.

    Args:
        config: settings of the projector; `levels`, `bin_embedding` and `unshuffle_factor` have no effect.
        in_channels: channels of the encoder, C.
        hidden_size: width of the language model, E.
    """

    def __init__(self, config: LlavaUhdProjectorConfig, in_channels: int, hidden_size: int):
        super().__init__()
        self.query_grid = config.query_grid
        self.box_dtype = config.box_dtype
        self.aligned = config.aligned_windows
        self.bin_grid = config.bin_grid
        self.input_level = config.input_level
        self.upsampler = input_pyramid(config, in_channels)
        same = in_channels == hidden_size
        self.kv_proj: nn.Module = nn.Identity() if same else nn.Linear(in_channels, hidden_size, bias=False)
        self.positions = fixed_positions(hidden_size, self.query_grid)
        self.queries = nn.Parameter(torch.empty(1, self.query_grid**2, hidden_size))
        self.attention = WindowAttention(hidden_size, config.num_attention_heads or hidden_size // HEAD_SIZE)
        self.ln_q = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.ln_kv = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.ln_post = nn.LayerNorm(hidden_size, LAYER_NORM_EPS)
        self.proj = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See `reset_query_projector`."""
        reset_query_projector(self, self.queries, self.positions, self.proj, self.attention)
        if self.upsampler is not None:
            self.upsampler.reset_parameters()

    def project(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """See `Projector.project`; the pixels guide the up-sampler, where there is one."""
        bins = bin_shape(features.shape[-2:], self.bin_grid, self.input_level)
        feature_map = input_map(self.upsampler, features, pixels)  # N, C, H, W
        value = self.ln_kv(self.kv_proj(feature_map.permute(0, 2, 3, 1)))  # N, H, W, E
        position = resize_positions(self.positions, value.shape[1:3])  # 1, H, W, E
        pooled_value, pooled_position = (  # N or 1, G², L, E
            pool_windows(maps.float(), self.query_grid, bins, self.box_dtype, self.aligned).to(value.dtype)
            for maps in (value, position)
        )
        queries = self.ln_q(self.queries) + self.positions  # 1, G², E
        attended = self.attention(queries.transpose(0, 1), pooled_value + pooled_position, pooled_value)
        tokens: torch.Tensor = self.ln_post(attended.squeeze(2))
        return tokens @ self.proj  # N, G², E


class UnshuffleMLP(Projector):
    """The plain baseline: squares of patches joined by channel (pixel unshuffle), then two linear layers.

    Maps whose sides the factor does not divide are completed by repeating their last row and column.

    Args:
        config: `unshuffle_factor`, `input_level` and `upsampler` are read.
        in_channels: channels of the encoder, C.
        hidden_size: width of the language model, E.
    """

    def __init__(self, config: LlavaUhdProjectorConfig, in_channels: int, hidden_size: int):
        super().__init__()
        self.factor = config.unshuffle_factor
        self.upsampler = input_pyramid(config, in_channels)
        self.linear_1 = nn.Linear(in_channels * self.factor**2, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw linear layers as LLaVA-1.5 does: PyTorch's own initialization."""
        for layer in (self.linear_1, self.linear_2):
            bound = layer.in_features**-0.5
            init.uniform_(layer.weight, -bound, bound)
            init.uniform_(layer.bias, -bound, bound)
        if self.upsampler is not None:
            self.upsampler.reset_parameters()

    def project(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """See `Projector.project`; the pixels guide the up-sampler, where there is one."""
        feature_map = input_map(self.upsampler, features, pixels)  # N, C, H, W
        height, width = feature_map.shape[-2:]
        padded = F.pad(feature_map, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        squares = F.pixel_unshuffle(padded, self.factor).flatten(2).transpose(1, 2)  # N, T, C·factor²
        tokens: torch.Tensor = self.linear_2(F.gelu(self.linear_1(squares)))
        return tokens
