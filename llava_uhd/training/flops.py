"""What a sample costs: floating-point operations of each part, forward and in training. A model, not a measurement.

A product of (a, b) and (b, c) counts 2abc. Norms, activations and interpolation count nothing.
"""

from collections.abc import Collection
from dataclasses import dataclass

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.pyramid import KEY_DIM, TAPS
from ..model.vision_tower import num_layers_used
from ..model.windows import bin_shape

QUERY_SETS = {"hiwin": 4, "resampler": 1}


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


def tower_flops(config: LlavaUhdConfig, shape: tuple[int, int]) -> float:
    """Of one view of (rows, columns) patches, through the layers that are run."""
    vision = config.vision_config
    width, tokens = vision.hidden_size, shape[0] * shape[1] + 1
    layer = 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * tokens**2 * width
    layers = num_layers_used(vision.num_hidden_layers, config.vision_feature_layer)
    return layers * layer + 2 * tokens * 3 * vision.patch_size**2 * width


def upsampler_flops(config: LlavaUhdConfig, shape: tuple[int, int]) -> float:
    """Of the JBU levels and the correction of their maps."""
    projector, channels = config.projector, config.vision_config.hidden_size
    highest = max(projector.levels)
    if projector.type != "hiwin" or projector.upsampler != "jbu" or highest == 1:
        return 0.0
    total, level, patches = 0.0, 2, shape[0] * shape[1]
    while level <= highest:
        kernel = 3 * KEY_DIM + KEY_DIM**2 + TAPS * KEY_DIM + (TAPS + 3) * TAPS + TAPS**2
        total += 2 * patches * level**2 * (kernel + TAPS * channels)
        if highest == 8 or level == highest:
            total += 2 * patches * level**2 * channels**2
        level *= 2
    return total


def projector_flops(config: LlavaUhdConfig, shape: tuple[int, int]) -> float:
    """Of one view, its up-sampler apart."""
    projector, channels, width = config.projector, config.vision_config.hidden_size, config.text_config.hidden_size
    patches = shape[0] * shape[1]
    if projector.type == "mlp":
        tokens = patches / projector.unshuffle_factor**2
        return 2 * tokens * (channels * projector.unshuffle_factor**2 * width + width**2)
    levels = projector.levels if projector.type == "hiwin" else [1]
    (bin_rows, bin_columns), grid = bin_shape(shape), projector.query_grid
    total = 0.0
    for level in levels:
        rows, columns = level * shape[0], level * shape[1]
        total += 2 * rows * columns * channels * width
        total += 2 * grid * bin_rows * columns * width * (rows + grid * bin_columns)
    windows, sets = grid**2, QUERY_SETS[projector.type]
    keys = len(levels) * bin_rows * bin_columns
    total += 2 * windows * keys * 2 * width**2 + 4 * windows * sets * keys * width  # keys and values, attention
    total += 2 * windows * sets * width**2 * (2 if sets > 1 else 1)  # output of each set, and their joining
    return total + 2 * windows * width**2


def language_flops(config: LlavaUhdConfig, length: float, learned: float) -> float:
    """Of a sequence, `learned` of whose tokens need logits. Attention counts the half that is looked at."""
    text = config.text_config
    width, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or width // heads
    key_values = getattr(text, "num_key_value_heads", None) or heads
    weights = 2 * width * heads * head_dim + 2 * width * key_values * head_dim + 3 * width * text.intermediate_size
    attention = 2 * length * heads * head_dim  # 4, halved
    return text.num_hidden_layers * length * (2 * weights + attention) + 2 * learned * width * text.vocab_size


def sample_flops(
    config: LlavaUhdConfig, shapes: Collection[tuple[int, int]], length: float, learned: float
) -> PartFlops:
    """Forward operations of a sample.

    Args:
        config: of the model.
        shapes: (rows, columns) of patches of each of its views.
        length: of its sequence, image tokens among it.
        learned: tokens of it that are learned.
    """
    return PartFlops(
        vision_tower=sum(tower_flops(config, shape) for shape in shapes),
        upsampler=sum(upsampler_flops(config, shape) for shape in shapes),
        projector=sum(projector_flops(config, shape) for shape in shapes),
        language_model=language_flops(config, length, learned),
    )


def training_flops(forward: PartFlops, trained: Collection[str], checkpointing: bool = False) -> float:
    """Operations of a training step on a sample.

    The backward pass costs as much as the forward pass for the gradients of a part's weights, and as much again for
    those of its inputs, which are wanted if it, or a part before it, is trained.

    Args:
        forward: of the sample.
        trained: parts with gradients, by the names of `parts`; adapters count as the language model's input alone.
        checkpointing: count the second forward pass of tower and language model too: work, but no progress.
    """
    names = ("vision_tower", "upsampler", "projector", "language_model")
    marks = {"upsampler": "upsampler_fixup"}
    total, reached = 0.0, False
    for name in names:
        cost = getattr(forward, name)
        learns = name in trained or marks.get(name) in trained
        reached = reached or learns or (name == "language_model" and "adapters" in trained)
        total += cost * (1 + learns + reached)
        if checkpointing and reached and name in ("vision_tower", "language_model"):
            total += cost
    return total


def standard_shape(config: LlavaUhdConfig) -> tuple[int, int]:
    """Patches of a square view."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side
