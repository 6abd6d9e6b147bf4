"""Recipe files: bases, overrides and former names of keys, as nested dicts; `recipe` checks them.

A file may name a `base` (a shipped recipe, or a file beside it) and list its differences; sections are merged key by
key, lists and learning rates are replaced. Its `about` says which source it follows, what it needs and should
reach. Only YAML is imported here, so that `train list` answers at once.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "recipes"
# Mappings that are values, not sections: a recipe that names one replaces that of its base.
REPLACED = ("learning_rates", "columns")
LONGEST_LIST = 3  # former names that a message lists
# Former names of keys, by kind of recipe. Recipes, run folders and overrides with them still load.
FORMER_TUNING = {
    "optimization.epochs": "schedule.epochs",
    "optimization.max_steps": "schedule.max_steps",
    "optimization.schedule": "schedule.type",
    "optimization.warmup": "schedule.warmup",
    "watch.save_every": "checkpoints.save_every",
    "watch.keep": "checkpoints.keep",
    "watch": "monitoring",
    "model.projector": "model.config.projector",
    **{
        f"model.{key}": f"model.config.{key}"
        for key in ("layout", "slice_separator_id", "row_separator_id", "slice_grid", "pad_to_square")
    },
}
FORMER_UPSAMPLER = {
    **{key: f"model.{key}" for key in ("vision_tower", "feature_layer", "highest")},
    **{
        key: f"data.{key}"
        for key in ("images", "held_out", "image_size", "keep_aspect", "resample", "normalization", "workers")
    },
    **{key: f"loss.{key}" for key in ("objective", "jitters", "max_pad", "max_zoom", "downsampler_kernel")},
    **{key: f"loss.{key}" for key in ("projection", "crf", "crf_samples", "crf_jittered_guidance", "tv")},
    "loss_levels": "loss.levels",
    "pictures_per_jitter": "loss.images_per_jitter",
    "batch": "optimization.global_batch",
    **{
        key: f"optimization.{key}"
        for key in ("optimizer", "learning_rate", "learning_rates", "max_grad_norm", "clip_first")
    },
    **{key: f"schedule.{key}" for key in ("epochs", "max_steps")},
    "save_every": "checkpoints.save_every",
    "log_every": "monitoring.log_every",
    "pictures": "monitoring.images_every",  # former name
}


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@dataclass(frozen=True)
class About:
    """Head of a recipe file.

    Attributes:
        follows: stage of the run, and the paper, code or branch that it follows.
        needs: devices, memory and hours, as `train plan` computes them.
        reaches: published figure that a run should reach, with its source.
    """

    follows: str = ""
    needs: str = ""
    reaches: str = ""

    def lines(self) -> list[str]:
        named = (("", self.follows), ("needs: ", self.needs), ("reaches: ", self.reaches))
        return [prefix + text for prefix, text in named if text]


def read_about(name: str) -> About:
    """Return the head of a recipe, empty if it has none.

    Raises:
        ValueError: the recipe does not exist, or its head is not three texts.
    """
    path = _find(name)
    about = _read_yaml(path).get("about") or {}
    accepted = tuple(About.__dataclass_fields__)
    if not isinstance(about, dict) or not all(
        key in accepted and isinstance(text, str) for key, text in about.items()
    ):
        raise ValueError(f"{path}: about must have {', '.join(accepted)}, each a text, got {about!r}")
    return About(**{key: " ".join(text.split()) for key, text in about.items()})


def read_values(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of a recipe with its base and overrides; see `read_named_values`."""
    return read_named_values(name, overrides)[0]


def read_named_values(name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], set[str]]:
    """Return the values of a recipe with its base and overrides, and the keys that the user names.

    Args:
        name: name of a shipped recipe, or path of a YAML file.
        overrides: `key=value` with dotted keys and values in YAML.

    Returns:
        nested values, and the dotted keys that stand in files of the user's or in overrides.

    Raises:
        ValueError: the recipe does not exist or is not YAML, or an override names no place in it.
    """
    renamed: dict[str, str] = {}
    named: set[str] = set()
    values = _with_bases(_find(name), renamed, named, ())
    former = _former_names(values)
    for override in overrides:
        named |= _override(values, override, former, renamed)
    if renamed:
        renames = [f"{before} is {now}" for before, now in renamed.items()]
        more = f" and {len(renames) - LONGEST_LIST} more" if len(renames) > LONGEST_LIST else ""
        logger.warning("former names of keys, which still work: %s%s", ", ".join(renames[:LONGEST_LIST]), more)
    if name in shipped_recipes():
        _forget_other_data(values, [_renamed(override.partition("=")[0], former) for override in overrides])
    return values, named


def _dotted_keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested values, those of sections and of their entries."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted_keys(value, f"{prefix}{key}.")


def rename_keys(values: dict[str, Any], renamed: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the values of a recipe with today's names of keys.

    Args:
        values: nested values of a recipe.
        renamed: receives former and today's name of each key that is renamed.

    Raises:
        ValueError: a value stands under both its names.
    """
    former = _former_names(values)
    result: dict[str, Any] = {}
    for key, value in _leaves(values, former):
        now = _renamed(key, former)
        if now != key and renamed is not None:
            renamed[key] = now
        _put(result, now, value, key)
    return result


def _former_names(values: dict[str, Any]) -> dict[str, str]:
    return FORMER_UPSAMPLER if values.get("stage") == "upsampler" else FORMER_TUNING


def _renamed(key: str, former: dict[str, str]) -> str:
    """Return today's name of a dotted key: the longest former name that it begins with is replaced."""
    for before in sorted(former, key=len, reverse=True):
        if key == before or key.startswith(before + "."):
            return former[before] + key[len(before) :]
    return key


def _leaves(values: dict[str, Any], former: dict[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; a mapping is divided where a former name lies below it."""
    for key, value in values.items():
        place = f"{prefix}{key}"
        if isinstance(value, dict) and value and any(before.startswith(f"{place}.") for before in former):
            yield from _leaves(value, former, f"{place}.")
        else:
            yield place, value


def _put(result: dict[str, Any], key: str, value: Any, named: str) -> None:
    *way, last = key.split(".")
    place = result
    for step in way:
        place = place.setdefault(step, {})
        if not isinstance(place, dict):
            raise ValueError(f"{named}: {step} has no values below it")
    present = place.get(last)
    if isinstance(value, dict):
        both = [f"{key}.{name}" for name in value if isinstance(present, dict) and name in present]
        place[last] = {**present, **value} if isinstance(present, dict) else dict(value)
    else:
        both = [key] if last in place else []
        place[last] = value
    if both:
        raise ValueError(f"{both[0]} is named twice, once by its former name")


def _find(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ValueError: there is none.
    """
    shipped = shipped_recipes()
    if name in shipped:
        return FOLDER / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name or Path(name).is_file():
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {name}" if not path.exists() else f"{name} is not a file")
        return path
    near = get_close_matches(name, shipped, n=1, cutoff=0.0)[0]
    raise ValueError(f"no recipe {name!r}; nearest: {near}; shipped: {', '.join(shipped)}")


def _with_bases(path: Path, renamed: dict[str, str], named: set[str], below: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values of a file merged into those of its base.

    Args:
        path: file of the recipe.
        renamed: receives former and today's names of keys.
        named: receives the dotted keys of files that are not shipped.
        below: files that have this one as their base.

    Raises:
        ValueError: a base does not exist or is its own base.
    """
    if path.resolve() in below:
        raise ValueError(f"{path}: base leads back to the file itself")
    values = _read_yaml(path)
    values.pop("about", None)
    base = values.pop("base", None)
    is_shipped = path.parent == FOLDER
    if base is None:
        values = rename_keys(values, renamed)
        named.update(() if is_shipped else _dotted_keys(values))
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: base must be the name of a recipe or a path, got {base!r}")
    beside = path.parent / base
    try:
        found = beside if beside.is_file() else _find(base)
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from error
    inherited = _with_bases(found, renamed, named, (*below, path.resolve()))
    if isinstance(values.get("stage", ""), str):
        values = {"stage": inherited.get("stage"), **values}
    values = rename_keys(values, renamed)
    named.update(() if is_shipped else _dotted_keys(values))
    return _merged(inherited, values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and key not in REPLACED
        result[key] = _merged(base[key], value) if both else value
    return result


def _forget_other_data(values: dict[str, Any], keys: Sequence[str]) -> None:
    """Leave out what a shipped recipe says about data that the overrides replace: held-out data, missing folders."""
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


def _override(values: dict[str, Any], override: str, former: dict[str, str], renamed: dict[str, str]) -> set[str]:
    """Set the value of an override, and return the dotted keys that it names.

    Raises:
        ValueError: it is no `key=value`, or names no place in the recipe.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"expected key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{override!r}: the value is not YAML") from error
    # A whole section may hold former names: it replaces the section without them, and they replace values elsewhere.
    entries = dict(_leaves({key: value}, former)) if isinstance(value, dict) else {key: value}
    moved = {part: item for part, item in entries.items() if _renamed(part, former) != part}
    if moved and key not in moved:
        kept = {part[len(key) + 1 :]: item for part, item in entries.items() if part not in moved}
        entries = {key: kept, **moved}
    named: set[str] = set()
    for part, item in entries.items():
        now = _renamed(part, former)
        if now != part:
            renamed[part] = now
        _set(values, now, item)
        named |= {now, *_dotted_keys(item, f"{now}.")}
    return named


def _set(values: Any, key: str, value: Any) -> None:
    """Set the value of a dotted key; a number names an entry of a list, or appends to it."""
    *way, last = key.split(".")
    place = values
    for step in way:
        place = _descend(place, step, key)
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
