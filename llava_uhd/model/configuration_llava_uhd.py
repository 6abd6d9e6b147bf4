"""Configuration of LLaVA-UHD: a vision tower, a projector of its feature pyramid, a language model.

The projector's settings live in a nested config, because they travel as one: which levels of the pyramid are
condensed, how they are up-sampled, by which projector.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

LEVELS = (1, 2, 4, 8)
# CLIP ViT-L/14-336, the tower of every released checkpoint.
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


@strict
class LlavaUhdProjectorConfig(PreTrainedConfig):
    """How the features of one view become its image tokens.

    Attributes:
        type: `hiwin`, the hierarchical-window projector of v2; `resampler`, the spatially constrained resampler
            of v1; `mlp`, a pixel-unshuffle and two linear layers, the plain baseline.
        levels: levels of the pyramid that `hiwin` attends to, as factors of the encoder's map: ascending, from 1, 2,
            4, 8, and 1 among them. The published masks 7, 5 and 3 are [1, 2, 4], [1, 4] and [1, 2].
        upsampler: what makes the levels above 1: `jbu`, joint bilateral up-sampling guided by the pixels;
            `bilinear`; `none`, for level 1 alone.
        query_grid: a view gives `query_grid`² tokens, one window each (`hiwin` and `resampler`).
        num_attention_heads: None for one head per 128 channels of the language model, as published.
        box_dtype: precision of the window corners. `bfloat16` rounds them as the published code does in bf16; the
            released weights were trained so.
        unshuffle_factor: side of the square of patches that `mlp` joins into one token.
    """

    model_type = "llava_uhd_projector"
    base_config_key = "projector"

    type: Literal["hiwin", "resampler", "mlp"] = "hiwin"
    levels: Any = (1, 2, 4)
    upsampler: Literal["jbu", "bilinear", "none"] = "jbu"
    query_grid: int = 12
    num_attention_heads: int | None = None
    box_dtype: Literal["float32", "bfloat16"] = "float32"
    unshuffle_factor: int = 2

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.levels = list(self.levels)
        if self.levels != sorted(set(self.levels)) or not {1} <= set(self.levels) <= set(LEVELS):
            raise ValueError(f"levels must ascend, be taken from {list(LEVELS)} and contain 1, got {self.levels}")
        if self.upsampler == "none" and self.levels != [1]:
            raise ValueError(f"upsampler 'none' makes no level above 1, but levels are {self.levels}")
        if self.query_grid < 1 or self.unshuffle_factor < 1:
            raise ValueError(
                "query_grid and unshuffle_factor must be at least 1, "
                f"got {self.query_grid} and {self.unshuffle_factor}"
            )


@strict
class LlavaUhdConfig(PreTrainedConfig):
    """Configuration of a whole model. The defaults are the published v2: CLIP-ViT-L/14-336 and a Llama.

    The three nested configs are given as a config, a dict or None for the defaults, and are configs afterwards.

    Attributes:
        vision_config: a CLIP or SigLIP vision tower; its `image_size` is the side of a view, in pixels.
        text_config: any causal language model of transformers.
        projector: see `LlavaUhdProjectorConfig`.
        layout: order of an image's tokens: `stitched` (December 2024: the slices' tokens joined into one raster, a
            separator after each of its rows, then the overview) or `sequential` (April 2025: slice after slice).
        image_token_id: stands in `input_ids` where an image token will be. It may lie outside the vocabulary.
        slice_separator_id: ordinary token after a slice ("," in the Vicuna checkpoints).
        row_separator_id: ordinary token after the last slice, or the last raster column, of a row (newline there).
        max_slices: most slices an image is cut into, as in training.
        vision_feature_layer: hidden state of the tower that is used, -2 as published.
    """

    model_type = "llava_uhd"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "projector": LlavaUhdProjectorConfig}

    vision_config: Any = None
    text_config: Any = None
    projector: Any = None
    layout: Literal["stitched", "sequential"] = "stitched"
    image_token_id: int = 32000
    slice_separator_id: int = 29892
    row_separator_id: int = 13
    max_slices: int = 7
    vision_feature_layer: int = -2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = dict(CLIP_LARGE_336)
        if isinstance(self.vision_config, dict):
            self.vision_config = _sub_config(self.vision_config, "clip_vision_model")
        if self.text_config is None or isinstance(self.text_config, dict):
            self.text_config = _sub_config(self.text_config or {}, "llama")
        if self.projector is None or isinstance(self.projector, dict):
            self.projector = LlavaUhdProjectorConfig(**(self.projector or {}))
        if self.max_slices < 1:
            raise ValueError(f"max_slices must be at least 1, got {self.max_slices}")
        if not self.tie_word_embeddings and self.text_config.tie_word_embeddings:
            self.tie_word_embeddings = True
        super().__post_init__(**kwargs)


def _sub_config(values: dict, default_type: str) -> PreTrainedConfig:
    model_type = values.get("model_type", default_type)
    return CONFIG_MAPPING[model_type](**values)


__all__ = ["LlavaUhdConfig", "LlavaUhdProjectorConfig"]
