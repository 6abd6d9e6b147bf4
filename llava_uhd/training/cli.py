"""The verbs `train` and `data` of the command line; `llava_uhd.cli` mounts them.

Only typer is imported here: help answers at once.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..distributed import is_main_process, world_size
from ..options import AsJson
from ..terminal import note, stderr_console
from .sweep_cli import sweep
from .upsampler.cli import upsampler_app

if TYPE_CHECKING:
    from ..evaluation.tasks import Task

data_app = typer.Typer(
    help="Training data: check it, or make some.", no_args_is_help=True, pretty_exceptions_enable=False
)


class _TrainGroup(TyperGroup):
    """The verbs of `train`; `train RECIPE`, as before there were verbs, is `train run RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            recipe = next((argument for argument in args if not argument.startswith("-")), "RECIPE")
            verb = "plan" if "--dry-run" in args else "run"
            note(f"deprecated: `train RECIPE`; write `llava-uhd train {verb} {recipe}`")
            args = ["run", *args]
        return super().parse_args(ctx, args)


train_app = typer.Typer(
    cls=_TrainGroup,
    help="Train by recipes: list, plan, run, init; all stages of a family in one go.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[str, typer.Argument(show_default=False, help="A shipped recipe or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key=value...", show_default=False)]
Devices = Annotated[int | None, typer.Option(min=1, help="Devices to plan for. Default: those of the launcher, or 1.")]


@train_app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """Print the shipped recipes: the source each follows, what it needs and what it should reach."""
    from .recipe_files import read_about, shipped_recipes

    heads = {name: read_about(name) for name in shipped_recipes()}
    if as_json:
        _print({"recipes": list(heads), "about": {name: about.__dict__ for name, about in heads.items()}})
    else:
        _print([line for name, about in heads.items() for line in (name, *(f"    {text}" for text in about.lines()))])


@train_app.command("plan", epilog="Example: llava-uhd train plan vicuna-7b-align --devices 8")
def plan(recipe: RecipeName, overrides: Overrides = None, devices: Devices = None, as_json: AsJson = False) -> None:
    """Show the recipe, what it trains, how long it takes and how much memory it needs."""
    _show_plan(recipe, list(overrides or []), devices or world_size(), as_json)


@train_app.command("run", epilog="Example: llava-uhd train run tiny-instruct schedule.epochs=2")
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="As `train plan`.")] = False,
    devices: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Run a stage. Resumes from the newest complete checkpoint; works under torchrun and accelerate."""
    if dry_run:
        _show_plan(recipe, list(overrides or []), devices or world_size(), as_json)
        return
    if devices is not None:
        raise typer.BadParameter("--devices is for the plan of --dry-run: torchrun or accelerate starts more than one")
    from .recipe import load_recipe

    done = _run(load_recipe(recipe, list(overrides or [])))
    if is_main_process():
        _print(done if as_json else _lines(done))


@train_app.command("all", epilog="Example: llava-uhd train all tiny instruct.schedule.epochs=2")
def run_all(
    family: Annotated[str, typer.Argument(show_default=False, help="Family of recipes, such as tiny or vicuna-7b.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="stage.key=value...", show_default=False)] = None,
    benchmarks: Annotated[
        str, typer.Option(help="Tasks of the evaluation at the end, separated by commas; or paper.")
    ] = "synthdoc",
    eval_data: Annotated[Path | None, typer.Option(help="Folder with the tasks' data.")] = None,
    eval_limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of a task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run align, instruct and the evaluation; a stage that is finished is not run again."""
    if "=" in family:
        raise typer.BadParameter("name the family after all, as in: llava-uhd train all tiny")
    _train_all(family, list(overrides or []), (benchmarks, eval_data, eval_limit), as_json)


@train_app.command("init", epilog="Example: llava-uhd train init my-run vicuna-7b-instruct --nodes 8 --gpus 8")
def init(
    folder: Annotated[Path, typer.Argument(show_default=False, help="Folder to write.")],
    recipe: RecipeName,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a recipe and the Slurm scripts that launch it (torchrun, accelerate with FSDP2, evaluation)."""
    from .launch_files import write_launch_files

    files = [str(file) for file in write_launch_files(folder, recipe, list(overrides or []), nodes, gpus, overwrite)]
    _print({"files": files} if as_json else files)


train_app.command(
    "sweep",
    epilog="Example: llava-uhd train sweep tiny-align --grid 'schedule.warmup=[0.03, 0.1]' --out runs/sweep",
)(sweep)


def _run(recipe: Any) -> dict[str, Any]:
    """Runs a stage of any kind. What stops a run is one clear line for the user, as any failure is."""
    from .watch import RunStopped

    try:
        if recipe.stage == "upsampler":
            from .upsampler.training import train_upsampler

            return train_upsampler(recipe).as_dict()
        from .tuning import train_stage

        return train_stage(recipe).as_dict()
    except RunStopped as error:
        raise ValueError(f"the run stopped: {error}") from error


def _show_plan(name: str, overrides: list[str], devices: int, as_json: bool) -> None:
    from .recipe import TuningRecipe, load_recipe, recipe_text
    from .recipe_files import read_about

    recipe = load_recipe(name, overrides)
    text, about = recipe_text(recipe), read_about(name)
    if isinstance(recipe, TuningRecipe):
        from .data.sources import open_source
        from .plan import make_plan

        present = recipe.data.train and all(Path(source.path).expanduser().exists() for source in recipe.data.train)
        weighted = ((source.weight, len(open_source(source))) for source in recipe.data.train if present)
        samples = sum(round(weight * size) for weight, size in weighted) or None
        plan: Any = make_plan(recipe, devices, samples)
    else:
        from .upsampler.plan import make_plan as plan_upsampler

        plan = plan_upsampler(recipe, devices)
    if as_json:
        import yaml

        _print({"recipe": yaml.safe_load(text), "about": about.__dict__, "plan": plan.as_dict()})
    else:
        head = [f"# {line}" for line in about.lines()]
        _print([*head, text.rstrip(), "", *plan.lines()])


def _train_all(
    family: str, overrides: list[str], evaluation: tuple[str, Path | None, int | None], as_json: bool
) -> None:
    """Stages 1 and 2 and the evaluation; a stage that is finished is not run again."""
    from dataclasses import replace

    from .folder import check_finished
    from .recipe import load_recipe

    stages = ("align", "instruct")
    for override in overrides:
        if override.partition(".")[0] not in stages:
            raise typer.BadParameter(f"begin with the stage, as in align.{override}: {', '.join(stages)}")
    recipes: dict[str, Any] = {}
    start = None
    for stage in stages:
        own = [override.partition(".")[2] for override in overrides if override.startswith(f"{stage}.")]
        recipe: Any = load_recipe(f"{family}-{stage}", own)
        if start is not None and not any(override.startswith("model.start=") for override in own):
            recipe = replace(recipe, model=replace(recipe.model, start=start))
        recipes[stage], start = recipe, str(Path(recipe.out) / "model")
    benchmarks, data, limit = evaluation
    tasks = _ready_tasks(benchmarks, data)
    results: dict[str, Any] = {}
    finished = {stage: Path(recipe.out) for stage, recipe in recipes.items() if (Path(recipe.out) / "model").is_dir()}
    for stage, out in finished.items():
        check_finished(recipes[stage], out)
        note(f"{stage}: {out} holds this stage, finished")
    for stage, recipe in recipes.items():
        trained = str(Path(recipe.out) / "model")
        results[stage] = {"model": trained, "finished_before": True} if stage in finished else _run(recipe)
    results["evaluation"] = _evaluate(str(start), Path(recipe.out) / "results", tasks, data, limit)
    if is_main_process():
        _print(results if as_json else [line for done in results.values() for line in _lines(done)])


def _ready_tasks(benchmarks: str, data: Path | None) -> list["Task"]:
    """Return the tasks of a suite or of names separated by commas, whose data can be read.

    Raises:
        ValueError: there is no such task, or its data lacks a file.
    """
    from ..evaluation.tasks import find_task, suite_names

    tasks = [find_task(name) for name in suite_names(benchmarks)]
    for task in tasks:
        task.load(data)
    return tasks


def _evaluate(model: str, out: Path, tasks: list["Task"], data: Path | None, limit: int | None) -> dict[str, Any]:
    from ..distributed import local_device
    from ..evaluation.pipeline import RunOptions, evaluate_task
    from ..loading import load

    loaded, processor = load(model, local_device())
    options = RunOptions(limit=limit)
    results = [evaluate_task(task, loaded, processor, data, out / task.name, options, model) for task in tasks]
    return {result["benchmark"]: result["headline"] for result in results if result is not None}


@data_app.command("check", epilog="Example: llava-uhd data check train.json --images images --model tiny")
def check(
    source: Annotated[
        str,
        typer.Argument(
            show_default=False, help="JSON or JSONL, a tar or a folder of tars, Parquet, a saved dataset or a hub id."
        ),
    ],
    images: Annotated[str, typer.Option(help="Folder that image paths start from.")] = ".",
    model: Annotated[str | None, typer.Option(help="Count tokens as this model's processor does.")] = None,
    max_slices: Annotated[int | None, typer.Option(min=1, help="Most slices per image. Default: as trained.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Of a table: what a column is for, as in question=query. Repeatable.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    subset: Annotated[str | None, typer.Option(help="Configuration of a dataset on the hub.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Write a line with hashes and tokens for each sample.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count samples and tokens; find missing and broken images and whatever does not fit: exit code 1."""
    if max_slices is not None and model is None:
        raise typer.BadParameter("--max-slices is for the tokens of a model: name it with --model")
    from ..loading import load_processor
    from .data.check import check_source
    from .recipe import Source

    with stderr_console().status(f"checking {source}") as status:
        report = check_source(
            Source(source, images, columns=_mapping(columns or []), split=split, subset=subset),
            load_processor(model) if model else None,
            max_slices,
            manifest,
            show=lambda done, total: status.update(f"checking {source}: {done} of {total}"),
        )
    found = report.as_dict()
    if as_json:
        _print(found)
    else:
        problems = [f"sample {problem['index']}: {problem['reason']}" for problem in found.pop("problems")]
        if (others := found["broken"] - len(problems)) > 0:
            problems.append(f"and {others} more; --manifest FILE lists all")
        _print([*_lines(found), *problems])
    if report.broken:
        typer.echo(f"error: {report.broken} of {report.samples} samples cannot be used", err=True)
        raise typer.Exit(1)


@data_app.command("synthetic", epilog="Example: llava-uhd data synthetic --out runs/tiny-data --count 4000")
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Documents to train on.")] = 4000,
    held_out: Annotated[int, typer.Option(min=1, help="Documents to measure on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the documents; those held out have the next one.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Render documents with questions and answers, in the format of the tiny recipes."""
    from .data.synthetic import write_documents

    # The benchmark's documents have a seed of their own: these are neither.
    write_documents(out / "train", count, seed)
    write_documents(out / "held-out", held_out, seed + 1)
    done = {"train": str(out / "train"), "held_out": str(out / "held-out"), "documents": count + held_out}
    _print(done if as_json else _lines(done))


def _mapping(columns: list[str]) -> dict[str, str]:
    for column in columns:
        if not all(column.partition("=")):
            raise typer.BadParameter(f"expected MEANING=COLUMN, got {column!r}")
    return {column.partition("=")[0]: column.partition("=")[2] for column in columns}


def mount(app: typer.Typer) -> None:
    """Adds the verbs to an app."""
    app.add_typer(train_app, name="train")
    app.add_typer(data_app, name="data")
    app.add_typer(upsampler_app, name="upsampler")


def _lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name.replace('_', ' '):16} {json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}"
        for name, value in result.items()
        if value is not None and name != "parts"
    ]


def _print(result: dict[str, Any] | list[str]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False) if isinstance(result, dict) else "\n".join(result))
