"""Config mapping between original checkpoints and HF format, in both directions.

An original `config.json` is the language model's config with additional `mm_*` keys. Two versions of the code write
them: December 2024 has `feature_mode` and stitches tokens to one raster; April 2025 has `model_mode` and orders tokens
slice by slice. A file with neither key leaves the layout open.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..deprecation import former_names
from ..model.configuration_llava_uhd import CLIP_LARGE_336, LEVELS, LlavaUhdConfig
from ..model.layout import LayoutName

__getattr__ = former_names(__name__, {"to_our_config": "to_hf_config", "to_released_config": "to_original_config"})

# mm_projector_type: HF projector type, and the side of its query grid.
PROJECTOR_TYPES = {
    "adapt_spatial_resampler": ("hiwin", 12),
    "adapt_spatial_resampler_v2": ("hiwin", 12),
    "adapt_spatial_resampler_v2_64": ("hiwin", 8),
    "adapt_spatial_resampler_v2_256": ("hiwin", 16),
    "adapt_spatial_resampler_v1": ("resampler", 12),
    "uhd_v1_query64": ("resampler", 8),
}
LANGUAGE_MODELS = {"llava_llama": "llama", "llava": "llama", "llava_qwen": "qwen2"}
# Suffixes of tower paths in `mm_vision_tower`: most original configs name a private folder.
KNOWN_TOWERS = {"clip-vit-large-patch14-336": CLIP_LARGE_336}
# Constants of the reference implementation; other models name theirs in the config.
SEPARATORS = {"slice_separator_id": 29892, "row_separator_id": 13}
DEFAULT_MASK = 7  # default of the reference implementation
# Keys of any config.json that describe the file rather than the language model.
NOT_THE_MODEL = {
    "model_type",
    "architectures",
    "_name_or_path",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
}


@dataclass(frozen=True)
class Overrides:
    """User overrides of the source's settings; None keeps the source's value.

    Attributes:
        layout: `stitched` or `sequential`.
        levels: pyramid levels, replacing `feature_scale_mask`.
        box_dtype: precision of window corners, see `LlavaUhdProjectorConfig`.
        max_slices: maximum number of slices per image; 7 in the reference.
        projector_heads: number of attention heads of the projector; `hidden_size` / 128 in the reference.
    """

    layout: LayoutName | None = None
    levels: tuple[int, ...] | None = None
    box_dtype: str | None = None
    max_slices: int | None = None
    projector_heads: int | None = None


def levels_of_mask(mask: int) -> list[int]:
    """Return the levels of a `feature_scale_mask`: bit 1 is level 1x, bit 2 is 2x, 4 is 4x, 8 is 8x."""
    if not 0 < mask < 16 or not mask & 1:
        raise ValueError(f"feature_scale_mask must be odd and at most 15 (level 1x is always there), got {mask}")
    return [level for level in LEVELS if mask & level]


def vision_config_of(original: dict[str, Any], tower_config: dict[str, Any] | None) -> dict[str, Any]:
    """Return the vision tower config: the one passed in, or that of the tower named by an original config.

    Raises:
        ValueError: neither is known.
    """
    if tower_config is not None:
        values = tower_config.get("vision_config", tower_config)
        return {**values, "model_type": values.get("model_type", "clip_vision_model")}
    name = original.get("mm_vision_tower") or original.get("vision_tower") or "none"
    if PurePath(name).name not in KNOWN_TOWERS:
        raise ValueError(f"the vision tower of this checkpoint is {name!r}: name its folder or hub id: --vision-tower")
    return KNOWN_TOWERS[PurePath(name).name]


def to_hf_config(
    original: dict[str, Any], vision_config: dict[str, Any], projector_dtype: torch.dtype, overrides: Overrides
) -> LlavaUhdConfig:
    """Return the HF config for an original config.

    Args:
        original: contents of the original `config.json`.
        vision_config: vision tower config.
        projector_dtype: dtype of the stored weights. Anything but float32 was trained in bfloat16, window corners
            included.
        overrides: user overrides.

    Raises:
        ValueError: a setting occurs in no original checkpoint, or the source does not specify it.
    """
    if original.get("mm_use_im_start_end"):
        raise ValueError("mm_use_im_start_end is true: no original checkpoint has tokens around an image")
    if (feature := original.get("mm_vision_select_feature", "patch")) != "patch":
        raise ValueError(f"mm_vision_select_feature must be 'patch', got {feature!r}")
    projector_type = original.get("mm_projector_type")
    if projector_type not in PROJECTOR_TYPES:
        raise ValueError(f"mm_projector_type must be one of {', '.join(PROJECTOR_TYPES)}, got {projector_type!r}")
    kind, query_grid = PROJECTOR_TYPES[projector_type]
    text_config = _language_model_config(original)
    if overrides.projector_heads is None and text_config.hidden_size % 128:
        raise ValueError(
            f"the projector has one head per 128 channels, but the language model is {text_config.hidden_size} wide: "
            "name their number with --projector-heads"
        )
    levels = list(overrides.levels or levels_of_mask(original.get("feature_scale_mask", DEFAULT_MASK)))
    return LlavaUhdConfig(
        architectures=["LlavaUhdForConditionalGeneration"],
        vision_config=dict(vision_config),
        text_config=text_config,
        projector={
            "type": kind,
            "levels": levels if kind == "hiwin" else [1],
            "upsampler": "jbu" if kind == "hiwin" and levels != [1] else "none",
            "query_grid": query_grid,
            "num_attention_heads": overrides.projector_heads,
            "box_dtype": overrides.box_dtype or ("float32" if projector_dtype == torch.float32 else "bfloat16"),
        },
        layout=overrides.layout or _layout(original),
        max_slices=overrides.max_slices or 7,
        vision_feature_layer=original.get("mm_vision_select_layer", -2),
        **{key: original.get(key, default) for key, default in SEPARATORS.items()},
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def _layout(original: dict[str, Any]) -> LayoutName:
    if "model_mode" in original:
        return "sequential"
    if "feature_mode" in original:
        return "stitched"
    raise ValueError(
        "the source's config has neither feature_mode (December 2024: stitched) nor model_mode (April 2025: "
        "sequential): name the layout its weights were trained with by --layout"
    )


def _language_model_config(original: dict[str, Any]) -> PreTrainedConfig:
    model_type = original.get("model_type", "")
    model_type = LANGUAGE_MODELS.get(model_type, model_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model_type {original.get('model_type')!r} names no language model that is known")
    config_class = CONFIG_MAPPING[model_type]
    text_keys = {*config_class().to_dict(), "rope_theta", "rope_scaling"} - NOT_THE_MODEL
    return config_class(**{key: value for key, value in original.items() if key in text_keys})


def to_original_config(config: LlavaUhdConfig, dtype: str) -> dict[str, Any]:
    """Return the original config for an HF config, for weights that come from no original checkpoint.

    Raises:
        ValueError: no original projector has these settings.
    """
    text, projector = config.text_config, config.projector
    by_settings = {settings: name for name, settings in PROJECTOR_TYPES.items()}
    if (projector.type, projector.query_grid) not in by_settings:
        raise ValueError(f"no original projector is a {projector.type!r} with a query grid of {projector.query_grid}")
    stitched = config.layout == "stitched"
    projector_type = by_settings[projector.type, projector.query_grid]
    if stitched and projector_type == "adapt_spatial_resampler_v2":
        projector_type = "adapt_spatial_resampler"
    hiwin, family = projector.type == "hiwin", "Qwen" if text.model_type == "qwen2" else "Llama"
    mode = {"feature_mode": "featup_muti_res" if hiwin else "uhd_v1"}
    values = {key: value for key, value in text.to_dict().items() if key not in NOT_THE_MODEL}
    rope = values.pop("rope_parameters", None) or {}
    return {
        **values,
        **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}),
        "architectures": [f"Llava{family}ForCausalLM"],
        "model_type": f"llava_{family.lower()}",
        "torch_dtype": dtype,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": projector_type,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        **(mode if stitched else {"model_mode": "uhd_v2" if hiwin else "uhd_v1"}),
        **({"feature_scale_mask": sum(projector.levels)} if hiwin else {}),
        **{key: getattr(config, key) for key, default in SEPARATORS.items() if getattr(config, key) != default},
    }


def infer_projector(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Infer settings from the tensors of a `mm_projector.bin` without a config.

    An up-sampler with two 2x steps is used by the masks 7 and 5; the default, 7, is assumed.

    Args:
        shapes: tensor shapes by name without prefix, such as `pos_embed`.

    Raises:
        ValueError: the tensors are not those of a LLaVA-UHD projector.
    """
    grid = round(shapes["pos_embed"][0] ** 0.5) if "pos_embed" in shapes else 0
    kind = "hiwin" if "query_1" in shapes else "resampler"
    names = [name for name, settings in PROJECTOR_TYPES.items() if settings == (kind, grid)]
    if not names:
        raise ValueError(f"these are not the tensors of a LLaVA-UHD projector: {', '.join(list(shapes)[:5])}")
    if kind == "resampler":
        return {"mm_projector_type": names[0]}
    highest = [any(f"upsampler.{stack}." in name for name in shapes) for stack in ("up3", "up2")]
    return {"mm_projector_type": names[0], "feature_scale_mask": 15 if highest[0] else 7 if highest[1] else 3}


def most_used_dtype(tensors: Iterable[tuple[torch.dtype, int]]) -> torch.dtype:
    """Return the floating-point dtype that takes most bytes."""
    totals: dict[torch.dtype, int] = {}
    for dtype, num_bytes in tensors:
        if dtype.is_floating_point:
            totals[dtype] = totals.get(dtype, 0) + num_bytes
    return max(totals, key=lambda dtype: totals[dtype])
