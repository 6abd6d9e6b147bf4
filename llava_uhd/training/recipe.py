"""Recipes: the complete configuration of a stage in one file.

A recipe is YAML, parsed into the frozen dataclasses below and validated: an unknown key, a value of another type or
contradicting values raise a `ValueError` that names the key. Shipped recipes are in `recipes/`.

    recipe = load_recipe("vicuna-7b-align", ["data.train.0.path=captions.json", "optimization.epochs=2"])
"""

import difflib
import logging
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .limits import TUNING_LIMITS, UPSAMPLER_LIMITS, check_limits

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "recipes"
# Parameters of the up-sampler that may have learning rates of their own.
UPSAMPLER_PARAMETERS = ("range_temp", "sigma_spatial", "range_proj", "fixup_proj")
# Parameter groups that each stage may train. The published recipes of `align` train the first two.
TRAINED_BY = {
    "align": ("projector", "positions", "vision_tower", "upsampler_fixup", "upsampler"),
    "instruct": ("language_model", "projector", "positions", "vision_tower", "upsampler_fixup", "upsampler"),
}


@dataclass(frozen=True)
class ProjectorRecipe:
    """Projector of a model built from pretrained backbones; see `LlavaUhdProjectorConfig`."""

    type: Literal["hiwin", "resampler", "perceiver", "mlp"] = "hiwin"
    levels: tuple[int, ...] = (1, 2, 4)
    upsampler: str = "jbu"
    query_grid: int = 12
    num_attention_heads: int | None = None
    box_dtype: Literal["float32", "bfloat16"] = "float32"
    unshuffle_factor: int = 2
    bin_embedding: bool = False
    aligned_windows: bool = False
    bin_grid: Literal["selective", "fixed", "pyramid"] = "selective"
    input_level: int = 1


@dataclass(frozen=True)
class ModelRecipe:
    """Initial weights: a complete model (`start`), or pretrained backbones.

    Attributes:
        start: `tiny`, a model folder, or a hub id.
        language_model: folder or hub id of a transformers language model; with `vision_tower` and `projector`,
            replaces `start`.
        vision_tower: folder or hub id of CLIP or SigLIP.
        upsampler: up-sampler from stage 0: folder of its run, or the published `clip-large-jbu.ckpt`.
        renew: parameter groups of `start` to reinitialize: `projector`, `upsampler`.
        projector: projector of a model built from pretrained backbones.
        layout: layout of a model built from pretrained backbones, see `LlavaUhdConfig`; likewise the separator ids,
            which are those of Vicuna's "," and newline as in the reference, for Qwen2 too.
        slice_grid: [columns, rows] that every image is cut into by a model built from pretrained backbones; None to
            choose them by the image, as in the reference.
        pad_to_square: True pads the images of such a model to squares.
        template: chat template saved with the trained model: `vicuna` or `qwen`; None keeps that of `start`.
    """

    start: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    upsampler: str | None = None
    renew: tuple[Literal["projector", "upsampler"], ...] = ()
    projector: ProjectorRecipe = field(default_factory=ProjectorRecipe)
    layout: Literal["stitched", "sequential", "unseparated"] = "stitched"
    slice_separator_id: int = 29892
    row_separator_id: int = 13
    slice_grid: tuple[int, ...] | None = None
    pad_to_square: bool = False
    template: Literal["vicuna", "qwen"] | None = None


@dataclass(frozen=True)
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

    path: str
    images: str = "."
    weight: float = 1.0
    manifest: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    split: str = "train"
    subset: str | None = None


@dataclass(frozen=True)
class DataRecipe:
    """Data sources and sample processing.

    Attributes:
        train: sources, mixed by weight.
        held_out: sources of the loss that is measured every `watch.eval_every` steps.
        template: chat template of the training text: `plain` for captions, `tiny` for the built-in model; None takes
            the model's own, which must mark what is learned.
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
    max_length: int = 4096
    max_slices: int | None = None
    vary_images: bool = False
    group: Literal["modality", "none"] = "modality"
    pack: bool = False
    on_bad_sample: Literal["skip", "fatal"] = "skip"
    workers: int = 4
    published_samples: int | None = None
    published_length: int | None = None
    published_views: int | None = None


@dataclass(frozen=True)
class OptimizationRecipe:
    """Optimization settings.

    Attributes:
        learning_rates: learning rate of each trained parameter group; other groups are frozen. See `parts`.
        global_batch: samples per step, over all devices and accumulations.
        micro_batch: samples per device and forward pass.
        max_steps: maximum number of steps, below that of the epochs.
        warmup: warmup steps as a fraction of all steps.
        max_grad_norm: maximum gradient norm; 0 disables clipping.
        precision: `bf16` computes in bfloat16 and keeps what is trained in float32.
        checkpoint_activations: True recomputes the layers' activations in the backward pass.
        loss_chunk: number of positions per chunk of logits.
    """

    learning_rates: dict[str, float]
    global_batch: int
    micro_batch: int
    epochs: float = 1.0
    max_steps: int | None = None
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpoint_activations: bool = True
    loss_chunk: int = 1024


@dataclass(frozen=True)
class LoraRecipe:
    """Adapters of the language model, trained instead of its own weights.

    Attributes:
        targets: regular expression over module names; the default takes the linear layers of the language model alone.
        quantize: `nf4` keeps the frozen language model in four bits (QLoRA; needs the package bitsandbytes).
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: str = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    quantize: Literal["none", "nf4"] = "none"


@dataclass(frozen=True)
class WatchRecipe:
    """Monitoring, checkpoints and stopping.

    Attributes:
        save_every: steps between checkpoints.
        keep: checkpoints kept; at least 2, so that a kill during a save loses none that is whole.
        eval_every: steps between measurements of the held-out loss.
        report_to: tracker of transformers: `none`, `tensorboard`, `wandb`, ...
        max_loss_rise: factor over the lowest smoothed loss at which the run stops; 0 disables the check.
        peak_tflops: peak TFLOPS of one device in `precision`, for the utilization; None if unknown.
    """

    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    eval_every: int = 500
    report_to: str = "none"
    max_loss_rise: float = 5.0
    peak_tflops: float | None = None


@dataclass(frozen=True)
class TuningRecipe:
    """Stages 1 and 2: `align` the projector with captions, then `instruct` (almost) everything."""

    stage: Literal["align", "instruct"]
    out: str
    model: ModelRecipe
    data: DataRecipe
    optimization: OptimizationRecipe
    lora: LoraRecipe | None = None
    watch: WatchRecipe = field(default_factory=WatchRecipe)
    seed: int = 42

    def __post_init__(self) -> None:
        model, data, optimization = self.model, self.data, self.optimization
        check_limits(self, TUNING_LIMITS)
        for name, text in (("out", self.out), ("data.train", "" if any(not s.path for s in data.train) else "x")):
            if not text.strip() or "\0" in text:
                raise ValueError(f"{name} must be a path, got {text!r}")
        parts = (model.language_model, model.vision_tower)
        if (model.start is None) == (None in parts) or (model.start is not None and any(parts)):
            raise ValueError("model: name either start, or both language_model and vision_tower")
        if model.start is None and model.template is None:
            raise ValueError("model.template: a model that is put together needs vicuna or qwen")
        if data.labels == "published" and data.template not in ("qwen", "vicuna", "plain"):
            raise ValueError("data.labels: published labels belong to a template: name data.template")
        allowed = TRAINED_BY[self.stage]
        for part, rate in optimization.learning_rates.items():
            if part not in allowed:
                raise ValueError(
                    f"optimization.learning_rates.{part}: stage {self.stage} trains {', '.join(allowed)} "
                    f"(nearest: {_nearest(part, allowed)})"
                )
            if not rate > 0:
                raise ValueError(f"optimization.learning_rates.{part} must be above 0, got {rate}")
        if not optimization.learning_rates:
            raise ValueError("optimization.learning_rates: name at least one part to train")
        if optimization.global_batch % optimization.micro_batch:
            raise ValueError(
                f"optimization: global_batch {optimization.global_batch} is no multiple of "
                f"micro_batch {optimization.micro_batch}"
            )
        if self.lora is not None:
            try:
                re.compile(self.lora.targets)
            except re.error as error:
                raise ValueError(f"lora.targets is no regular expression ({error}): {self.lora.targets!r}") from error
        if self.lora is not None and set(optimization.learning_rates) != {"language_model"}:
            raise ValueError(
                "lora: a run with adapters trains language_model alone, but learning_rates name "
                + ", ".join(optimization.learning_rates)
            )


@dataclass(frozen=True)
class UpsamplerRecipe:
    """Stage 0: the up-sampler learns to reconstruct the tower's features from several views of an image.

    Attributes:
        vision_tower: folder or hub id of CLIP or SigLIP, or of a model of ours, whose tower is taken.
        highest: level of the highest map: 2, 4 or 8.
        images: folder, searched for pictures at any depth.
        held_out: number of held-out images, the last ones by name.
        image_size: side of the square crop; with `keep_aspect` of the square of equal area.
        keep_aspect: keep a picture's aspect ratio (sides in multiples of the patch) instead of cropping.
        resample: filter of the resizing; `nearest` as published.
        normalization: `imagenet` as published, or `clip`, which is what the model sees later.
        batch: pictures of one step, over all devices.
        optimizer: `nadam` as in the released code, or `adam` as in the paper.
        learning_rates: rates of parameters by name (`range_temp`, `sigma_spatial`, `range_proj`, `fixup_proj`) in
            place of `learning_rate`. Adam moves a scalar by at most rate x steps, so a short run needs larger rates
            for the two scalars to change the kernels.
        objective: `reconstruction` as published: maps moved and pooled down again match the tower's map of the moved
            picture. `closer_look`: maps match the tower's features of the enlarged picture, tile by tile; nothing of
            `jitters` to `crf` below is used.
        loss_levels: `every` level has a loss of its own and gives no gradient to the level below it, as published;
            `highest` trains all levels by the loss of the highest map.
        jitters: views of each picture.
        pictures_per_jitter: pictures of a batch that share their jitters; None for all of a device. The released code
            has eight devices with two pictures each, so two.
        projection: random directions onto which features are compared; 0 compares all channels.
        clip_first: gradients of this many first steps are clipped to `max_grad_norm`.
        crf, tv: weights of these terms; `crf_jittered_guidance` pairs the features with the view they come from,
            where the published code takes the picture without its jitter.
        pictures: steps between logged images of the pyramid; 0 disables logging.
    """

    stage: Literal["upsampler"]
    out: str
    vision_tower: str
    images: str
    highest: Literal[2, 4, 8] = 4
    held_out: int = 32
    image_size: int = 336
    keep_aspect: bool = False
    resample: Literal["nearest", "bicubic"] = "nearest"
    normalization: Literal["imagenet", "clip"] = "imagenet"
    feature_layer: int = -2
    batch: int = 16
    epochs: int = 1
    max_steps: int | None = None
    learning_rate: float = 1e-3
    optimizer: Literal["nadam", "adam"] = "nadam"
    learning_rates: dict[str, float] = field(default_factory=dict)
    objective: Literal["reconstruction", "closer_look"] = "reconstruction"
    loss_levels: Literal["every", "highest"] = "every"
    jitters: int = 2
    pictures_per_jitter: int | None = None
    max_pad: int = 30
    max_zoom: float = 2.0
    downsampler_kernel: int = 14
    projection: int = 30
    crf: float = 0.001
    crf_samples: int = 1000
    crf_jittered_guidance: bool = True
    tv: float = 0.0
    clip_first: int = 10
    max_grad_norm: float = 1e-4
    log_every: int = 10
    save_every: int = 500
    pictures: int = 500
    workers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_limits(self, UPSAMPLER_LIMITS)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name, rate in self.learning_rates.items():
            if name not in UPSAMPLER_PARAMETERS:
                raise ValueError(
                    f"learning_rates.{name}: the up-sampler has {', '.join(UPSAMPLER_PARAMETERS)} "
                    f"(nearest: {_nearest(name, UPSAMPLER_PARAMETERS)})"
                )
            if not rate >= 0:
                raise ValueError(f"learning_rates.{name} must be at least 0, got {rate}")
        if self.pictures_per_jitter is not None and self.pictures_per_jitter < 1:
            raise ValueError(f"pictures_per_jitter must be at least 1, got {self.pictures_per_jitter}")


Recipe = TuningRecipe | UpsamplerRecipe
STAGES: dict[str, type[TuningRecipe] | type[UpsamplerRecipe]] = {
    "upsampler": UpsamplerRecipe,
    "align": TuningRecipe,
    "instruct": TuningRecipe,
}


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe and apply overrides.

    Args:
        name: name of a shipped recipe, or path of a YAML file.
        overrides: `key=value` with dotted keys (`data.train.0.path`) and values in YAML.

    Raises:
        ValueError: the recipe does not exist, or a value in it or in the overrides is invalid.
    """
    known = shipped_recipes()
    if name in known:
        path = FOLDER / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name or Path(name).is_file():
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {name}" if not path.exists() else f"{name} is not a file")
    else:
        raise ValueError(f"no recipe {name!r}; nearest: {_nearest(name, known)}; shipped: {', '.join(known)}")
    values = _read_yaml(path)
    for override in overrides:
        _override(values, override)
    if name in known:
        _forget_other_data(values, overrides)
    return build_recipe(values)


def _forget_other_data(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Leave out what a shipped recipe says about data that the overrides replace: held-out data, missing folders."""
    keys = {override.partition("=")[0] for override in overrides}
    replaced = {key for key in keys if key == "data.train" or key.startswith("data.train.")}
    data = values.get("data")
    if not isinstance(data, dict) or not any(key == "data.train" or key.endswith(".path") for key in replaced):
        return
    if data.get("held_out") and not any(key.startswith("data.held_out") for key in keys):
        data["held_out"] = []
        logger.warning("data.train is not the recipe's own: its held-out data is left out (data.held_out names other)")
    for index, source in enumerate(data["train"] if isinstance(data.get("train"), list) else []):
        if not isinstance(source, dict) or f"data.train.{index}.path" not in keys:
            continue
        images = source.get("images")
        if f"data.train.{index}.images" not in keys and isinstance(images, str) and not Path(images).is_dir():
            del source["images"]


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe's file.

    Raises:
        ValueError: it is not a mapping in YAML.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        values = yaml.safe_load(content.decode(encoding))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ValueError(f"{path} {found}: a recipe is a mapping that begins with its stage")
    return values


def build_recipe(values: Any) -> Recipe:
    """Build a recipe from nested dicts.

    Raises:
        ValueError: a key is unknown or missing, or a value does not fit.
    """
    stage = values.get("stage") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or not isinstance(stage, str) or stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    return _build(STAGES[values["stage"]], values, "")


def recipe_text(recipe: Recipe) -> str:
    """Return the complete recipe as YAML, including defaults."""
    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _override(values: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"expected key=value, got {override!r}")
    *way, last = key.split(".")
    place = values
    for step in way:
        place = _descend(place, step, key)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{override!r}: the value is not YAML") from error
    if isinstance(place, list):
        if last == str(len(place)):
            place.append(value)
        else:
            _descend(place, last, key)
            place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ValueError(f"{key}: {way[-1]} has no values below it")


def _descend(place: Any, step: str, key: str) -> Any:
    if isinstance(place, list):
        if not (step.isascii() and step.isdigit() and int(step) < len(place)):
            raise ValueError(f"{key}: there are {len(place)} entries, no {step!r}")
        return place[int(step)]
    if not isinstance(place, dict):
        raise ValueError(f"{key}: there are no values below {step!r}'s parent")
    if place.get(step) is None:
        place[step] = {}
    return place[step]


def _build(kind: Any, values: Any, where: str) -> Any:
    """Convert and check a value of a type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _build_dataclass(kind, values, where)
    if origin in (Union, types.UnionType):
        if values is None and type(None) in arguments:
            return None
        return _build(next(argument for argument in arguments if argument is not type(None)), values, where)
    if origin is Literal:
        if isinstance(values, bool | float | list | dict) or values not in arguments:
            near = f" (nearest: {_nearest(values, arguments)})" if isinstance(values, str) else ""
            raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, got {values!r}{near}")
        return values
    if origin is tuple:
        if not isinstance(values, list | tuple):
            raise ValueError(f"{where} must be a list, got {values!r}")
        return tuple(_build(arguments[0], value, f"{where}.{index}") for index, value in enumerate(values))
    if origin is dict:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be a mapping, got {values!r}")
        return {str(key): _build(arguments[1], value, f"{where}.{key}") for key, value in values.items()}
    if kind is float and isinstance(values, int | float | str) and not isinstance(values, bool):
        try:
            return float(values)  # YAML reads 1e-3 as text
        except (ValueError, OverflowError):
            pass
    elif isinstance(values, kind) and (kind is bool or not isinstance(values, bool)):
        return values
    raise ValueError(f"{where} must be {kind.__name__}, got {values!r}")


def _build_dataclass(kind: Any, values: Any, where: str) -> Any:
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    hints = get_type_hints(kind)
    names = [entry.name for entry in fields(kind)]
    for key in values:
        if key not in names:
            raise ValueError(f"unknown key {prefix}{key}; nearest: {_nearest_key(f'{prefix}{key}', prefix, names)}")
    for entry in fields(kind):
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{prefix}{entry.name} is missing")
    return kind(**{key: _build(hints[key], value, prefix + key) for key, value in values.items()})


def _nearest_key(key: str, prefix: str, names: Sequence[str]) -> str:
    """Return the known key that is meant: one of this name elsewhere in a recipe, or the most similar one here."""
    last = key.rpartition(".")[2]
    known = [name for kind in (TuningRecipe, UpsamplerRecipe) for name in _all_keys(kind)]
    if not difflib.get_close_matches(last, names, n=1, cutoff=0.8):
        lasts = {name.rpartition(".")[2]: name for name in reversed(known)}
        if similar := difflib.get_close_matches(last, lasts, n=1, cutoff=0.8):
            return lasts[similar[0]]
    return prefix + _nearest(last, names)


def _all_keys(kind: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of a recipe, those of its lists apart."""
    keys = []
    for entry in fields(kind):
        hint = get_type_hints(kind)[entry.name]
        nested = next(
            (part for part in (hint, *get_args(hint)) if is_dataclass(part) and get_origin(hint) is not tuple), None
        )
        keys += [prefix + entry.name] if nested is None else _all_keys(nested, f"{prefix}{entry.name}.")
    return keys


def _nearest(word: Any, words: Sequence[Any]) -> str:
    return difflib.get_close_matches(str(word), [str(other) for other in words], n=1, cutoff=0.0)[0]
