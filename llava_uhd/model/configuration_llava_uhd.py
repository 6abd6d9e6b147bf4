"""Configuration of LLaVA-UHD: a vision tower, a projector of its feature pyramid, a language model.

The projector's settings live in a nested config, because they travel as one: which levels of the pyramid are
pooled, how they are upsampled, by which projector.
"""

from difflib import get_close_matches
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .slicing import MAX_SLICES
from .upsampler_registry import check_upsampler
from .validation import (
    LARGEST,
    QUERY_GRID,
    TOKEN_ID,
    UNSHUFFLE_FACTOR,
    check_divides,
    check_dtype,
    check_int,
    check_keys,
    check_letter_height,
    check_misspelled,
    check_padding,
    check_sizes,
    check_slice_grid,
    describe,
    raise_value_errors,
)

# Hidden size of a head of the projector where its config names no number of heads, as published.
HEAD_SIZE = 128
VISION_TOWERS = ("clip_vision_model", "siglip_vision_model")
LEVELS = (1, 2, 4, 8)
# Auto class to module and class, beside the config in a folder with remote code.
AUTO_MAP = {
    "AutoConfig": "configuration_llava_uhd.LlavaUhdConfig",
    "AutoModel": "modeling_llava_uhd.LlavaUhdModel",
    "AutoModelForImageTextToText": "modeling_llava_uhd.LlavaUhdForConditionalGeneration",
}
# CLIP ViT-L/14-336, the tower of every original checkpoint.
CLIP_LARGE_336: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


@raise_value_errors
@strict
class LlavaUhdProjectorConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # `__init_subclass__` has no types
    """Settings of the projector, which turns the features of a view into image tokens.

    Attributes:
        type: `hiwin`, the hierarchical-window projector of v2; `resampler`, the spatially constrained resampler
            of v1; `perceiver`, the same without windows: every query attends to the whole map; `mlp`, a
            pixel-unshuffle and two linear layers, the plain baseline.
        levels: levels of the pyramid that `hiwin` attends to, as factors of the encoder's map: ascending, from 1, 2,
            4, 8, and 1 among them. The published masks 7, 5 and 3 are [1, 2, 4], [1, 4] and [1, 2].
        upsampler: up-sampler that makes the levels above 1: `jbu`, joint bilateral up-sampling guided by the pixels;
            `bilinear`; `deconvolution`, learned with the projector; `none`, for level 1 alone; or a registered name,
            see `upsampler_registry`.
        query_grid: a view gives `query_grid`² tokens, one window each (`hiwin` and `resampler`).
        num_attention_heads: None for one head per 128 channels of the language model, as published.
        box_dtype: precision of the window corners. `bfloat16` rounds them as the reference implementation does in
            bf16; the original checkpoints were trained with it.
        unshuffle_factor: side of the square of patches that `mlp` joins into one token.
        bin_embedding: add a learned vector per bin and level to the keys of `hiwin`, so that a query can tell the bins
            of its window apart. Off in the original checkpoints; learns to read several times faster.
        aligned_windows: pool windows with RoI-Align's `aligned=True`. The original checkpoints were trained without,
            half a feature pixel off.
        bin_grid: bins of a window: `selective`, by the aspect ratio of the map, as published; `fixed`, always 3 x 3;
            `pyramid`, as many per side as the level's factor.
        input_level: level of the pyramid that `resampler`, `perceiver` or `mlp` takes, made by `upsampler`; 1 for the
            encoder's own map, as published.
    """

    model_type = "llava_uhd_projector"
    base_config_key = "projector"

    type: Literal["hiwin", "resampler", "perceiver", "mlp"] = "hiwin"
    levels: Any = (1, 2, 4)
    upsampler: str = "jbu"
    query_grid: int = 12
    num_attention_heads: int | None = None
    box_dtype: Literal["float32", "bfloat16"] = "float32"
    unshuffle_factor: int = 2
    bin_embedding: bool = False
    aligned_windows: bool = False
    bin_grid: Literal["selective", "fixed", "pyramid"] = "selective"
    input_level: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        check_keys(self, kwargs)
        check_dtype("projector.dtype", self.dtype)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # transformers' has no types
        self.validate_values()

    def validate_values(self) -> None:
        """Check every value.

        Raises:
            ValueError: naming the value that is wrong.
        """
        levels = self.levels
        if not isinstance(levels, list | tuple) or any(type(level) is not int for level in levels):
            raise ValueError(f"levels must be a list of whole numbers, got {levels!r}")
        self.levels = levels = list(levels)
        if levels != sorted(set(levels)) or not {1} <= set(levels) <= set(LEVELS):
            raise ValueError(f"levels must ascend, be taken from {list(LEVELS)} and contain 1, got {levels}")
        check_upsampler(self.upsampler)
        if self.upsampler == "none" and levels != [1]:
            raise ValueError(f"upsampler 'none' makes no level above 1, but levels are {levels}")
        if self.input_level not in LEVELS:
            raise ValueError(f"input_level must be one of {list(LEVELS)}, got {self.input_level}")
        if self.input_level > 1 and self.type == "hiwin":
            raise ValueError(f"input_level is {self.input_level}, but projector hiwin takes its levels from levels")
        if self.input_level > 1 and self.upsampler == "none":
            raise ValueError(f"upsampler 'none' makes no level above 1, but input_level is {self.input_level}")
        if self.query_grid < 1 or self.unshuffle_factor < 1:
            raise ValueError(
                "query_grid and unshuffle_factor must be at least 1, "
                f"got {self.query_grid} and {self.unshuffle_factor}"
            )
        check_int("query_grid", self.query_grid, 1, QUERY_GRID)
        check_int("unshuffle_factor", self.unshuffle_factor, 1, UNSHUFFLE_FACTOR)
        if self.num_attention_heads is not None:
            check_int("projector.num_attention_heads", self.num_attention_heads, 1, LARGEST["num_attention_heads"])


@raise_value_errors
@strict
class LlavaUhdConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # `__init_subclass__` has no types
    """Configuration of a whole model. The defaults are the published v2: CLIP-ViT-L/14-336 and a Llama.

    The three nested configs are given as a config, a dict or None for the defaults, and are configs afterwards.

    Attributes:
        vision_config: a CLIP or SigLIP vision tower; its `image_size` is the side of a view, in pixels.
        text_config: any causal language model of transformers.
        projector: settings of the projector, a `LlavaUhdProjectorConfig`.
        layout: order of an image's tokens: `stitched` (December 2024: the slices' tokens joined into one raster, a
            separator after each of its rows, then the overview), `sequential` (April 2025: slice after slice) or
            `unseparated` (the same without separators).
        image_token_id: stands in `input_ids` where an image token will be. It may lie outside the vocabulary.
        slice_separator_id: ordinary token after a slice ("," in the Vicuna checkpoints).
        row_separator_id: ordinary token after the last slice, or the last raster column, of a row (newline there).
        max_slices: most slices an image is cut into, as in training.
        slice_grid: [columns, rows] that every image is cut into, whatever its size; None to choose them by the image,
            as published.
        pad_to_square: pad images to squares before slicing.
        pad_to_grid: pad images so that every slice is a square; see `plan_slices`.
        letter_height: resize images before slicing so that their letters are this many pixels high; None for every
            image at its own resolution, as published.
        vision_feature_layer: hidden state of the tower that is used, -2 as published.
    """

    model_type = "llava_uhd"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "projector": LlavaUhdProjectorConfig}

    vision_config: Any = None
    text_config: Any = None
    projector: Any = None
    layout: Literal["stitched", "sequential", "unseparated"] = "stitched"
    image_token_id: int = 32000
    slice_separator_id: int = 29892
    row_separator_id: int = 13
    max_slices: int = 7
    slice_grid: Any = None
    pad_to_square: bool = False
    pad_to_grid: bool = False
    letter_height: int | None = None
    vision_feature_layer: int = -2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_keys(self, kwargs)
        check_dtype("dtype", self.dtype)
        vision = dict(CLIP_LARGE_336) if self.vision_config is None else self.vision_config
        self.vision_config = _sub_config("vision_config", vision, "clip_vision_model")
        text = {} if self.text_config is None else self.text_config
        self.text_config = _sub_config("text_config", text, "llama")
        if self.projector is None or isinstance(self.projector, dict):
            self.projector = LlavaUhdProjectorConfig(**(self.projector or {}))
        if not isinstance(self.projector, LlavaUhdProjectorConfig):
            raise ValueError(f"projector must be a config or a dict, got {type(self.projector).__name__}")
        if not self.tie_word_embeddings and self.text_config.tie_word_embeddings:
            self.tie_word_embeddings = True
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # transformers' has no types
        self.validate_values()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Return the config of a file's values, checked after the options of the call are in it."""
        # With `return_unused_kwargs` a pair, which transformers' type leaves out.
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.validate_values()
        # Trainers look here for the Auto class of a path. A folder without code of its own names this package's.
        config.auto_map = getattr(config, "auto_map", None) or dict(AUTO_MAP)
        return loaded

    def validate_values(self) -> None:
        """Check every value, those of the nested configs too, and those that must fit one another.

        Raises:
            ValueError: naming the value that is wrong, and what it must be.
        """
        vision, text, projector = self.vision_config, self.text_config, self.projector
        projector.validate_values()
        if vision.model_type not in VISION_TOWERS:
            accepted = " or ".join(VISION_TOWERS)
            raise ValueError(f"vision_config.model_type must be {accepted}, got {vision.model_type!r}")
        check_sizes("vision_config", vision)
        check_int("vision_config.patch_size", vision.patch_size, 1, vision.image_size)
        layers = vision.num_hidden_layers
        check_int("vision_feature_layer", self.vision_feature_layer, -layers - 1, layers)
        for key in ("hidden_size", "vocab_size"):
            if not isinstance(getattr(text, key, None), int):
                raise ValueError(f"text_config of type {text.model_type!r} has no {key}: it is no language model's")
        check_sizes("text_config", text)
        if (pad := getattr(text, "pad_token_id", None)) is not None:
            check_int("text_config.pad_token_id", pad, -text.vocab_size, text.vocab_size - 1)
        self._check_projector()
        if self.max_slices < 1:
            raise ValueError(f"max_slices must be at least 1, got {self.max_slices}")
        check_int("max_slices", self.max_slices, 1, MAX_SLICES)
        self.slice_grid = check_slice_grid(self.slice_grid, self.max_slices)
        check_padding(self.pad_to_square, self.pad_to_grid)
        check_letter_height(self.letter_height)
        check_int("image_token_id", self.image_token_id, 0, TOKEN_ID)
        for key in ("slice_separator_id", "row_separator_id"):
            check_int(f"{key} (a token of the vocabulary)", getattr(self, key), 0, text.vocab_size - 1)
            if getattr(self, key) == self.image_token_id:
                raise ValueError(f"{key} and image_token_id must differ, both are {self.image_token_id}")

    def _check_projector(self) -> None:
        """Check the projector's sizes against those of the tower and of the language model."""
        vision, hidden_size, projector = self.vision_config, self.text_config.hidden_size, self.projector
        if projector.type == "mlp":
            patches = projector.input_level * (vision.image_size // vision.patch_size)
            check_int("unshuffle_factor", projector.unshuffle_factor, 1, patches)
            return
        if projector.num_attention_heads is None:
            if hidden_size % HEAD_SIZE:
                raise ValueError(
                    f"text_config.hidden_size is {hidden_size}, no multiple of {HEAD_SIZE}, the hidden size of a head "
                    "of the projector: name projector.num_attention_heads"
                )
        else:
            heads = projector.num_attention_heads
            check_divides("projector.num_attention_heads", heads, "text_config.hidden_size", hidden_size)
        # Sine and cosine of the column and of the row.
        check_divides("the 4 parts of a position embedding", 4, "text_config.hidden_size", hidden_size)


def _sub_config(name: str, values: Any, default_type: str) -> PreTrainedConfig:
    """A nested config from one, or from a dict with its `model_type`."""
    if isinstance(values, PreTrainedConfig):
        return values
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be a config or a dict, got {type(values).__name__}")
    model_type = values.get("model_type", default_type)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING.keys()), n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name}.model_type {model_type!r} is unknown to transformers{hint}")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    check_misspelled(name, config_class, values)
    check_dtype(f"{name}.dtype", values.get("dtype", values.get("torch_dtype")))
    try:
        return config_class(**values)
    except Exception as error:  # transformers' configs meet wrong values with errors of any kind
        raise ValueError(f"{name}: {describe(error)}") from error


__all__ = ["LlavaUhdConfig", "LlavaUhdProjectorConfig"]
