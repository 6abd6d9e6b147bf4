"""Parameter groups that are trained or frozen together, and their parameter counts.

| part | what it is |
|---|---|
| `vision_tower` | the layers of the tower that are run |
| `vision_tower (not run)` | those behind the features that are used: they get no gradient |
| `upsampler` | kernels of the JBU levels, frozen in both stages as published; a registered up-sampler |
| `upsampler_fixup` | the correction of the up-sampled maps, trained in stage 2 as published |
| `positions` | the projector's fixed sine-cosine table, which the published stage 1 trains all the same |
| `projector` | the rest of the projector, a deconvolution among it |
| `language_model` | with embeddings and head |
| `adapters` | LoRA matrices |
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ..deprecation import former_names
from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.vision_tower import num_layers_used

logger = logging.getLogger(__name__)

NOT_RUN = " (not run)"
TOWER, PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts of a parameter group."""

    part: str
    total: int
    trainable: int


def group_of(name: str, config: LlavaUhdConfig) -> str:
    """Return the parameter group of a parameter.

    Args:
        name: parameter name in `LlavaUhdForConditionalGeneration`, with or without adapter prefixes.
        config: model config.
    """
    name = name.removeprefix("base_model.model.")
    if "lora_" in name:
        return "adapters"
    if name.startswith(TOWER):
        return "vision_tower" + (NOT_RUN if _is_behind_features(name.removeprefix(TOWER), config) else "")
    if not name.startswith(PROJECTOR):
        return "language_model"
    name = name.removeprefix(PROJECTOR)
    if config.projector.upsampler == "deconvolution":
        name = name.replace("upsampler.", "deconvolution.", 1)  # it learns with the projector
    if not name.startswith("upsampler."):
        return "positions" if name == "positions" else "projector"
    name = name.removeprefix("upsampler.")
    if not name.startswith("fixup_proj"):
        return "upsampler"
    # At 8x every map has a correction of its own, and the common one is used by nothing.
    projector = config.projector
    highest = max(projector.levels) if projector.type == "hiwin" else projector.input_level
    dead = highest == 8 and name.startswith("fixup_proj.")
    return "upsampler" + NOT_RUN if dead else "upsampler_fixup"


def _is_behind_features(name: str, config: LlavaUhdConfig) -> bool:
    if name.startswith("encoder.layers."):
        used = num_layers_used(config.vision_config.num_hidden_layers, config.vision_feature_layer)
        return int(name.split(".")[2]) >= used
    return not name.startswith(("embeddings.", "pre_layrnorm."))


def parts_of(model: nn.Module, config: LlavaUhdConfig) -> list[str]:
    """Return the parameter groups of a model, in parameter order."""
    return list(dict.fromkeys(group_of(name, config) for name, _ in model.named_parameters()))


def present_rates(
    model: nn.Module, config: LlavaUhdConfig, rates: Mapping[str, float], optional: Collection[str] = ()
) -> dict[str, float]:
    """Return the learning rates of the parameter groups that a model has.

    Args:
        model: model that is trained, without adapters.
        config: config of the model.
        rates: learning rate of each parameter group.
        optional: parameter groups that the model may lack.

    Raises:
        ValueError: the model lacks a group that is not optional, or has none of them.
    """
    existing = [group for group in parts_of(model, config) if not group.endswith(NOT_RUN)]
    missing = [group for group in rates if group not in existing]
    if required := [group for group in missing if group not in optional]:
        raise ValueError(
            f"optimization.learning_rates.{required[0]}: the model has no part {required[0]!r} to train; "
            f"with a projector of type {config.projector.type} it has {', '.join(existing)}"
        )
    if missing:
        logger.warning(
            "%s: not trained, since a model with a projector of type %s has none",
            ", ".join(missing),
            config.projector.type,
        )
    present = {group: rates[group] for group in rates if group in existing}
    if not present:
        raise ValueError(f"optimization.learning_rates: of {', '.join(rates)} the model has none to train")
    return present


def train_only(model: nn.Module, config: LlavaUhdConfig, groups: Collection[str]) -> None:
    """Make these parameter groups trainable and freeze the others.

    Raises:
        ValueError: the model has no such part.
    """
    existing = parts_of(model, config)
    for part in groups:
        if part not in existing:
            raise ValueError(f"the model has no part {part!r} to train; it has {', '.join(existing)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(group_of(name, config) in groups)


def table(model: nn.Module, config: LlavaUhdConfig) -> list[ParameterCounts]:
    """Return total and trainable parameter counts of each parameter group."""
    totals: dict[str, int] = {}
    trainable: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = group_of(name, config)
        totals[part] = totals.get(part, 0) + parameter.numel()
        trainable[part] = trainable.get(part, 0) + parameter.numel() * parameter.requires_grad
    return [ParameterCounts(part, total, trainable[part]) for part, total in totals.items()]


def check_trainable(rows: Iterable[ParameterCounts], groups: Collection[str]) -> None:
    """Assert that exactly these parameter groups are trainable, each completely.

    Raises:
        AssertionError: naming the part that is not as it should be.
    """
    for row in rows:
        expected = row.total if row.part in groups else 0
        assert row.trainable == expected, f"{row.part}: {row.trainable} parameters are trainable, not {expected}"


__getattr__ = former_names(
    __name__,
    {"PartRow": "ParameterCounts", "part_of": "group_of", "check_table": "check_trainable"},  # former names
)
