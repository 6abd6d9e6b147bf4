"""The hierarchical-window (HiWin) projector of LLaVA-UHD v2 (arXiv 2412.13871, section 3.3).

A query stands for one window of the view. It attends to what lies in its window, pooled from every level of the
pyramid: coarse meaning from 1x, fine strokes from 2x and 4x. Four sets of queries do so side by side and are joined by
channel.

Up to the heads' outputs the projector works in the encoder's width, with weights folded as `folding` tells: once per
model for inference, once per step where gradients are needed. Where the weights cannot be read (adapters, quantised
or offloaded layers) the layers are called instead, position by position.

Shapes: N views, C channels of the encoder, E of the language model, G query grid, L bins of a window at one level.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .attention import HEAD_CHANNELS, WindowAttention, resize_positions, sincos_position_embedding
from .configuration_llava_uhd import LlavaUhdProjectorConfig
from .folding import Carried, Correction, Folded, carry, fold, window_queries
from .fused import attend, condense, geometry
from .pyramid import FIXUP_SCALE, JBUPyramid, MapFixup, build_pyramid
from .windows import bin_shape, pool_windows

QUERY_SETS = 4
EPS = 1e-6
READABLE = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.Dropout2d)


class LevelProjection(nn.Module):
    """Takes one level of the pyramid to the language model's width, and names it."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(in_channels, channels)
        self.embedding = nn.Parameter(torch.zeros(channels))

    def forward(self, map_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(..., C) to (..., E), and the level's embedding, (E,)."""
        return self.linear(map_), self.embedding


class HiWinProjector(nn.Module):
    """(N, C, H, W) features and their pixels to (N, G², E) tokens.

    Folded weights are kept from one inference call to the next and belong to no checkpoint. They are made anew when a
    weight has changed, and dropped by `train`, `eval`, and whatever moves or converts the module. Only a change in
    place through `.data` goes unnoticed: call `eval()` after it.
    """

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
        self._kept: tuple[tuple, Folded] | None = None

    def forward(
        self, features: torch.Tensor | Sequence[torch.Tensor], pixels: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor | list[torch.Tensor]:
        """Tokens of views of one shape, or, given lists, of several groups of views, each of a shape of its own.

        The groups share the folded weights: in a training step they are folded once, however many shapes there are.
        """
        if isinstance(features, torch.Tensor) and isinstance(pixels, torch.Tensor):
            groups = [(features, pixels)]
        else:
            groups = list(zip(features, pixels, strict=True))
        # In training also without gradients: so that reentrant checkpointing sees the same numbers twice.
        learns = (torch.is_grad_enabled() or self.training) and (
            any(of_group.requires_grad for of_group, _ in groups) or any(p.requires_grad for p in self.parameters())
        )
        if not self.can_fold():
            self._kept = None
            attended = torch.cat([self.attend_by_layers(*group) for group in groups])
        else:
            attended = self.attention.out_proj(self.attend(groups, learns))
        tokens = self.join(self.ln_proj(attended).flatten(-2))  # views of all groups, G², E
        tokens = self.ln_post(tokens) @ self.proj
        return tokens if isinstance(features, torch.Tensor) else list(tokens.split([len(f) for f, _ in groups]))

    # Left out of compiled graphs: each new shape of views would compile it anew, for matrix products as they are.
    @torch.compiler.disable
    def attend(self, groups: Sequence[tuple[torch.Tensor, torch.Tensor]], learns: bool) -> torch.Tensor:
        """What the heads bring home, with folded weights: features and pixels of each group to (ΣN, G², S, E)."""
        dtype = product_dtype(groups[0][0])
        with torch.autocast(groups[0][0].device.type, enabled=False):
            folded = self.fold(with_gradient=True) if learns else self.kept_fold(dtype)
        return torch.cat([self.attend_group(*group, folded, dtype, learns) for group in groups])

    def attend_group(
        self, features: torch.Tensor, pixels: torch.Tensor, folded: Folded, dtype: torch.dtype, learns: bool
    ) -> torch.Tensor:
        """(N, C, H, W) to (N, G², S, E)."""
        device, shape = features.device, (features.shape[2], features.shape[3])
        of_levels = geometry(shape, tuple(self.levels), self.query_grid, self.box_dtype, device)
        kernels: list[torch.Tensor] | None = None
        keep: list[torch.Tensor | None] = []
        if isinstance(self.upsampler, JBUPyramid):
            kernels, keep = self.upsampler.kernels(shape, pixels)
        with torch.autocast(device.type, enabled=False):
            x = features.float().flatten(2).transpose(1, 2)  # N, H·W, C
            if learns or any(of_map is not None for of_map in keep):
                carried = [
                    carry(x, corrections, level.root, with_source=learns)
                    for corrections, level in zip(self.corrections(keep), folded.levels, strict=True)
                ]
            else:
                carried = [Carried([x @ level.parts[0][0]], level.offsets) for level in folded.carried]
            windows = condense(
                carried, shape, self.levels, kernels, of_levels, self.query_grid, self.join.out_features, EPS
            )
            return attend(windows, folded, of_levels, dtype).to(features.dtype)

    def attend_by_layers(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """What the heads bring home and the output projection makes of it, each layer called: to (N, G², S, E)."""
        keys, values = self.keys_and_values(features, pixels)
        queries = self.ln_q(self.queries) + self.positions  # S, G², E
        return self.attention(queries.transpose(0, 1), keys, values)

    def corrections(self, keep: list[torch.Tensor | None] | None = None) -> list[list[Correction | None]]:
        """The 1x1 corrections on the way to each level, with this step's dropout of each doubling where given."""
        if not isinstance(self.upsampler, JBUPyramid):
            return [[] for _ in self.levels]
        of_stages: list[Correction | None] = []
        for stage, (_, fixup) in enumerate(self.upsampler.stages()):
            if fixup is None:
                of_stages.append(None)
                continue
            convolution = fixup.convolution
            assert convolution.bias is not None
            weight, bias = convolution.weight.float().flatten(1), convolution.bias.float()
            of_stages.append(Correction(weight, bias, FIXUP_SCALE, None if keep is None else keep[stage]))
        return [of_stages[: level.bit_length() - 1] for level in self.levels]

    def fold(self, with_gradient: bool) -> Folded:
        """The weights, folded: see `folding`."""
        projections = self.level_projections()
        queries = window_queries(self.queries, self.positions, self.ln_q, self.attention)
        return fold(
            [projection.linear for projection in projections],
            [projection.embedding for projection in projections],
            self.corrections(),
            self.ln_kv,
            queries,
            self.query_grid**2,
            self.positions,
            self.attention,
            with_gradient,
        )

    def kept_fold(self, dtype: torch.dtype) -> Folded:
        """The folded weights for inference, the value matrices in `dtype`; from the last call if nothing changed."""
        weights = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in self.parameters()
        )
        if self._kept is None or self._kept[0] != (dtype, weights):
            self._kept = None  # so that there are never two
            # Outside of inference mode: what is made inside it could not be used outside.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = ((dtype, weights), self.fold(with_gradient=False).with_values(dtype))
        return self._kept[1]

    @property
    def kept_bytes(self) -> int:
        """Memory that the folded weights take beside the weights, once there has been an inference call."""
        return 0 if self._kept is None else self._kept[1].nbytes

    def level_projections(self) -> list[LevelProjection]:
        projections = [self.projections[f"{level}x"] for level in self.levels]
        return [projection for projection in projections if isinstance(projection, LevelProjection)]

    def can_fold(self) -> bool:
        """Whether the weights that are folded can be read, and are all there is to their layers."""
        projections, attention = self.level_projections(), self.attention
        layers: list[nn.Module] = [self.ln_q, self.ln_kv, attention.q_proj, attention.k_proj, attention.v_proj]
        layers += [projection.linear for projection in projections]
        if isinstance(self.upsampler, JBUPyramid):
            fixups = [fixup for _, fixup in self.upsampler.stages() if fixup is not None]
            if not all(type(fixup) is MapFixup for fixup in fixups):
                return False
            layers += [layer for fixup in fixups for layer in fixup]
        weights = [p for layer in layers for p in layer.parameters()]
        weights += [self.queries, self.positions, *(projection.embedding for projection in projections)]
        if len(projections) < len(self.levels):
            return False
        # Elsewhere (offloaded), a tensor of another kind (quantised, sharded) or empty for now (partitioned).
        return all(type(layer) in READABLE for layer in layers) and all(
            type(p) in (nn.Parameter, torch.Tensor) and not p.is_meta and p.numel() > 0 for p in weights
        )

    def train(self, mode: bool = True) -> "HiWinProjector":
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "HiWinProjector":
        self._kept = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a pickle, works them out for itself.
        return {**self.__dict__, "_kept": None}

    def keys_and_values(self, features: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the queries see, layer by layer: (N, C, H, W) to two of (N, G², levels · L, E), level by level.

        Pooling is linear: pooling the value, the position and the level's embedding one by one and adding them pools
        the key, and the last two do not depend on the view.
        """
        bins = bin_shape(features.shape[-2:])
        keys, values = [], []
        for level, map_ in zip(self.levels, self.upsampler(features, pixels), strict=True):
            projected, embedding = self.projections[f"{level}x"](map_.permute(0, 2, 3, 1))
            value = self.ln_kv(projected)  # N, H, W, E
            place = resize_positions(self.positions, value.shape[1:3]) + embedding
            pooled = self.pool(value, bins)
            values.append(pooled)
            keys.append(pooled + self.pool(place.to(value.dtype), bins))
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def pool(self, maps: torch.Tensor, bins: tuple[int, int]) -> torch.Tensor:
        # RoI-Align is computed in float32 whatever the features' type, as published.
        return pool_windows(maps.float(), self.query_grid, bins, self.box_dtype).to(maps.dtype)


def product_dtype(features: torch.Tensor) -> torch.dtype:
    """The type in which the heads' values are computed: the features' own, float32 on a CPU.

    Few CPUs multiply half precision faster than float32; most only imitate it.
    """
    device = features.device.type
    if device == "cpu":
        return torch.float32
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
