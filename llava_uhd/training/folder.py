"""A run's folder belongs to one recipe, which stands in it."""

import json
from pathlib import Path
from typing import Any

import yaml

from .recipe import Recipe, recipe_text

RECIPE_FILE = "recipe.yaml"
# What may change between two starts of a run: it does not touch the numbers.
FREE = (
    ("out",),
    ("watch",),
    ("data", "workers"),
    ("data", "held_out"),
    ("optimization", "micro_batch"),
    ("workers",),
    ("log_every",),
    ("save_every",),
    ("pictures",),
)


def check_folder(recipe: Recipe, out: Path, product: str, begun: bool) -> None:
    """Whether a run may go on, or begin, in a folder.

    Args:
        recipe: of the run.
        out: its folder.
        product: name of what a finished run leaves in it.
        begun: there is something in it to go on from.

    Raises:
        ValueError: it holds the begun run of another recipe, or a finished one.
    """
    if (out / product).exists():
        raise ValueError(f"{out} holds a finished run, it gave {out / product}: name another out")
    file = out / RECIPE_FILE
    if begun and file.is_file():
        before, now = yaml.safe_load(file.read_text()), yaml.safe_load(recipe_text(recipe))
        for way in FREE:
            _forget(before, way)
            _forget(now, way)
        if before != now:
            raise ValueError(f"{out} holds the run of another recipe ({_difference(before, now)}): name another out")


def claim_folder(recipe: Recipe, out: Path) -> None:
    """Makes the folder and puts the recipe into it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RECIPE_FILE).write_text(recipe_text(recipe))


def _forget(values: dict[str, Any], way: tuple[str, ...]) -> None:
    for step in way[:-1]:
        values = values.get(step, {})
    values.pop(way[-1], None)


def _difference(before: Any, now: Any, where: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return _difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    return f"{where} was {json.dumps(before)} and is {json.dumps(now)}"
