r"""Sweeps: a grid of overrides x seeds over recipes, run locally or as a SLURM job array, with one table at the end.

    llava-uhd train sweep tiny-align --grid 'optimization.learning_rates.projector=[1e-3, 3e-3]' --seeds 0,1,2 \\
        --out runs/sweep

Every cell of the grid is one `train run` with an output folder of its own below `<out>/cells`. Nothing but those
folders says what is finished, so the same command resumes a sweep, and the table depends on them alone.
"""

import ctypes
import itertools
import json
import math
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from ..files import read_json, write_json, write_text
from .recipe import TuningRecipe, load_recipe

PRODUCTS = ("model", "upsampler.safetensors")  # of a finished run: stages 1 and 2, stage 0
# 97.5 % quantiles of Student's t by degrees of freedom, from 1.
T_QUANTILES = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
PR_SET_PDEATHSIG = 1

SBATCH = """#!/bin/bash
# sbatch {file}: {cells} runs, at most {jobs} at a time. Submit it again to resume runs that ended early; then run the
# same command as before without --slurm for the table.
#SBATCH --job-name=sweep
#SBATCH --array=0-{last}%{jobs}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --requeue
#SBATCH --output={out}/logs/%a-%A.log
set -euo pipefail
cd {folder}
export OMP_NUM_THREADS=1
{command} --cell "$SLURM_ARRAY_TASK_ID"
"""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        recipe: name or path of the recipe.
        values: values of the grid, by key.
        seed: seed of the run.
        overrides: all overrides of the run, its folder among them.
        out: folder of the run.
    """

    recipe: str
    values: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]
    out: Path

    @property
    def finished(self) -> bool:
        """True if the run has written its output."""
        return any((self.out / product).exists() for product in PRODUCTS)


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
        out: folder of the sweep.
        recipes: names or paths of the recipes.
        overrides: overrides of every run, `key=value`.
        grid: values of each key, in the order of the table.
        seeds: seeds of every setting.
        metric: `eval_loss`, `loss` or another key of `log.jsonl`, whose last value counts; or a dotted path into the
            `quality.json` of stage 0 that begins with `quality`. None takes `eval_loss` where all recipes hold
            data out, and `loss` otherwise.
    """

    out: Path
    recipes: tuple[str, ...]
    overrides: tuple[str, ...]
    grid: dict[str, list[Any]]
    seeds: tuple[int, ...]
    metric: str | None = None

    def cells(self) -> list[Cell]:
        """Return the runs: by recipe, then by grid values, then by seed."""
        found: list[Cell] = []
        settings = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        for recipe, values, seed in itertools.product(self.recipes, settings, self.seeds):
            out = self.out / "cells" / f"{len(found):03}-{Path(recipe).stem}-seed{seed}"
            own = [f"{key}={json.dumps(value)}" for key, value in values.items()]
            overrides = (*self.overrides, *own, f"seed={seed}", f"out={json.dumps(str(out))}")
            found.append(Cell(recipe, values, seed, overrides, out))
        return found

    def claim(self) -> None:
        """Check every run's recipe, and write `sweep.json`.

        Raises:
            ValueError: a recipe is wrong, a run is there twice, or the folder holds another sweep.
        """
        for name, values in (("recipe", self.recipes), ("seed", self.seeds), *self.grid.items()):
            # Two runs of one setting and seed are the same: as two they would narrow the interval.
            texts = [json.dumps(value) for value in values]
            if twice := [text for place, text in enumerate(texts) if text in texts[:place]]:
                raise ValueError(f"{name} {twice[0]} is given twice: its runs would count twice")
        for override in self.overrides:
            if (key := override.partition("=")[0]) in ("seed", "out"):
                raise ValueError(f"{override}: a sweep sets {key} of every run itself (--seeds, --out)")
        for cell in self.cells():
            load_recipe(cell.recipe, cell.overrides)
        description = json.loads(json.dumps({**asdict(self), "out": None}))
        file = self.out / "sweep.json"
        if file.is_file():
            before = read_json(file)
            # Another metric makes another table of the same runs.
            if differing := [key for key in description if key != "metric" and before.get(key) != description[key]]:
                key = differing[0]
                raise ValueError(
                    f"{self.out} holds another sweep ({key} was {json.dumps(before.get(key))} and is "
                    f"{json.dumps(description[key])}): name another --out"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(file, description)


def parse_grid(entries: Sequence[str]) -> dict[str, list[Any]]:
    """Read the axes of a grid, `key=[value, value]` each, the values in YAML.

    Raises:
        ValueError: an axis is no list of values, or is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--grid {entry!r}: the values are not YAML") from error
        if not key or not equals or not isinstance(values, list) or not values:
            raise ValueError(f"--grid: expected key=[value, value], got {entry!r}")
        if key in grid:
            raise ValueError(f"--grid: {key} is given twice")
        grid[key] = values
    return grid


def run_command(cell: Cell, gpus: int) -> list[str]:
    """Return the command that runs a cell: one process, or torchrun on a number of GPUs."""
    launcher = [sys.executable, "-m"]
    if gpus > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"]
    return [*launcher, "llava_uhd", "train", "run", cell.recipe, *cell.overrides, "--json"]


def _end_with_parent() -> None:
    """Have the kernel terminate this process when the sweep's process ends, whatever ends it (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_cell(sweep: Sweep, cell: Cell, gpus: int = 1) -> str | None:
    """Run a cell that is not finished; its run resumes from its newest checkpoint.

    Returns:
        None, or the last line of what a failed run said.
    """
    if cell.finished:
        return None
    logs = sweep.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{cell.out.name}.log"
    with log.open("ab") as file:
        guard = _end_with_parent if sys.platform == "linux" else None
        code = subprocess.run(run_command(cell, gpus), stdout=file, stderr=file, preexec_fn=guard).returncode
    if code == 0 and cell.finished:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{cell.out.name}: exit code {code}, see {log}: {lines[-1] if lines else 'no output'}"


def run_sweep(sweep: Sweep, jobs: int = 1, gpus: int = 1, show: Callable[[str], None] = print) -> list[str]:
    """Run what is not finished, and write `results.json` and `table.md`.

    Args:
        sweep: the sweep.
        jobs: number of runs at a time.
        gpus: GPUs of each run.
        show: receives a line for each run.

    Returns:
        error messages of the failed runs.
    """
    sweep.claim()
    cells = sweep.cells()
    missing = [cell for cell in cells if not cell.finished]
    show(f"{len(cells)} runs, {len(cells) - len(missing)} finished")

    def run(cell: Cell) -> str | None:
        failure = run_cell(sweep, cell, gpus)
        show(failure or f"{cell.out.name} finished")
        return failure

    with ThreadPoolExecutor(jobs) as pool:
        failures = [failure for failure in pool.map(run, missing) if failure is not None]
    write_results(sweep)
    return failures


def compared_metric(sweep: Sweep) -> str:
    """Return the name of the metric of all runs."""
    if sweep.metric is not None:
        return sweep.metric
    recipes = [load_recipe(cell.recipe, cell.overrides) for cell in sweep.cells()]
    # Losses on held-out and on training data are not to be compared.
    is_held_out = all(isinstance(recipe, TuningRecipe) and recipe.data.held_out for recipe in recipes)
    return "eval_loss" if is_held_out else "loss"


def read_metric(cell: Cell, metric: str) -> float | None:
    """Return the metric of a finished run, None of another.

    Raises:
        ValueError: the run is finished and its files have no such metric.
    """
    if not cell.finished:
        return None
    if metric.split(".")[0] == "quality":
        value: Any = read_json(cell.out / "quality.json")
        for step in metric.split(".")[1:]:
            value = value.get(step) if isinstance(value, dict) else None
    else:
        entries = map(json.loads, (cell.out / "log.jsonl").read_text(encoding="utf-8").splitlines())
        value = next((entry[metric] for entry in reversed(list(entries)) if metric in entry), None)
    if not isinstance(value, int | float):
        raise ValueError(f"{cell.out} has no metric {metric!r}: name another --metric")
    return float(value)


@dataclass(frozen=True)
class Setting:
    """Results of a recipe with values of the grid.

    Attributes:
        recipe: name or path of the recipe.
        values: values of the grid.
        scores: metric by seed, of the finished runs.
        mean: mean over the seeds; None without a finished run.
        interval: half width of the 95 % interval of the mean, by Student's t; None with fewer than two seeds.
        difference: mean difference to the first setting over the seeds that both have; None for the first itself.
        difference_interval: half width of the interval of that difference.
    """

    recipe: str
    values: dict[str, Any]
    scores: dict[int, float]
    mean: float | None
    interval: float | None
    difference: float | None
    difference_interval: float | None


def half_width(values: Sequence[float]) -> float | None:
    """Return the half width of the 95 % interval of a mean by Student's t; None of fewer than two values."""
    if len(values) < 2:
        return None
    degrees = len(values) - 1
    # Beyond the table the quantile of the normal distribution, corrected to first order.
    quantile = T_QUANTILES[degrees - 1] if degrees <= len(T_QUANTILES) else 1.96 * (1 + (1.96**2 + 1) / (4 * degrees))
    return quantile * stdev(values) / math.sqrt(len(values))


def collect(sweep: Sweep) -> list[Setting]:
    """Return the results of every setting, in the order of the grid."""
    scores: dict[tuple[str, str], dict[int, float]] = {}
    values: dict[tuple[str, str], dict[str, Any]] = {}
    metric = compared_metric(sweep)
    for cell in sweep.cells():
        key = cell.recipe, json.dumps(cell.values)
        values[key] = cell.values
        value = read_metric(cell, metric)
        scores.setdefault(key, {})
        if value is not None:
            scores[key][cell.seed] = value
    first = next(iter(scores.values()))
    settings = []
    for index, (key, of_setting) in enumerate(scores.items()):
        paired = [of_setting[seed] - first[seed] for seed in of_setting if seed in first] if index else []
        own = list(of_setting.values())
        settings.append(
            Setting(
                key[0],
                values[key],
                of_setting,
                mean(own) if own else None,
                half_width(own),
                mean(paired) if paired else None,
                half_width(paired),
            )
        )
    return settings


def table_text(sweep: Sweep, settings: Sequence[Setting]) -> str:
    """Return the table as Markdown: a row for each setting, with the intervals of mean and paired difference."""
    names = ["recipe", *sweep.grid, f"{compared_metric(sweep)}, mean", "95 % interval", "to the first", "seeds"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for setting in settings:
        values = [json.dumps(setting.values[key]) for key in sweep.grid]
        cells = [_number(setting.mean), _around(setting.mean, setting.interval)]
        cells += [_difference(setting), f"{len(setting.scores)} of {len(sweep.seeds)}"]
        lines.append(f"| {' | '.join([setting.recipe, *values, *cells])} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _around(value: float | None, width: float | None) -> str:
    return "" if value is None or width is None else f"{value - width:.4f} to {value + width:.4f}"


def _difference(setting: Setting) -> str:
    if setting.difference is None:
        return ""
    width = setting.difference_interval
    return f"{setting.difference:+.4f}" + ("" if width is None else f" ± {width:.4f}")


def write_results(sweep: Sweep) -> list[Setting]:
    """Write `results.json` and `table.md` of what is finished."""
    settings = collect(sweep)
    write_json(sweep.out / "results.json", {"settings": [asdict(setting) for setting in settings]}, indent=1)
    write_text(sweep.out / "table.md", table_text(sweep, settings))
    return settings


def write_job_array(sweep: Sweep, arguments: Sequence[str], jobs: int, gpus: int) -> Path:
    """Write `sweep.sbatch`, a job array with a task for each run.

    Args:
        sweep: the sweep.
        arguments: arguments of the command `llava-uhd` without `--slurm`.
        jobs: number of runs at a time.
        gpus: GPUs of each run.
    """
    sweep.claim()
    (sweep.out / "logs").mkdir(parents=True, exist_ok=True)
    cells = sweep.cells()
    file = sweep.out / "sweep.sbatch"
    text = SBATCH.format(
        file=file,
        cells=len(cells),
        last=len(cells) - 1,
        jobs=jobs,
        gpus=gpus,
        cpus=8 * gpus,
        out=shlex.quote(str(sweep.out)),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(["python", "-m", "llava_uhd", *arguments]),
    )
    write_text(file, text)
    return file
