"""Floating-point operations of a model, counted from its config.

The one count of bench, plan, training and experiments.

A product of (a, b) and (b, c) counts 2abc. Norms, activations and interpolation count nothing. The projector is
counted as it runs, by the fused path with folded weights; `reference_projector` counts the paper's formula as written.

Shapes: D hidden size of the tower, E of the language model, K = min(D + 1, E) of the folded basis, G query grid,
S = 4 query sets, L levels.
"""

from collections.abc import Collection
from dataclasses import dataclass

from .model.configuration_llava_uhd import LlavaUhdConfig
from .model.hiwin import NUM_QUERY_SETS
from .model.pyramid import KEY_DIM
from .model.upsample_2x import TAPS
from .model.vision_tower import num_layers_used
from .model.windows import bin_shape

# Source positions that reach a tile of 8 x 8 outputs.
TILE_REACH = 100


@dataclass(frozen=True)
class ProjectorFlops:
    """Forward operations of one view's pyramid and projector."""

    jbu_kernels: float
    up_sampling: float
    corrections: float
    projections: float
    pooling: float
    attention: float
    output: float

    @property
    def upsampler(self) -> float:
        """Operations of the pyramid."""
        return self.jbu_kernels + self.up_sampling + self.corrections

    @property
    def projector(self) -> float:
        """Operations of the projector, its pyramid apart."""
        return self.projections + self.pooling + self.attention + self.output

    @property
    def total(self) -> float:
        return self.upsampler + self.projector


@dataclass(frozen=True)
class PartFlops:
    """Forward operations of one sample, by part."""

    vision_tower: float
    upsampler: float
    projector: float
    language_model: float

    @property
    def total(self) -> float:
        return self.vision_tower + self.upsampler + self.projector + self.language_model


def tower_flops(config: LlavaUhdConfig, shape: tuple[int, int], layers: int | None = None) -> float:
    """Count the vision tower on one view.

    Args:
        config: config of the model.
        shape: (rows, columns) of the view in patches.
        layers: number of layers; None for those up to the features that are used.
    """
    vision = config.vision_config
    width, patches = vision.hidden_size, shape[0] * shape[1]
    tokens = patches + (vision.model_type != "siglip_vision_model")  # a class token, except in SigLIP
    layer = 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * tokens**2 * width
    if layers is None:
        layers = num_layers_used(vision.num_hidden_layers, config.vision_feature_layer)
    operations: float = layers * layer + 2 * patches * 3 * vision.patch_size**2 * width
    return operations


def upsampled_levels(config: LlavaUhdConfig) -> list[int]:
    """Return the levels that joint bilateral up-sampling makes, used or not."""
    projector = config.projector
    if projector.upsampler != "jbu":
        return []
    highest = max(projector.levels) if projector.type == "hiwin" else projector.input_level
    return [level for level in (2, 4, 8) if level <= highest]


def _kernels(config: LlavaUhdConfig, patches: int) -> float:
    per_position = 2 * (3 * KEY_DIM + KEY_DIM**2 + TAPS * KEY_DIM + (TAPS + 3) * TAPS + TAPS**2)
    return per_position * patches * sum(level**2 for level in upsampled_levels(config))


def _pooling(config: LlavaUhdConfig, shape: tuple[int, int], channels: int) -> float:
    """Count the pooling along the width, then along the height."""
    g, (h, w), total = config.projector.query_grid, shape, 0.0
    for level in config.projector.levels:
        rows, columns = bin_shape(shape, config.projector.bin_grid, level)
        total += 2 * channels * (level * h * g * columns * level * w + g * rows * level * h * g * columns)
    return total


def _keys(config: LlavaUhdConfig, shape: tuple[int, int]) -> int:
    """Count the pooled keys of all windows and levels."""
    bins = (bin_shape(shape, config.projector.bin_grid, level) for level in config.projector.levels)
    query_grid: int = config.projector.query_grid
    return query_grid**2 * sum(rows * columns for rows, columns in bins)


def _sizes(config: LlavaUhdConfig) -> tuple[int, int, int, int]:
    """Return D, E, K and the number of windows."""
    d, e = config.vision_config.hidden_size, config.text_config.hidden_size
    return d, e, min(d + 1, e), config.projector.query_grid**2


def reference_projector(config: LlavaUhdConfig, shape: tuple[int, int]) -> ProjectorFlops:
    """Count the HiWin projector as published on one view of (rows, columns) patches."""
    d, e, _, windows = _sizes(config)
    patches, levels = shape[0] * shape[1], config.projector.levels
    keys = _keys(config, shape)
    made = upsampled_levels(config)
    corrected = made if 8 in made else made[-1:]
    return ProjectorFlops(
        jbu_kernels=_kernels(config, patches),
        up_sampling=sum(2 * TAPS * level**2 * patches * d for level in made),
        corrections=sum(2 * level**2 * patches * d**2 for level in corrected),
        projections=sum(2 * level**2 * patches * d * e for level in levels),
        pooling=2 * _pooling(config, shape, e),
        attention=NUM_QUERY_SETS * (2 * windows * e**2 + 4 * keys * e**2 + 4 * keys * e),
        output=2 * windows * e**2 * (2 * NUM_QUERY_SETS + 1),
    )


def fused_projector(config: LlavaUhdConfig, shape: tuple[int, int]) -> ProjectorFlops:
    """Count the HiWin projector as it runs, with folded weights, on one view of (rows, columns) patches."""
    d, e, k, windows = _sizes(config)
    patches, levels = shape[0] * shape[1], config.projector.levels
    heads = config.projector.num_attention_heads or e // 128
    keys = _keys(config, shape)
    return ProjectorFlops(
        jbu_kernels=_kernels(config, patches),
        up_sampling=sum(
            2 * TILE_REACH * made**2 * patches * k * sum(level >= made for level in levels)
            for made in upsampled_levels(config)
        ),
        corrections=0,
        projections=2 * patches * d * k * len(levels),
        pooling=_pooling(config, shape, k),
        attention=NUM_QUERY_SETS * (heads * keys * (4 * (k + 1) + 2 * windows) + 2 * windows * len(levels) * k * e),
        output=2 * windows * e**2 * (2 * NUM_QUERY_SETS + 1),
    )


def weight_folding(config: LlavaUhdConfig) -> float:
    """Count the folding of the weights: once per model, or once per forward pass in training."""
    if config.projector.type != "hiwin":
        return 0.0
    _, e, k, windows = _sizes(config)
    per_level = 4 * e**2 * k + 2 * NUM_QUERY_SETS * windows * e * k + 4 * e * k**2
    levels = len(config.projector.levels)
    return levels * per_level + 2 * NUM_QUERY_SETS * windows * e**2 + 2 * windows * e * (e + windows * 4)


def projector_flops(config: LlavaUhdConfig, shape: tuple[int, int]) -> ProjectorFlops:
    """Count the projector of any type, as it runs, on one view of (rows, columns) patches."""
    projector = config.projector
    if projector.type == "hiwin":
        return fused_projector(config, shape)
    d, e, _, windows = _sizes(config)
    level, made = projector.input_level, upsampled_levels(config)
    patches = level**2 * shape[0] * shape[1]
    kernels = _kernels(config, shape[0] * shape[1])
    up_sampling = sum(2 * TAPS * step**2 * shape[0] * shape[1] * d for step in made)
    corrections = sum(2 * step**2 * shape[0] * shape[1] * d**2 for step in (made if 8 in made else made[-1:]))
    if projector.type == "mlp":
        tokens = patches / projector.unshuffle_factor**2
        output = 2 * tokens * (d * projector.unshuffle_factor**2 * e + e**2)
        return ProjectorFlops(kernels, up_sampling, corrections, 0, 0, 0, output)
    if projector.type == "perceiver":
        # Every query looks at every position, and keys and values are projected once.
        pooling, attention = 0, 4 * patches * e**2 + 4 * windows * patches * e
    else:
        # v1: the query of a window looks at the bins of its window.
        rows, columns = bin_shape(shape, projector.bin_grid, level)
        keys, g = windows * rows * columns, projector.query_grid
        pooling = 2 * e * g * columns * level * shape[0] * (level * shape[1] + g * rows)
        attention = 4 * keys * e**2 + 4 * keys * e
    return ProjectorFlops(
        jbu_kernels=kernels,
        up_sampling=up_sampling,
        corrections=corrections,
        projections=2 * patches * d * e,
        pooling=pooling,
        attention=2 * windows * e**2 + attention,
        output=2 * 2 * windows * e**2,
    )


def vision_flops(config: LlavaUhdConfig, shapes: Collection[tuple[int, int]], reference: bool = False) -> float:
    """Count tower, pyramid and projector on views, from pixels to image tokens.

    Args:
        config: config of the model.
        shapes: (rows, columns) of each view in patches.
        reference: count the reference formulation, which runs every layer of the tower.
    """
    layers = config.vision_config.num_hidden_layers if reference else None
    projector = reference_projector if reference else projector_flops
    return sum(tower_flops(config, shape, layers) + projector(config, shape).total for shape in shapes)


def language_flops(config: LlavaUhdConfig, length: float, learned: float, past: float = 0) -> float:
    """Count the language model on a sequence. Attention counts the half that a causal model looks at.

    Args:
        config: config of the model.
        length: tokens of the sequence.
        learned: tokens whose logits are computed.
        past: tokens before the sequence, in a cache.
    """
    text = config.text_config
    width, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or width // heads
    key_values = getattr(text, "num_key_value_heads", None) or heads
    weights = 2 * width * heads * head_dim + 2 * width * key_values * head_dim + 3 * width * text.intermediate_size
    attention = 2 * (length + 2 * past) * heads * head_dim  # 4, halved for the sequence itself
    layers: float = text.num_hidden_layers * length * (2 * weights + attention)
    head: float = 2 * learned * width * text.vocab_size
    return layers + head


def sample_flops(
    config: LlavaUhdConfig, shapes: Collection[tuple[int, int]], length: float, learned: float
) -> PartFlops:
    """Count the forward pass of a sample.

    Args:
        config: config of the model.
        shapes: (rows, columns) of each of its views, in patches.
        length: tokens of its sequence, image tokens among them.
        learned: target tokens.
    """
    projectors = [projector_flops(config, shape) for shape in shapes]
    return PartFlops(
        vision_tower=sum(tower_flops(config, shape) for shape in shapes),
        upsampler=sum(counts.upsampler for counts in projectors),
        projector=sum(counts.projector for counts in projectors),
        language_model=language_flops(config, length, learned),
    )


def training_flops(forward: PartFlops, trained: Collection[str], checkpointing: bool = False) -> float:
    """Count a training step on a sample.

    The backward pass costs as much as the forward pass for the gradients of a part's weights, and as much again for
    those of its inputs, which are needed if it, or a part before it, is trained.

    Args:
        forward: forward pass of the sample.
        trained: parts with gradients, by the names of `training.parts`; adapters count as the language model's input.
        checkpointing: count the second forward pass of tower and language model too: work, but no progress.
    """
    names = ("vision_tower", "upsampler", "projector", "language_model")
    frozen_by = {"upsampler": "upsampler_fixup"}
    total, reached = 0.0, False
    for name in names:
        cost = getattr(forward, name)
        learns = name in trained or frozen_by.get(name) in trained
        reached = reached or learns or (name == "language_model" and "adapters" in trained)
        total += cost * (1 + learns + reached)
        if checkpointing and reached and name in ("vision_tower", "language_model"):
            total += cost
    return total


def folding_in_training(config: LlavaUhdConfig, trained: Collection[str]) -> float:
    """Count the folding of the weights in one forward and backward pass, whatever the number of samples."""
    learns = not {"projector", "positions", "upsampler_fixup"}.isdisjoint(trained)
    return weight_folding(config) * (3 if learns else 0)


def projector_training_step(config: LlavaUhdConfig, shape: tuple[int, int], views: int, reference: bool) -> float:
    """Count forward and backward pass of the projector as they run, tower and up-sampler frozen, with recomputation.

    A product with a learned matrix costs twice its forward again for both gradients, once where the other factor needs
    none.
    """
    if reference:
        c = reference_projector(config, shape)
        return views * (c.upsampler + 2 * c.projections + 2 * c.pooling + 3 * c.attention + 3 * c.output)
    c = fused_projector(config, shape)
    # The source goes through the up-sampler beside the basis: twice the channels forward and again, once backward.
    return 3 * weight_folding(config) + views * (
        c.jbu_kernels + 5 * c.up_sampling + 2 * c.projections + 4 * c.pooling + 4 * c.attention + 3 * c.output
    )


def standard_shape(config: LlavaUhdConfig) -> tuple[int, int]:
    """Return (rows, columns) of a square view in patches."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side
