"""Limits of recipe values: one table per kind of recipe, one check that reports all violations."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

Range = tuple[float, float]
LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # of numpy
ANY = math.inf
# The lowest and the highest value; numbers of a list or of a mapping have the limits of their place.
TUNING_LIMITS: dict[str, Range] = {
    "seed": (0, LARGEST_SEED),
    "model.slice_separator_id": (0, LARGEST_INT),
    "model.row_separator_id": (0, LARGEST_INT),
    "model.projector.levels": (1, 8),
    "model.projector.query_grid": (1, 1024),
    "model.projector.num_attention_heads": (1, 4096),
    "model.projector.unshuffle_factor": (1, 64),
    "model.projector.input_level": (1, 8),
    "model.slice_grid": (1, 1024),
    "data.train.weight": (1e-9, 1e6),
    "data.held_out.weight": (1e-9, 1e6),
    "data.max_length": (1, LARGEST_INT),
    "data.max_slices": (1, 4096),
    "data.workers": (0, 1024),
    "data.published_samples": (1, ANY),
    "data.published_length": (1, ANY),
    "data.published_views": (1, ANY),
    "optimization.learning_rates": (0, ANY),
    "optimization.global_batch": (1, LARGEST_INT),
    "optimization.micro_batch": (1, LARGEST_INT),
    "optimization.epochs": (1e-9, 1e6),
    "optimization.max_steps": (1, LARGEST_INT),
    "optimization.warmup": (0, 1),
    "optimization.weight_decay": (0, 1e6),
    "optimization.max_grad_norm": (0, ANY),
    "optimization.loss_chunk": (1, LARGEST_INT),
    "lora.rank": (1, 65536),
    "lora.alpha": (1, LARGEST_INT),
    "lora.dropout": (0, 0.999),
    "watch.log_every": (1, LARGEST_INT),
    "watch.save_every": (1, LARGEST_INT),
    "watch.eval_every": (1, LARGEST_INT),
    "watch.keep": (2, LARGEST_INT),
    "watch.max_loss_rise": (0, ANY),
    "watch.peak_tflops": (1e-9, ANY),
}
UPSAMPLER_LIMITS: dict[str, Range] = {
    "seed": (0, LARGEST_SEED),
    "held_out": (0, LARGEST_INT),
    "image_size": (1, 16384),
    "feature_layer": (-1000, 1000),
    "batch": (1, LARGEST_INT),
    "epochs": (1, 10**6),
    "max_steps": (1, LARGEST_INT),
    "learning_rate": (0, ANY),
    "jitters": (1, 1024),
    "max_pad": (0, 16384),
    "max_zoom": (1, 1024),
    "downsampler_kernel": (1, 1024),
    "projection": (0, 65536),
    "crf": (0, ANY),
    "crf_samples": (1, 10**7),
    "tv": (0, ANY),
    "clip_first": (0, LARGEST_INT),
    "max_grad_norm": (0, ANY),
    "log_every": (1, LARGEST_INT),
    "save_every": (1, LARGEST_INT),
    "pictures": (0, LARGEST_INT),
    "pictures_per_jitter": (1, LARGEST_INT),
    "learning_rates": (0, ANY),
    "workers": (0, 1024),
}


def check_limits(recipe: Any, limits: Mapping[str, Range]) -> None:
    """Check every number of a recipe.

    Args:
        recipe: dataclass, with dataclasses, tuples and dicts in it.
        limits: lowest and highest value by dotted name; a number without limits must only be finite.

    Raises:
        ValueError: numbers are outside their limits, or are not finite; names each.
    """
    wrong = []
    for name, place, value in _numbers(recipe, "", ""):
        low, high = limits.get(name, (-ANY, ANY))
        if isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{place} must be a finite number, got {value}")
        elif value < low:
            wrong.append(f"{place} must be {'above 0' if 0 < low < 1e-6 else f'at least {low:g}'}, got {value}")
        elif value > high:
            wrong.append(f"{place} must be at most {high:g}, got {value}")
    if wrong:
        raise ValueError("; ".join(wrong))


def _numbers(value: Any, name: str, place: str) -> Iterator[tuple[str, str, float]]:
    """Yield the numbers of a value: their name in the table, their place in the recipe, and the number."""
    if is_dataclass(value):
        for entry in fields(value):
            dot = "." if name else ""
            yield from _numbers(getattr(value, entry.name), f"{name}{dot}{entry.name}", f"{place}{dot}{entry.name}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, name, f"{place}.{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, name, f"{place}.{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, place, value
