"""Recipes: the complete configuration of a run as one tree of typed, frozen dataclasses.

A recipe is a YAML file; pydantic checks types, ranges and keys, and `__post_init__` checks values that must fit one
another. Reading files, bases and overrides is `recipe_files`. Shipped recipes are in `recipes/`.

    recipe = load_recipe("vicuna-7b-align", ["data.train.0.path=captions.json", "schedule.epochs=2"])
"""

import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, Strict, StrictBool, StrictStr, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..model.configuration_llava_uhd import HEAD_SIZE, LlavaUhdConfig, LlavaUhdProjectorConfig
from .recipe_errors import describe
from .recipe_files import FOLDER as FOLDER
from .recipe_files import read_named_values, rename_keys
from .recipe_files import shipped_recipes as shipped_recipes
from .recipe_types import (
    LARGEST_INT,
    SETTINGS,
    Count,
    CountOrZero,
    NotNegative,
    Number,
    PathText,
    Positive,
    Rate,
    Seed,
    Whole,
    Workers,
    check_names,
)
from .upsampler.recipe import UpsamplerRecipe

logger = logging.getLogger(__name__)

# Parameter groups that each stage may train. The published recipes of `align` train the first two.
TRAINED_BY = {
    "align": ("projector", "positions", "vision_tower", "upsampler_fixup", "upsampler"),
    "instruct": ("language_model", "projector", "positions", "vision_tower", "upsampler_fixup", "upsampler"),
}
# Parameter groups that depend on type and up-sampler of the projector.
NOT_IN_EVERY_MODEL = ("positions", "upsampler", "upsampler_fixup")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _own_fields(name: str, config: type, **nested: type) -> type:
    """Return a dataclass with the fields of a config class of the model: its names, types and defaults.

    Args:
        name: name of the dataclass.
        config: config class; its fields without a type are checked by the config itself.
        nested: dataclasses of nested configs by field name.
    """
    own: list[Any] = []
    for key, hint in config.__annotations__.items():
        if key in nested:
            own.append((key, nested[key], field(default_factory=nested[key])))
        elif key not in ("vision_config", "text_config", "image_token_id", "tie_word_embeddings"):
            validators = {
                Any: BeforeValidator(_tuple),
                int: Strict(),
                int | None: Strict(),
                bool: Strict(),
                str: Strict(),
            }
            kind = Annotated[hint, validators[hint]] if hint in validators else hint
            kind = CountOrZero if key.endswith("_id") else kind
            own.append((key, kind, field(default=getattr(config, key))))
    return dataclass(frozen=True, config=SETTINGS)(make_dataclass(name, own, frozen=True))


if TYPE_CHECKING:
    ModelConfig = LlavaUhdConfig
else:
    # All of the model's own config that does not follow from its backbones.
    ModelConfig = _own_fields(
        "ModelConfig", LlavaUhdConfig, projector=_own_fields("ProjectorConfig", LlavaUhdProjectorConfig)
    )


@dataclass(frozen=True, config=SETTINGS)
class ModelRecipe:
    """Initial weights: a complete model (`start`), or pretrained backbones.

    Attributes:
        start: `tiny`, a model folder, or a hub id.
        language_model: folder or hub id of a transformers language model; with `vision_tower` and `config`,
            replaces `start`.
        vision_tower: folder or hub id of CLIP or SigLIP.
        upsampler: up-sampler from stage 0: folder of its run, or the published `clip-large-jbu.ckpt`.
        renew: parameter groups of `start` to reinitialize: `projector`, `upsampler`.
        config: config of a model built from pretrained backbones: the fields of `LlavaUhdConfig`, and in `projector`
            those of `LlavaUhdProjectorConfig`. With `start` only `projector` may be named, for a projector that is
            reinitialized; values not named are those of `start`. Separator ids are those of Vicuna's "," and newline
            as in the reference, for Qwen2 too.
        template: chat template saved with the trained model: `vicuna` or `qwen`; None keeps that of `start`.
    """

    start: StrictStr | None = None
    language_model: StrictStr | None = None
    vision_tower: StrictStr | None = None
    upsampler: StrictStr | None = None
    renew: tuple[Literal["projector", "upsampler"], ...] = ()
    config: ModelConfig = field(default_factory=ModelConfig)
    template: Literal["vicuna", "qwen"] | None = None

    def __post_init__(self) -> None:
        backbones = (self.language_model, self.vision_tower)
        if (self.start is None) == (None in backbones) or (self.start is not None and any(backbones)):
            raise ValueError("model: name either start, or both language_model and vision_tower")
        if self.start is None and self.template is None:
            raise ValueError("model.template: a model built from backbones needs vicuna or qwen")
        try:
            LlavaUhdProjectorConfig(**asdict(self.config.projector))
        except ValueError as error:
            raise ValueError(f"model.config.projector: {error}") from error


@dataclass(frozen=True, config=SETTINGS)
class Source:
    """Data source of a mixture.

    Attributes:
        path: LLaVA JSON or JSONL, a WebDataset tar or a folder of these, a Parquet file (or several, by wildcards or
            in a folder), a folder saved by `datasets`, or the hub id of a dataset.
        images: root folder of the samples' image paths.
        weight: repetitions of each sample per epoch: 2 repeats each twice, 0.5 selects a random half.
        manifest: file written by `llava-uhd data check`, whose lengths improve batching.
        columns: roles of table columns with other names than `image` or `images`, and `conversations`, `messages`,
            `texts`, or `question` and `answer`.
        split: dataset split.
        subset: configuration of a dataset on the hub.
    """

    path: PathText
    images: StrictStr = "."
    weight: Positive = 1.0
    manifest: StrictStr | None = None
    columns: dict[StrictStr, StrictStr] = field(default_factory=dict)
    split: StrictStr = "train"
    subset: StrictStr | None = None


@dataclass(frozen=True, config=SETTINGS)
class DataRecipe:
    """Data sources and sample processing.

    Attributes:
        train: sources, mixed by weight.
        held_out: sources of the loss that is measured every `monitoring.eval_every` steps.
        template: chat template of the training text: `plain` for captions, `tiny` for the built-in model; None takes
            the model's own, which must mark the loss tokens.
        labels: `answers`, as the template marks them, or `published`, which differs for `qwen` (see `labels`).
        max_length: longest sequence in tokens; the text of a longer sample is cut, if its images fit.
        max_slices: most slices of an image; 1 for the overview alone; None as the model says.
        vary_images: True enlarges TextVQA images to 1024, and every tenth image to six slices, as in the reference.
        group: `modality` keeps text-only and image samples in batches of their own.
        pack: join the samples of a micro-batch into one sequence without padding; they do not see each other.
        on_bad_sample: `skip` reports a sample that cannot be used and continues, `fatal` stops.
        workers: processes that read images.
        published_samples: size of the published data, for plans on machines that do not hold it.
        published_length: mean tokens of its samples, likewise: an assumption.
        published_views: mean views of its samples, likewise.
    """

    train: tuple[Source, ...] = ()
    held_out: tuple[Source, ...] = ()
    template: Literal["vicuna", "qwen", "plain", "tiny"] | None = None
    labels: Literal["answers", "published"] = "answers"
    max_length: Count = 4096
    max_slices: Annotated[Whole, Field(ge=1, le=4096)] | None = None
    vary_images: StrictBool = False
    group: Literal["modality", "none"] = "modality"
    pack: StrictBool = False
    on_bad_sample: Literal["skip", "fatal"] = "skip"
    workers: Workers = 4
    published_samples: Annotated[Whole, Field(ge=1)] | None = None
    published_length: Annotated[Whole, Field(ge=1)] | None = None
    published_views: Annotated[Whole, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.labels == "published" and self.template not in ("qwen", "vicuna", "plain"):
            raise ValueError("data.labels: published labels belong to a template: name data.template")


@dataclass(frozen=True, config=SETTINGS)
class OptimizationRecipe:
    """Optimization of stages 1 and 2.

    Attributes:
        learning_rates: learning rate of each trained parameter group; other groups are frozen. See `parts`.
        optional_groups: parameter groups among `learning_rates` that are trained where the model has them; any other
            group that the model lacks is an error. Unless it is named, those whose rates a shipped recipe gives.
        global_batch: samples per step, over all devices and accumulations.
        micro_batch: samples per device and forward pass.
        max_grad_norm: maximum gradient norm; 0 disables clipping.
        precision: `bf16` computes in bfloat16 and keeps what is trained in float32.
        checkpoint_activations: True recomputes the layers' activations in the backward pass.
        loss_chunk: number of positions per chunk of logits.
    """

    learning_rates: dict[StrictStr, Rate]
    global_batch: Count
    micro_batch: Count
    weight_decay: Annotated[Number, Field(ge=0, le=1e6)] = 0.0
    max_grad_norm: NotNegative = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_activations: StrictBool = True
    loss_chunk: Count = 1024
    # No difference between two runs: a missing group is left out of both, or refused.
    optional_groups: tuple[StrictStr, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.learning_rates:
            raise ValueError("optimization.learning_rates: name at least one parameter group to train")
        for group in self.optional_groups:
            if group not in self.learning_rates:
                raise ValueError(
                    f"optimization.optional_groups: {group} is not among the learning rates, "
                    f"{', '.join(self.learning_rates)}"
                )
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"optimization: global_batch {self.global_batch} is no multiple of micro_batch {self.micro_batch}"
            )


@dataclass(frozen=True, config=SETTINGS)
class ScheduleRecipe:
    """Length of stages 1 and 2, and learning rates over time.

    Attributes:
        epochs: passes over the data.
        max_steps: maximum number of steps, below that of the epochs.
        type: course of the learning rates after the warmup.
        warmup: warmup steps as a fraction of all steps, at most 0.999.
    """

    epochs: Positive = 1.0
    max_steps: Count | None = None
    type: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: Annotated[Number, Field(ge=0, le=0.999)] = 0.03


@dataclass(frozen=True, config=SETTINGS)
class LoraRecipe:
    """Adapters of the language model, trained instead of its own weights.

    Attributes:
        targets: regular expression over module names; the default takes the linear layers of the language model alone.
        quantize: `nf4` keeps the frozen language model in four bits (QLoRA; needs the package bitsandbytes).
    """

    rank: Annotated[Whole, Field(ge=1, le=65536)] = 128
    alpha: Count = 256
    dropout: Annotated[Number, Field(ge=0, le=0.999)] = 0.05
    targets: StrictStr = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    quantize: Literal["none", "nf4"] = "none"

    def __post_init__(self) -> None:
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets is no regular expression ({error}): {self.targets!r}") from error


@dataclass(frozen=True, config=SETTINGS)
class CheckpointRecipe:
    """Checkpoints of stages 1 and 2.

    Attributes:
        save_every: steps between checkpoints.
        keep: checkpoints kept; at least 2, so that a kill during a save loses none that is whole.
    """

    save_every: Count = 500
    keep: Annotated[Whole, Field(ge=2, le=LARGEST_INT)] = 2


@dataclass(frozen=True, config=SETTINGS)
class MonitoringRecipe:
    """Logs, held-out loss and stopping of stages 1 and 2.

    Attributes:
        log_every: steps between lines of `log.jsonl`.
        eval_every: steps between measurements of the held-out loss.
        report_to: tracker of transformers: `none`, `tensorboard`, `wandb`, ...
        max_loss_rise: factor over the lowest smoothed loss at which the run stops; 0 disables the check.
        peak_tflops: peak TFLOPS of one device in `precision`, for the utilization; None if unknown.
    """

    log_every: Count = 10
    eval_every: Count = 500
    report_to: StrictStr = "none"
    max_loss_rise: NotNegative = 5.0
    peak_tflops: Annotated[Number, Field(ge=1e-9)] | None = None


@dataclass(frozen=True, config=SETTINGS)
class TuningRecipe:
    """Stages 1 and 2: `align` the projector with captions, then `instruct` (almost) everything."""

    stage: Literal["align", "instruct"]
    out: PathText
    model: ModelRecipe
    data: DataRecipe
    optimization: OptimizationRecipe
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    lora: LoraRecipe | None = None
    checkpoints: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    monitoring: MonitoringRecipe = field(default_factory=MonitoringRecipe)
    seed: Seed = 42

    def __post_init__(self) -> None:
        rates = self.optimization.learning_rates
        check_names(rates, TRAINED_BY[self.stage], f"stage {self.stage} trains")
        if self.lora is not None and set(rates) != {"language_model"}:
            raise ValueError(
                f"lora: a run with adapters trains language_model alone, but learning_rates name {', '.join(rates)}"
            )


Recipe = TuningRecipe | UpsamplerRecipe
STAGES: dict[str, type[Any]] = {"upsampler": UpsamplerRecipe, "align": TuningRecipe, "instruct": TuningRecipe}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (TuningRecipe, UpsamplerRecipe)}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe and apply overrides.

    Args:
        name: name of a shipped recipe, or path of a YAML file.
        overrides: `key=value` with dotted keys (`data.train.0.path`) and values in YAML.

    Raises:
        ValueError: the recipe does not exist, or a value in it or in the overrides is invalid.
    """
    values, named = read_named_values(name, overrides)
    recipe = build_recipe(values)
    if not isinstance(recipe, TuningRecipe):
        return recipe
    recipe = _with_optional_groups(recipe, named)
    return _without_unused_upsampler(_with_named_projector(recipe, named), named)


def _with_optional_groups(recipe: TuningRecipe, named: Set[str]) -> TuningRecipe:
    """Make the parameter groups optional whose rates come from a shipped recipe and that not every projector has.

    Args:
        recipe: recipe as merged.
        named: dotted keys that the user names, in files or overrides.
    """
    if "optimization.optional_groups" in named:
        return recipe
    rates = recipe.optimization.learning_rates
    inherited = [group for group in rates if f"optimization.learning_rates.{group}" not in named]
    groups = tuple(group for group in inherited if group in NOT_IN_EVERY_MODEL)
    return replace(recipe, optimization=replace(recipe.optimization, optional_groups=groups))


def _with_named_projector(recipe: TuningRecipe, named: Set[str]) -> TuningRecipe:
    """Complete the config of a projector that replaces that of `start`: values not named are those of `start`.

    Args:
        recipe: recipe as merged.
        named: dotted keys that the user names, in files or overrides.

    Raises:
        ValueError: a named value of the config would have no effect.
    """
    keys = sorted(key for key in named if key.startswith("model.config."))
    if recipe.model.start is None or not keys or recipe.model.config == ModelConfig():
        return recipe
    prefix = "model.config.projector."
    unused = [key for key in keys if not key.startswith(prefix) and f"{key}." != prefix]
    if unused or "projector" not in recipe.model.renew:
        advice = "" if unused else "name model.renew=[projector] for a new projector, or "
        raise ValueError(
            f"{(unused or keys)[-1]} has no effect: model.start ({recipe.model.start}) brings its own config; {advice}"
            "set model.start to null and name model.language_model, model.vision_tower and model.template"
        )
    of_start = start_config(recipe.model.start)
    values = {key: getattr(of_start.projector, key) for key in asdict(recipe.model.config.projector)}
    # Named, so that the config is not the default, which stands for that of `start`.
    values["num_attention_heads"] = of_start.projector.num_attention_heads or (
        of_start.text_config.hidden_size // HEAD_SIZE
    )
    own = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    values |= {key: getattr(recipe.model.config.projector, key) for key in own}
    projector = type(recipe.model.config.projector)(**values)
    return replace(recipe, model=replace(recipe.model, config=replace(recipe.model.config, projector=projector)))


def start_config(start: str) -> LlavaUhdConfig:
    """Return the config of a complete model, of a built-in one, a folder or a hub id."""
    from ..loading import resolve

    return LlavaUhdConfig.from_pretrained(resolve(start))


def _without_unused_upsampler(recipe: TuningRecipe, named: Set[str]) -> TuningRecipe:
    """Leave out the up-sampler of a shipped recipe where the projector that the user names has no JBU pyramid.

    Args:
        recipe: recipe as merged.
        named: dotted keys that the user names, in files or overrides.
    """
    projector = recipe.model.config.projector
    levels = projector.levels if projector.type == "hiwin" else (1, projector.input_level)
    has_jbu = projector.upsampler == "jbu" and max(levels) > 1
    changed = any(key.startswith("model.config.projector.") for key in named)
    if recipe.model.upsampler is None or has_jbu or not changed or "model.upsampler" in named:
        return recipe
    logger.warning("model.upsampler is left out: a projector %s", _described(projector))
    return replace(recipe, model=replace(recipe.model, upsampler=None))


def _described(projector: LlavaUhdProjectorConfig) -> str:
    levels = f"levels {list(projector.levels)}" if projector.type == "hiwin" else f"level {projector.input_level}"
    return f"of type {projector.type} with {levels} and upsampler {projector.upsampler} has no JBU up-sampler"


def build_recipe(values: Any) -> Recipe:
    """Build a recipe from nested dicts, with today's or former names of keys.

    Raises:
        ValueError: a key is unknown or missing, or a value is invalid; names each.
    """
    stage = values.get("stage") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or not isinstance(stage, str) or stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    try:
        return _ADAPTERS[STAGES[stage]].validate_python(rename_keys(dict(values)))
    except ValidationError as error:
        raise ValueError(describe(error, STAGES[stage], list(_ADAPTERS))) from error


def recipe_text(recipe: Recipe) -> str:
    """Return the complete recipe as YAML, including defaults."""
    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
