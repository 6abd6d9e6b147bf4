"""Operations, counted from the shapes: a multiplication and an addition are two.

Matrix products alone are counted; what is done once per model (folding) is not part of a view's cost.

Shapes: as in `Sizes`; D channels of the tower, E of the language model, K = min(D + 1, E) of the folded basis, G query
grid, S = 4 query sets, L bins of a window at one level.
"""

from dataclasses import dataclass

from ..model.hiwin import NUM_QUERY_SETS
from ..model.windows import bin_shape
from .sizes import Sizes

JBU_CHANNELS = 32
TAPS = 49
# Source positions that reach a tile of 8 x 8 outputs.
TILE_REACH = 100


@dataclass(frozen=True)
class Counts:
    """Operations of one view's pyramid and projector, by part."""

    jbu_kernels: float
    up_sampling: float
    corrections: float
    projections: float
    pooling: float
    attention: float
    output: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def _kernels(sizes: Sizes, positions: dict[int, int]) -> float:
    per_position = 2 * (3 * JBU_CHANNELS + JBU_CHANNELS**2 + TAPS * JBU_CHANNELS + (TAPS + 3) * TAPS + TAPS**2)
    return per_position * sum(positions[level] for level in doublings(sizes))


def doublings(sizes: Sizes) -> list[int]:
    """The levels that joint bilateral up-sampling makes, used or not."""
    if sizes.upsampler != "jbu":
        return []
    return [level for level in (2, 4, 8) if level <= max(sizes.levels)]


def _pooling(sizes: Sizes, shape: tuple[int, int], channels: int) -> float:
    """Along the width, then along the height."""
    rows, columns = bin_shape(shape)
    g, (h, w) = sizes.query_grid, shape
    return sum(
        2 * channels * (level * h * g * columns * level * w + g * rows * level * h * g * columns)
        for level in sizes.levels
    )


def _output(sizes: Sizes) -> float:
    """Output projection of every set, their join, the last projection."""
    return 2 * sizes.query_grid**2 * sizes.hidden**2 * (2 * NUM_QUERY_SETS + 1)


def plain_projector(sizes: Sizes, shape: tuple[int, int]) -> Counts:
    """The published formulation, one view of (rows, columns) patches."""
    d, e, windows = sizes.vision_hidden, sizes.hidden, sizes.query_grid**2
    positions = {level: level**2 * shape[0] * shape[1] for level in (1, 2, 4, 8)}
    rows, columns = bin_shape(shape)
    keys = windows * rows * columns * len(sizes.levels)
    made = doublings(sizes)
    corrected = made if 8 in made else made[-1:]
    return Counts(
        jbu_kernels=_kernels(sizes, positions),
        up_sampling=sum(2 * TAPS * positions[level] * d for level in made),
        corrections=sum(2 * positions[level] * d**2 for level in corrected),
        projections=sum(2 * positions[level] * d * e for level in sizes.levels),
        pooling=2 * _pooling(sizes, shape, e),
        attention=NUM_QUERY_SETS * (2 * windows * e**2 + 4 * keys * e**2 + 4 * keys * e),
        output=_output(sizes),
    )


def folded_projector(sizes: Sizes, shape: tuple[int, int]) -> Counts:
    """This package's, one view, the weights folded."""
    e, windows, k = sizes.hidden, sizes.query_grid**2, min(sizes.vision_hidden + 1, sizes.hidden)
    positions = {level: level**2 * shape[0] * shape[1] for level in (1, 2, 4, 8)}
    heads = sizes.heads or e // 128
    rows, columns = bin_shape(shape)
    keys = windows * rows * columns * len(sizes.levels)
    return Counts(
        jbu_kernels=_kernels(sizes, positions),
        up_sampling=sum(
            2 * TILE_REACH * positions[made] * k * sum(level >= made for level in sizes.levels)
            for made in doublings(sizes)
        ),
        corrections=0,
        projections=2 * positions[1] * sizes.vision_hidden * k * len(sizes.levels),
        pooling=_pooling(sizes, shape, k),
        attention=NUM_QUERY_SETS
        * (heads * keys * (4 * (k + 1) + 2 * windows) + 2 * windows * len(sizes.levels) * k * e),
        output=_output(sizes),
    )


def folding(sizes: Sizes) -> float:
    """What folding costs: once per model, or once per training step (forward)."""
    d, e, windows = sizes.vision_hidden, sizes.hidden, sizes.query_grid**2
    k = min(d + 1, e)
    per_level = 4 * e**2 * k + 2 * NUM_QUERY_SETS * windows * e * k + 4 * e * k**2
    return len(sizes.levels) * per_level + 2 * NUM_QUERY_SETS * windows * e**2 + 2 * windows * e * (e + windows * 4)


def training_step(sizes: Sizes, shape: tuple[int, int], views: int, plain: bool) -> float:
    """Forward and backward, the tower and the up-sampler frozen.

    A product with a learnt matrix costs twice its forward again for both gradients, once where the other factor needs
    none. What is computed again in the backward pass is counted.
    """
    if plain:
        c = plain_projector(sizes, shape)
        frozen = c.jbu_kernels + c.up_sampling + c.corrections
        return views * (frozen + 2 * c.projections + 2 * c.pooling + 3 * c.attention + 3 * c.output)
    c = folded_projector(sizes, shape)
    # The source goes through the up-sampler beside the basis: twice the channels forward and again, once backward.
    ups = 5 * c.up_sampling
    return 3 * folding(sizes) + views * (
        c.jbu_kernels + ups + 2 * c.projections + 4 * c.pooling + 4 * c.attention + 3 * c.output
    )


def encoder(sizes: Sizes, shape: tuple[int, int], layers: int) -> float:
    """The tower's layers over one view."""
    d, patches = sizes.vision_hidden, shape[0] * shape[1]
    tokens = patches + 1
    layer = 2 * tokens * (4 * d**2 + 2 * d * sizes.vision_intermediate) + 4 * tokens**2 * d
    return layers * layer + 2 * patches * 3 * 14**2 * d


def language_model(sizes: Sizes, tokens: int, past: int = 0) -> float:
    """The language model over `tokens` tokens after `past` others, the head on the last alone."""
    e = sizes.hidden
    layer = 2 * tokens * (4 * e**2 + 3 * e * sizes.text_intermediate) + 4 * tokens * (past + tokens) * e
    return sizes.text_layers * layer + 2 * e * sizes.vocabulary
