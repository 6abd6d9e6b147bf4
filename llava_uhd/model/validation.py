"""Checks of a configuration as a whole: unknown keys, types, ranges, sizes that multiply.

They run when a config is made and when it is read, before memory is taken for a model. The bounds on sizes are far
above any model's; a number beyond them is a damaged file.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from packaging.version import InvalidVersion, Version
from transformers import GenerationConfig, PreTrainedConfig, __version__

C = TypeVar("C", bound=type[PreTrainedConfig])

# Keys beyond a config's own fields that releases of transformers write into `config.json`, or take beside it.
TRANSFORMERS_KEYS = frozenset(
    "model_type name_or_path output_attentions attn_implementation experts_implementation auto_map torch_dtype dtype "
    "num_labels quantization_config per_layer_config tie_last_hidden_states use_cache use_return_dict torchscript "
    "use_bfloat16 tf_legacy_loss pruned_heads is_decoder cross_attention_hidden_size add_cross_attention "
    "tie_encoder_decoder finetuning_task tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id "
    "decoder_start_token_id task_specific_params transformers_version".split()
)
DTYPES = ("float64", "float32", "float16", "bfloat16")
# Heights in pixels that letters may be brought to: lower ones are not measured.
LETTER_HEIGHTS = (5, 64)
# Largest accepted values of sizes.
LARGEST = {
    "hidden_size": 2**18,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**11,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31,
    "image_size": 2**14,
    "patch_size": 2**10,
    "num_channels": 3,
    "projection_dim": 2**18,
    "num_local_experts": 2**12,
    "num_experts": 2**12,
}
QUERY_GRID, UNSHUFFLE_FACTOR, TOKEN_ID = 128, 64, 2**31 - 1
POSITIVE_FLOATS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "initializer_range", "rope_theta")
# How alike a key must be to one that exists to be taken for a misspelling of it, in a config of another model.
MISSPELLED = 0.9


def raise_value_errors(cls: C) -> C:
    """Let a class raise ValueError, in one line, for a value of the wrong type as for every other mistake."""
    strict_init: Callable[..., None] = cls.__init__

    @wraps(strict_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            strict_init(self, *args, **kwargs)
        # transformers' part of the work meets wrong types with errors of any kind
        except (StrictDataclassError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{cls.__name__}: {describe(error)}") from error

    cls.__init__ = init
    return cls


def describe(error: Exception) -> str:
    """Return what an error says in one line; of a strict field its last one, without the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].partition(": ")[2] if isinstance(error, StrictDataclassError) and ": " in lines[-1] else lines[0]


def check_keys(config: PreTrainedConfig, unknown: Collection[str]) -> None:
    """Refuse keys that are neither the config's nor transformers'.

    A file written by a newer transformers than this one may hold keys of its that are unknown here: those pass unless
    they look like one of the config's.

    Raises:
        ValueError: naming the nearest key that exists.
    """
    names = [field.name for field in fields(config)]
    accepted = {*names, *TRANSFORMERS_KEYS, *GenerationConfig().to_dict()}
    for key in unknown:
        if key in accepted or key.startswith("_"):
            continue
        near = get_close_matches(key, names, n=1)
        if near or not _is_newer(config.transformers_version):
            base = {field.name for field in fields(PreTrainedConfig)}
            own = [name for name in names if name not in base]
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(own)}"
            raise ValueError(f"{config.model_type} config has no key {key!r}: {hint}")


def _is_newer(version: Any) -> bool:
    try:
        return Version(str(version)) > Version(__version__)
    except InvalidVersion:
        return False


def check_misspelled(name: str, config_class: type[PreTrainedConfig], values: dict[str, Any]) -> None:
    """Refuse keys of another model's config that look like a misspelled one; others are its own business."""
    names = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    for key in sorted(map(str, values.keys() - names - TRANSFORMERS_KEYS)):
        near = get_close_matches(key, names, n=1, cutoff=MISSPELLED)
        if near and not key.startswith("_"):
            raise ValueError(f"{name} has no key {key!r}: did you mean {near[0]}?")


def check_dtype(name: str, dtype: Any) -> None:
    """Check the name of a floating type."""
    dtype_name = str(dtype).removeprefix("torch.")
    if dtype is not None and dtype_name not in DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {dtype!r}")


def check_int(name: str, value: Any, low: int, high: int) -> None:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def check_sizes(name: str, config: PreTrainedConfig) -> None:
    """Check the sizes of a tower or a language model, each by itself and those that divide one another.

    Args:
        name: name of the config for error messages.
        config: config to check.
    """
    for key, largest in LARGEST.items():
        value = getattr(config, key, None)
        if value is not None and not isinstance(value, list | tuple):  # some models name a size per layer
            check_int(f"{name}.{key}", value, 0 if key == "num_hidden_layers" else 1, largest)
    for key in POSITIVE_FLOATS:
        value = getattr(config, key, None)
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{name}.{key} must be a positive number, got {value!r}")
    _check_finite(name, config.to_dict())
    rope = getattr(config, "rope_parameters", None)
    if (
        isinstance(rope, dict)
        and "rope_theta" in rope
        and not (is_number(rope["rope_theta"]) and rope["rope_theta"] > 0)
    ):
        raise ValueError(f"{name}.rope_parameters.rope_theta must be a positive number, got {rope['rope_theta']!r}")
    dropout = getattr(config, "attention_dropout", None)
    if dropout is not None and not (is_number(dropout) and 0 <= dropout < 1):
        raise ValueError(f"{name}.attention_dropout must be a number from 0 up to 1, got {dropout!r}")
    heads, kv_heads = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if isinstance(heads, int) and getattr(config, "head_dim", None) is None:
        check_divides(f"{name}.num_attention_heads", heads, f"{name}.hidden_size", config.hidden_size)
    if isinstance(heads, int) and isinstance(kv_heads, int):
        check_divides(f"{name}.num_key_value_heads", kv_heads, f"{name}.num_attention_heads", heads)


def check_padding(pad_to_square: Any, pad_to_grid: Any) -> None:
    """Check the paddings of an image before slicing.

    Raises:
        ValueError: one is not a bool, or both are true.
    """
    for name, value in (("pad_to_square", pad_to_square), ("pad_to_grid", pad_to_grid)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
    if pad_to_square and pad_to_grid:
        raise ValueError("only one of pad_to_square and pad_to_grid can be true")


def check_letter_height(height: Any) -> None:
    """Check the height in pixels to which letters are brought; None for images at their own resolution."""
    if height is not None:
        check_int("letter_height", height, *LETTER_HEIGHTS)


def check_slice_grid(grid: Any, max_slices: int) -> list[int] | None:
    """Return a fixed grid of slices as a list, None where there is none.

    Raises:
        ValueError: it is not [columns, rows] of 2 to `max_slices` slices.
    """
    if grid is None:
        return None
    if (
        not isinstance(grid, list | tuple)
        or len(grid) != 2
        or any(type(count) is not int or count < 1 for count in grid)
        or not 2 <= grid[0] * grid[1] <= max_slices
    ):
        raise ValueError(f"slice_grid must be [columns, rows] of 2 to max_slices = {max_slices} slices, got {grid!r}")
    return list(grid)


def check_divides(part_name: str, part: int, whole_name: str, whole: int) -> None:
    """Check that a number divides another."""
    if whole % part:
        raise ValueError(f"{whole_name} must be a multiple of {part_name}, got {whole} and {part}")


def _check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity wherever they stand."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        _check_finite(f"{name}.{key}", item)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
