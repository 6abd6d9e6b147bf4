"""Training plan: parameter counts, duration and memory, computed without weights or data.

llava-uhd train plan vicuna-7b-instruct --devices 64
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import nn

from ..flops import folding_in_training, sample_flops, standard_shape, training_flops
from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from .assembly import planned_config
from .parts import ParameterCounts, check_trainable, present_rates, table, train_only
from .recipe import TuningRecipe, load_recipe, shipped_recipes

GIB = 2**30
# Assumed utilization of peak FLOPS (MFU); an estimate within the range that large runs report.
ASSUMED_UTILISATION = 0.4
ADAM_BYTES = 8  # two float32 moments
# Saved activations of one transformer layer, in values per token and hidden unit.
LAYER_ACTIVATIONS = 17


@dataclass(frozen=True)
class Plan:
    """Training plan shown by `--dry-run`.

    Attributes:
        parts: total and trainable parameter counts by parameter group.
        devices: number of devices.
        accumulation: micro-batches per device and step.
        samples: number of samples per epoch; None if neither the data nor a published number is available.
        steps: number of steps.
        tokens: number of tokens, including image tokens.
        memory_gib: memory per device in GiB, by strategy.
        petaflop: total PFLOP, without recomputation.
        hours: duration at `peak_tflops` and the assumed utilization, including recomputation.
    """

    parts: list[ParameterCounts]
    devices: int
    accumulation: int
    samples: int | None
    steps: int | None
    tokens: int | None
    memory_gib: dict[str, float]
    petaflop: float | None
    hours: float | None

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "parts": [row.__dict__ for row in self.parts]}

    def lines(self) -> list[str]:
        shown = [f"{'part':26} {'parameters':>16} {'trainable':>16}"]
        shown += [f"{row.part:26} {row.total:>16,} {row.trainable:>16,}" for row in self.parts]
        for name in ("devices", "accumulation", "samples", "steps", "tokens"):
            value = getattr(self, name)
            shown.append(f"{name:26} {'unknown' if value is None else format(value, ','):>16}")
        shown += [f"{f'memory with {name}':26} {gib:>12.1f} GiB" for name, gib in self.memory_gib.items()]
        if self.petaflop is not None:
            shown.append(f"{'operations':26} {self.petaflop:>10,.1f} PFLOP")
        if self.hours is not None:
            shown.append(f"{f'time at {ASSUMED_UTILISATION:.0%} of peak':26} {self.hours:>14.1f} h")
        return shown


def accumulation_of(recipe: TuningRecipe, devices: int) -> int:
    """Return the number of micro-batches per device and step.

    Raises:
        ValueError: the global batch does not divide so.
    """
    optimization = recipe.optimization
    if optimization.global_batch % (optimization.micro_batch * devices):
        raise ValueError(
            f"a global batch of {optimization.global_batch} does not divide among {devices} devices with "
            f"{optimization.micro_batch} samples at a time"
        )
    return optimization.global_batch // (optimization.micro_batch * devices)


def num_steps(recipe: TuningRecipe, samples: int) -> int:
    """Return the number of steps of a run over `samples` samples."""
    steps = ceil(ceil(samples / recipe.optimization.global_batch) * recipe.schedule.epochs)
    limit = recipe.schedule.max_steps
    return steps if limit is None else min(steps, limit)


def config_of(recipe: TuningRecipe) -> LlavaUhdConfig:
    """Return the config of the initial model; a model made by another shipped recipe is planned from that recipe."""
    for name in shipped_recipes():
        other = load_recipe(name)
        if isinstance(other, TuningRecipe) and f"{other.out}/model" == recipe.model.start:
            try:
                return planned_config(recipe.model)
            except ValueError:
                return planned_config(other.model)
    return planned_config(recipe.model)


def trained_parts(recipe: TuningRecipe) -> list[str]:
    """Return the parameter groups that get gradients; with adapters, only the adapters."""
    return ["adapters"] if recipe.lora else list(recipe.optimization.learning_rates)


def with_present_groups(recipe: TuningRecipe, model: nn.Module, config: LlavaUhdConfig) -> TuningRecipe:
    """Return the recipe with learning rates of the parameter groups that the model has; see `parts.present_rates`."""
    optimization = recipe.optimization
    rates = present_rates(model, config, optimization.learning_rates, optimization.optional_groups)
    return replace(recipe, optimization=replace(optimization, learning_rates=rates, optional_groups=()))


def make_plan(recipe: TuningRecipe, devices: int = 1, samples: int | None = None) -> Plan:
    """Plan a run.

    Args:
        recipe: recipe of stage 1 or 2.
        devices: number of devices.
        samples: number of samples per epoch; None takes the published number.

    Raises:
        AssertionError: the trainable parameters differ from those that the recipe names.
        ValueError: the recipe does not fit its model or the devices.
    """
    config = config_of(recipe)
    with torch.device("meta"):
        model: Any = LlavaUhdForConditionalGeneration(config)
    recipe = with_present_groups(recipe, model, config)
    if recipe.lora:
        from .adapters import add_adapters

        model = add_adapters(model, recipe.lora)
    parts = trained_parts(recipe)
    train_only(model, config, parts)
    rows = table(model, config)
    check_trainable(rows, parts)

    data, optimization = recipe.data, recipe.optimization
    samples = samples or data.published_samples
    steps = None if samples is None else num_steps(recipe, samples)
    tokens = petaflop = hours = None
    if steps is not None and data.published_length and data.published_views:
        num_samples = steps * optimization.global_batch
        tokens = num_samples * data.published_length
        views = [standard_shape(config)] * data.published_views
        forward = sample_flops(config, views, data.published_length, data.published_length / 8)
        # Every micro-batch folds the projector's weights once.
        folding = num_samples / optimization.micro_batch * folding_in_training(config, parts)
        petaflop = (num_samples * training_flops(forward, parts) + folding) / 1e15
        if recipe.monitoring.peak_tflops:
            work = num_samples * training_flops(forward, parts, optimization.checkpoint_activations) + folding
            hours = work / (devices * recipe.monitoring.peak_tflops * 1e12 * ASSUMED_UTILISATION) / 3600
    return Plan(
        parts=rows,
        devices=devices,
        accumulation=accumulation_of(recipe, devices),
        samples=samples,
        steps=steps,
        tokens=tokens,
        memory_gib=memory(recipe, config, rows, devices),
        petaflop=petaflop,
        hours=hours,
    )


def memory(
    recipe: TuningRecipe, config: LlavaUhdConfig, rows: list[ParameterCounts], devices: int
) -> dict[str, float]:
    """Return the memory per device in GiB, by strategy.

    `ddp` replicates everything: trained weights in float32 with gradients and Adam moments, other weights in the
    precision of the run. `fsdp2` shards all of it, and gathers one layer at a time plus the weights outside of layers.
    `zero2` replicates the weights in bfloat16 and shards float32 copies, gradients and moments.
    """
    optimization = recipe.optimization
    trainable = sum(row.trainable for row in rows)
    frozen = sum(row.total for row in rows) - trainable
    number = 2 if optimization.precision == "bf16" else 4
    frozen_bytes: float = frozen * number
    if recipe.lora and recipe.lora.quantize == "nf4":
        language = sum(row.total - row.trainable for row in rows if row.part == "language_model")
        frozen_bytes -= language * (number - 0.55)
    text = config.text_config
    language_total = sum(row.total for row in rows if row.part == "language_model")
    outside = sum(row.total for row in rows) - language_total + 2 * text.vocab_size * text.hidden_size
    layer = (language_total - 2 * text.vocab_size * text.hidden_size) / text.num_hidden_layers
    activations = _activations(recipe, config)
    state = trainable * (4 + 4 + ADAM_BYTES)
    strategies: dict[str, float] = {"ddp": state + frozen_bytes}
    # 4-bit weights are not sharded.
    if devices > 1 and not (recipe.lora and recipe.lora.quantize == "nf4"):
        strategies["fsdp2"] = (state + frozen * 4) / devices + (outside + 2 * layer) * number
        strategies["zero2"] = (trainable + frozen) * 2 + trainable * (4 + 4 + ADAM_BYTES) / devices
    return {name: round((held + activations) / GIB, 1) for name, held in strategies.items()}


def _activations(recipe: TuningRecipe, config: LlavaUhdConfig) -> float:
    """Estimate the bytes of saved activations and of the logits of a chunk."""
    optimization, data, text = recipe.optimization, recipe.data, config.text_config
    number = 2 if optimization.precision == "bf16" else 4
    tokens = optimization.micro_batch * min(data.published_length or data.max_length, data.max_length)
    one_layer = LAYER_ACTIVATIONS * tokens * text.hidden_size * number
    if optimization.checkpoint_activations:
        language = text.num_hidden_layers * tokens * text.hidden_size * number + one_layer
    else:
        language = text.num_hidden_layers * one_layer
    views = optimization.micro_batch * (data.published_views or 1)
    rows, columns = standard_shape(config)
    positions = rows * columns * sum(level**2 for level in config.projector.levels)
    vision = views * positions * (config.vision_config.hidden_size + 3 * text.hidden_size) * number
    logits = 3 * optimization.loss_chunk * text.vocab_size * 4
    return language + vision + logits
