"""Folded weights of a HiWin projector: whether it has any, how they are read from its layers, and their cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .attention import WindowAttention
from .level_projection import LevelProjection
from .pyramid import FIXUP_SCALE, BilinearPyramid, JBUPyramid, MapFixup
from .weight_folding import ChannelFixup, FoldedWeights, LevelWeights, fold_weights, window_queries
from .windows import BinGrid

# Layers whose weights are all there is to them; a subclass or wrapper may compute something else.
FOLDABLE_LAYERS = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.Dropout2d)


# Hooks of a module, which a call of its `forward` would run.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class _OptimizerSteps:
    """Number of steps of all optimizers: the fused kernels of some change weights and leave their version as it is."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.count += 1


_steps = _OptimizerSteps()

# Memory address, version, dtype and device of a parameter, by which a change is noticed.
ParameterState = tuple[int, int, torch.dtype, torch.device]


class HiWinWeights(Protocol):
    """Attributes of a `HiWinProjector` that the fused path reads."""

    levels: list[int]
    query_grid: int
    aligned: bool
    bin_grid: BinGrid
    training: bool
    projections: nn.ModuleDict
    positions: nn.Parameter
    queries: nn.Parameter
    attention: WindowAttention
    ln_q: nn.LayerNorm
    ln_kv: nn.LayerNorm
    folded_weights: "FoldedWeightCache"

    @property
    def box_dtype(self) -> str: ...

    @property
    def upsampler(self) -> nn.Module: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


def level_fixups(
    projector: HiWinWeights, keep: Sequence[torch.Tensor | None] | None = None
) -> list[list[ChannelFixup | None]]:
    """The 1x1 fix-ups on the way to each level, with this step's dropout factors of each 2x step where given."""
    if not isinstance(projector.upsampler, JBUPyramid):
        return [[] for _ in projector.levels]
    fixups: list[ChannelFixup | None] = []
    for step, (_, fixup) in enumerate(projector.upsampler.steps()):
        if fixup is None:
            fixups.append(None)
            continue
        convolution = fixup.convolution
        assert convolution.bias is not None
        weight, bias = convolution.weight.float().flatten(1), convolution.bias.float()
        fixups.append(ChannelFixup(weight, bias, FIXUP_SCALE, None if keep is None else keep[step]))
    return [fixups[: level.bit_length() - 1] for level in projector.levels]


def fold_projector(projector: HiWinWeights, with_gradient: bool) -> FoldedWeights:
    """Fold the projector's weights; see `weight_folding`."""
    levels = [
        LevelWeights(projection.linear, projection.embedding, projection.bin_embedding, fixups)
        for projection, fixups in zip(level_projections(projector), level_fixups(projector), strict=True)
    ]
    queries = window_queries(projector.queries, projector.positions, projector.ln_q, projector.attention)
    return fold_weights(levels, projector.ln_kv, queries, projector.positions, projector.attention, with_gradient)


def level_projections(projector: HiWinWeights) -> list[LevelProjection]:
    """The projections that are not wrapped in another module; of every level, if the projector can be fused."""
    return [module for module in projector.projections.values() if isinstance(module, LevelProjection)]


def reason_not_to_fuse(projector: HiWinWeights) -> str | None:
    """Return why the weights cannot be folded, or None if they can be read and are all there is to their layers."""
    for name, module in projector.named_modules():
        if name and any(getattr(module, hooks) for hooks in HOOKS):
            return f"{name} has a hook"
    if projector.queries.dtype == torch.float64:
        return "the weights are float64, and the fused path computes in float32"
    upsampler, attention = projector.upsampler, projector.attention
    layers: list[nn.Module] = [projector.ln_q, projector.ln_kv, attention.q_proj, attention.k_proj, attention.v_proj]
    weights = [projector.queries, projector.positions]
    projections = level_projections(projector)
    if len(projections) < len(projector.levels):
        return "the projection of a level is wrapped"
    for projection in projections:
        layers.append(projection.linear)
        weights += [p for p in (projection.embedding, projection.bin_embedding) if p is not None]
    if isinstance(upsampler, JBUPyramid):
        fixups = [fixup for _, fixup in upsampler.steps() if fixup is not None]
        if not all(type(fixup) is MapFixup for fixup in fixups):
            return "a fix-up of the up-sampler is wrapped"
        layers += [layer for fixup in fixups for layer in fixup]
    elif not isinstance(upsampler, BilinearPyramid):
        return f"up-sampler {type(upsampler).__name__} is not known to be linear"
    for layer in layers:
        if type(layer) not in FOLDABLE_LAYERS:
            return f"a layer is a {type(layer).__name__}"
        weights += layer.parameters()
    for weight in weights:
        # Quantized or sharded, offloaded, or empty for now (partitioned).
        if type(weight) not in (nn.Parameter, torch.Tensor) or weight.is_meta or weight.numel() == 0:
            return f"a weight is a {type(weight).__name__} on {weight.device} with {weight.numel()} elements"
    return None


class FoldedWeightCache(nn.Module):
    """Folded weights of a projector for inference, kept from one call to the next.

    They are folded anew when a weight has changed in place or was replaced, or an optimizer made a step, and dropped
    by whatever moves, converts or switches the mode of the projector, of which this is a submodule without weights.
    Only a change in place through `.data` goes unnoticed: call `eval()` after it. Copies and pickles start empty, and
    no checkpoint holds anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self._entry: tuple[tuple[torch.dtype, int, tuple[ParameterState, ...]], FoldedWeights] | None = None

    def get(self, projector: HiWinWeights, dtype: torch.dtype) -> FoldedWeights:
        """Return the folded weights with value matrices in `dtype`, from the last call if nothing has changed.

        A compiled graph takes them from the last call without looking whether a weight has changed: it is recompiled
        when they were dropped, as by `eval()`, and folds by itself where there are none.
        """
        if torch.compiler.is_compiling():
            if self._entry is not None and self._entry[0][0] == dtype:
                return self._entry[1]
            return fold_projector(projector, with_gradient=False).with_values(dtype)
        versions = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in projector.parameters()
        )
        # Steps of the optimizers of other modules change no frozen weight.
        steps = _steps.count if any(p.requires_grad for p in projector.parameters()) else 0
        key = (dtype, steps, versions)
        if self._entry is None or self._entry[0] != key:
            self._entry = None  # so that there are never two
            # Outside of inference mode: what is made inside it could not be used outside.
            with torch.inference_mode(False), torch.no_grad():
                self._entry = (key, fold_projector(projector, with_gradient=False).with_values(dtype))
        return self._entry[1]

    @property
    def is_empty(self) -> bool:
        """True if the next call folds the weights."""
        return self._entry is None

    @property
    def nbytes(self) -> int:
        """Memory of the folded weights, in bytes; 0 before the first inference call."""
        return 0 if self._entry is None else self._entry[1].nbytes

    def clear(self) -> None:
        """Drop the folded weights."""
        self._entry = None

    def train(self, mode: bool = True) -> "FoldedWeightCache":
        """Drop the folded weights: the mode of the projector was set."""
        self.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "FoldedWeightCache":
        self.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's has no types
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entry": None}
