"""Run folder, which stores the recipe of its run."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..files import read_json, write_json, write_text
from .recipe import Recipe, build_recipe, recipe_text

RECIPE_FILE = "recipe.yaml"
DATA_FILE = "data.json"
# Settings that may change on resume: they do not affect the results.
FREE = (("out",), ("monitoring",), ("checkpoints",), ("data", "workers"))
FREE_IN_TUNING = (("data", "held_out"), ("optimization", "micro_batch"), ("optimization", "optional_groups"))


def check_folder(recipe: Recipe, out: Path, product: str, begun: bool, checkpoint: Path | None = None) -> None:
    """Check that a run may start or resume in a folder.

    Args:
        recipe: recipe of the run.
        out: folder of the run.
        product: name of the output of a finished run.
        begun: True if the folder has a state to resume from.
        checkpoint: checkpoint folder to resume from, which holds a copy of its recipe.

    Raises:
        ValueError: the folder holds a run of another recipe or a finished run, or its recipe cannot be read.
    """
    if (out / product).exists():
        raise ValueError(f"{out} holds a finished run, it gave {out / product}: name another out")
    file = out / RECIPE_FILE
    if checkpoint is not None and (checkpoint / RECIPE_FILE).is_file():
        file = checkpoint / RECIPE_FILE
    if begun and file.is_file():
        _check_recipe(recipe, out, file)


def check_finished(recipe: Recipe, out: Path) -> None:
    """Check that the finished run of a folder is that of a recipe.

    Raises:
        ValueError: it is of another recipe, or its recipe is missing or cannot be read.
    """
    if not (out / RECIPE_FILE).is_file():
        raise ValueError(f"{out} has no {RECIPE_FILE} that says which run it holds: name another out")
    _check_recipe(recipe, out, out / RECIPE_FILE)


def _check_recipe(recipe: Recipe, out: Path, file: Path) -> None:
    before, now = _read(file), yaml.safe_load(recipe_text(recipe))
    for way in FREE if recipe.stage == "upsampler" else FREE + FREE_IN_TUNING:
        _forget(before, way)
        _forget(now, way)
    if before != now:
        raise ValueError(f"{out} holds the run of another recipe ({_difference(before, now)}): name another out")


def claim_folder(recipe: Recipe, out: Path) -> None:
    """Create and lock the run folder, and write the recipe into it."""
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()  # of a killed run
    write_text(out / RECIPE_FILE, recipe_text(recipe))


def check_data(out: Path, fingerprint: dict[str, Any], begun: bool) -> None:
    """Check that a run resumes on the data that it began with.

    Args:
        out: folder of the run.
        fingerprint: number of samples and digest of the data as it is now.
        begun: True if the run resumes; a run of earlier versions has no record and is not checked.

    Raises:
        ValueError: the data changed, or the record is damaged.
    """
    file = out / DATA_FILE
    before = read_json(file) if begun and file.exists() else fingerprint
    if not isinstance(before, dict) or not {"samples", "sha256"} <= before.keys():
        raise ValueError(f"{file} is damaged: restore it, or remove it to resume on the data as it is")
    if before != fingerprint:
        raise ValueError(
            f"the training data changed since the run in {out} began: {before['samples']} samples (sha256 "
            f"{str(before['sha256'])[:12]}) then, {fingerprint['samples']} ({fingerprint['sha256'][:12]}) now; "
            "restore it, name another out, or remove data.json to resume on the data as it is"
        )


def record_data(out: Path, fingerprint: dict[str, Any]) -> None:
    """Write the data of a run into its folder, for `check_data`."""
    write_json(out / DATA_FILE, fingerprint)


def _read(file: Path) -> dict[str, Any]:
    """Read a run's recipe, completed with the defaults of values that are newer than it.

    Raises:
        ValueError: the file is damaged.
    """
    advice = f"restore it, remove it to resume with the recipe given now, or name another out than {file.parent}"
    try:
        return yaml.safe_load(recipe_text(build_recipe(yaml.safe_load(file.read_text(encoding="utf-8")))))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}): {advice}") from error


def _forget(values: dict[str, Any], way: tuple[str, ...]) -> None:
    for step in way[:-1]:
        values = values.get(step, {})
    values.pop(way[-1], None)


def _difference(before: Any, now: Any, where: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return _difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    return f"{where} was {json.dumps(before)} and is {json.dumps(now)}"
