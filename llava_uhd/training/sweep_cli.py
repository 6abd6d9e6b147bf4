"""The verb `train sweep` of the command line."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..options import AsJson
from ..terminal import note


def sweep(
    recipes: Annotated[str, typer.Argument(show_default=False, help="Recipes, separated by commas.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep: runs, logs, table.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value...", show_default=False, help="Overrides of every run.")
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="Axis of the grid, key=[value, value] in YAML. Repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every setting, separated by commas.")] = "0,1,2",
    metric: Annotated[
        str | None,
        typer.Option(
            help="Key of log.jsonl, or quality.LEVEL.jbu.MEASURE for stage 0. Default: eval_loss if all "
            "recipes hold data out, else loss."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each run; more than 1 starts torchrun.")] = 1,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a job array, sweep.sbatch, and run nothing.")] = False,
    cell: Annotated[int | None, typer.Option(min=0, help="Run this cell alone, without the table.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of overrides x seeds over recipes. The same command resumes; one table with intervals at the end."""
    from .sweep import Sweep, parse_grid, run_cell, run_sweep, table_text, write_job_array, write_results

    planned = Sweep(
        out.expanduser().absolute(),
        tuple(name.strip() for name in recipes.split(",")),
        tuple(overrides or ()),
        parse_grid(grid or []),
        _seeds(seeds),
        metric,
    )
    if slurm and cell is not None:
        raise typer.BadParameter("--slurm writes a script for all cells, and --cell runs one: name one of them")
    if slurm:
        arguments = ["train", "sweep", recipes, *planned.overrides, "--out", str(planned.out), "--seeds", seeds]
        arguments += [part for axis in grid or [] for part in ("--grid", axis)]
        arguments += ["--gpus", str(gpus), *(["--metric", metric] if metric else [])]
        file = str(write_job_array(planned, arguments, jobs, gpus))
        typer.echo(json.dumps({"script": file, "runs": len(planned.cells())}) if as_json else f"sbatch {file}")
        return
    if cell is not None:
        cells = planned.cells()
        if cell >= len(cells):
            raise typer.BadParameter(f"there are {len(cells)} cells, from 0, and {cell} is asked for")
        planned.claim()
        if failure := run_cell(planned, cells[cell], gpus):
            raise ValueError(failure)
        return
    failures = run_sweep(planned, jobs, gpus, show=note)
    settings = write_results(planned)
    if as_json:
        typer.echo((planned.out / "results.json").read_text(encoding="utf-8").strip())
    else:
        typer.echo(table_text(planned, settings).rstrip())
    if failures:
        raise ValueError(f"{len(failures)} of {len(planned.cells())} runs failed; the first: {failures[0]}")


def _seeds(text: str) -> tuple[int, ...]:
    """Read seeds separated by commas.

    Raises:
        ValueError: one is no whole number, or stands twice.
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise ValueError(f"--seeds: expected whole numbers separated by commas, got {text!r}") from error
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: {text!r} has a seed twice")
    return seeds
