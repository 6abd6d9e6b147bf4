"""Run the ablation: every row on every task with every seed.

    python -m experiments.ablation --out runs/ablation
    python -m experiments.ablation --out runs/ablation --rows hiwin-1 hiwin-1-both --seeds 0 1 --minutes 20
    python -m experiments.ablation --out runs/ablation --seconds 30      # then at 30 core seconds a run
    python -m experiments.ablation --out experiments/ablation/results --report   # the tables of the committed runs

The folder gets a line in `runs.jsonl` for each finished run, then `results.json`, `tables.md` and `curves.png`.
Stopped at any moment, the same command continues with the runs that are missing; encoded pages and up-samplers are
made once.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from llava_uhd.benchmark.measure import machine
from llava_uhd.files import append_line, drop_partial_line, lock_folder, read_json, write_json
from llava_uhd.loading import load
from llava_uhd.training.assembly import UPSAMPLER_FILE
from llava_uhd.training.recipe import UpsamplerRecipe, load_recipe
from llava_uhd.training.upsampler.training import train_upsampler

from .pages import Pages, encode_pages, load_pages, save_pages, write_slices
from .report import tables, write_report
from .rows import ROWS, STAGE0, TABLES, TASKS
from .tasks import Task, build_task
from .training import Run, run_row

STAGE0_IMAGES, STAGE0_HELD_OUT = 640, 48
STEPS = {"characters": 400, "sub-cells": 300}
COMPARABLE = ("model", "steps", "batch", "pages", "held_out")


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in a folder, and write its report."""
    options = _parser().parse_args(arguments)
    out: Path = options.out
    if options.report:
        print(report(out))
        return
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    with lock_folder(out):
        settings = _settings(options, out / "settings.json")
        runs = finished_runs(out / "runs.jsonl")
        train, held_out = (
            _pages(options.model, part, count, out / f"{part}.pt")
            for part, count in (("train", options.pages), ("held-out", options.held_out))
        )
        tasks = {name: build_task(name, train) for name in options.tasks}
        for name, task_name, seed in _missing(options, runs):
            if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
                print(f"stopped after {options.minutes} minutes; the same command continues", flush=True)
                break
            steps = settings["steps"][task_name]
            if options.seconds is not None:
                steps = _steps_in(options.seconds, name, task_name, runs)
            run = _run(options, name, task_name, tasks[task_name], seed, steps, train, held_out)
            runs.append(run)
            append_line(out / "runs.jsonl", json.dumps(asdict(run)))
            print(f"{name} {task_name} seed {seed}: {run.score:.3f}, {run.core_seconds} core seconds", flush=True)
        if runs:
            write_report(runs, out, settings)
            print(tables(runs))


def report(out: Path) -> str:
    """Write the report of a folder's finished runs, and return its tables; nothing is run.

    Raises:
        SystemExit: the folder has no finished run.
    """
    runs = finished_runs(out / "runs.jsonl")
    if not runs:
        _parser().error(f"--report: {out} has no finished run")
    write_report(runs, out, read_json(out / "settings.json"))
    return tables(runs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.ablation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of pages, up-samplers, runs and the report")
    parser.add_argument("--model", default="tiny", help="model whose vision tower is used: tiny, or a folder like it")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to run; default: all")
    parser.add_argument("--table", choices=TABLES, help="rows of this table, in place of --rows")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: both")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--steps", type=int, help="training steps of a run; default: 400 (characters), 300 (sub-cells)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="core seconds of a run, in place of --steps; the row must have a finished run of --steps, whose time per "
        "step gives the number of steps",
    )
    parser.add_argument("--batch", type=int, default=8, help="pages of a step; default: 8")
    parser.add_argument("--pages", type=int, default=640, help="pages to train on; default: 640")
    parser.add_argument("--held-out", type=int, default=60, help="pages to measure on; default: 60")
    parser.add_argument("--minutes", type=float, help="start no further run after this time; default: no limit")
    parser.add_argument("--report", action="store_true", help="write the report of the finished runs, and run nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch; default: 1")
    return parser


def _missing(options: argparse.Namespace, runs: list[Run]) -> list[tuple[str, str, int]]:
    """Return the (row, task, seed) that are not in a folder, every row with one seed before the next seed."""
    names = TABLES[options.table].rows if options.table else options.rows
    budget = _budget(options.seconds)
    present = {run.key for run in runs}
    return [
        (name, task, seed)
        for seed in options.seeds
        for name in names
        for task in options.tasks
        if task in ROWS[name].tasks and (name, task, seed, budget) not in present
    ]


def _run(
    options: argparse.Namespace,
    name: str,
    task_name: str,
    task: Task,
    seed: int,
    steps: int,
    train: Pages,
    held_out: Pages,
) -> Run:
    row = ROWS[name]
    upsampler = None if row.stage0 is None else stage0(options.out, options.model, row.stage0)
    budget = _budget(options.seconds)
    return run_row(name, row, task_name, task, seed, budget, steps, options.batch, train, held_out, upsampler)


def _budget(seconds: float | None) -> str:
    return "steps" if seconds is None else f"{seconds:g} s"


def _steps_in(seconds: float, name: str, task: str, runs: list[Run]) -> int:
    """Return the number of training steps of a row in a number of core seconds.

    Raises:
        SystemExit: the row has no finished run of equal steps.
    """
    timed = [run for run in runs if (run.row, run.task, run.budget) == (name, task, "steps")]
    if not timed:
        raise SystemExit(f"--seconds: {name} has no run of equal steps on {task} yet: run it without --seconds first")
    return max(round(seconds * sum(run.steps for run in timed) / sum(run.core_seconds for run in timed)), 1)


def _settings(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Return what makes the runs of a folder comparable; refuse other settings than those it was begun with."""
    now = {name: getattr(options, name) for name in COMPARABLE}
    now["steps"] = STEPS if options.steps is None else dict.fromkeys(TASKS, options.steps)
    before = read_json(file) if file.is_file() else {**now, "machine": machine(torch.device("cpu"))}
    differing = [
        f"--{name.replace('_', '-')} was {before[name]} and is {now[name]}"
        for name in COMPARABLE
        if before[name] != now[name]
    ]
    if differing:
        _parser().error(f"{file.parent} holds other runs ({'; '.join(differing)}): name another --out")
    write_json(file, before)
    return before


def finished_runs(file: Path) -> list[Run]:
    """Return the runs of a folder; a line that was cut short is dropped."""
    if not file.is_file():
        return []
    drop_partial_line(file)
    runs = [Run(**json.loads(line)) for line in file.read_text().splitlines()]
    if not any(run.budget == "seconds" for run in runs):
        return runs
    # As earlier versions wrote it: one number of core seconds a folder, in its settings.
    budget = _budget(read_json(file.with_name("settings.json"))["seconds"])
    return [replace(run, budget=budget) if run.budget == "seconds" else run for run in runs]


def _tower(model: str) -> PreTrainedModel:
    return load(model, "cpu", "float32")[0].model.vision_tower


def _pages(model: str, part: str, count: int, file: Path) -> Pages:
    if not file.is_file():
        print(f"encoding {count} pages: {part}", flush=True)
        save_pages(encode_pages(_tower(model), part, count), file)
    return load_pages(file)


def stage0(out: Path, model: str, name: str) -> str:
    """Return the folder of an up-sampler of `STAGE0`; train it if it is missing, on slices of pages.

    Args:
        out: folder of the ablation.
        model: model whose tower is used.
        name: name in `STAGE0`.
    """
    folder = out / f"upsampler-{name}"
    overrides = STAGE0[name]
    if (folder / UPSAMPLER_FILE).is_file():
        return str(folder)
    if overrides is None:
        folder.mkdir(exist_ok=True)
        projector: Any = load(model, "cpu", "float32")[0].model.multi_modal_projector
        weights = projector.upsampler.state_dict()
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / UPSAMPLER_FILE)
        return str(folder)
    images = out / "slices"
    if not images.is_dir():
        unfinished = out / "slices.unfinished"
        write_slices(unfinished, "slices", STAGE0_IMAGES + STAGE0_HELD_OUT)
        unfinished.rename(images)
    values = {
        "out": folder,
        "model.vision_tower": model,
        "data.images": images,
        "data.held_out": STAGE0_HELD_OUT,
        "data.keep_aspect": False,
        "data.workers": 0,
        "schedule.epochs": 8,
        "checkpoints.save_every": 50,
        "monitoring.images_every": 0,
        **overrides,
    }
    recipe = load_recipe(
        "tiny-upsampler", [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
    )
    assert isinstance(recipe, UpsamplerRecipe)
    print(json.dumps(train_upsampler(recipe).as_dict()), flush=True)
    return str(folder)


if __name__ == "__main__":
    main()
