"""The verbs `train` and `data` of the command line; `llava_uhd.cli` mounts them.

Only typer is imported here: help answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..distributed import is_main_process, world_size
from ..options import AsJson
from ..terminal import stderr_console

data_app = typer.Typer(
    help="Training data: check it, or make some.", no_args_is_help=True, pretty_exceptions_enable=False
)


def train(
    recipe: Annotated[
        str, typer.Argument(show_default=False, help="A shipped recipe, a YAML file, or: all FAMILY, list.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value...", show_default=False)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the recipe, what it trains, how long and in what memory.")
    ] = False,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices to plan a dry run for.")] = None,
    benchmarks: Annotated[
        str, typer.Option(help="Benchmarks that `all` ends with, separated by commas; or paper.")
    ] = "synthdoc",
    eval_data: Annotated[Path | None, typer.Option(help="Folder with the benchmarks' data.")] = None,
    eval_limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of a benchmark.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a stage. Killed, it goes on where it stopped; under torchrun or accelerate, ranks share it."""
    given = list(overrides or [])
    if recipe == "list":
        from .recipe import shipped_recipes

        _print({"recipes": shipped_recipes()} if as_json else shipped_recipes())
    elif recipe == "all":
        if not given or "=" in given[0]:
            raise typer.BadParameter("name the family after all, as in: llava-uhd train all tiny")
        _train_all(given[0], given[1:], (benchmarks, eval_data, eval_limit), as_json)
    elif dry_run:
        _show_plan(recipe, given, devices or world_size(), as_json)
    else:
        from .recipe import load_recipe

        done = _run(load_recipe(recipe, given))
        if is_main_process():
            _print(done if as_json else _lines(done))


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

    recipe = load_recipe(name, overrides)
    text = recipe_text(recipe)
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

        _print({"recipe": yaml.safe_load(text), "plan": plan.as_dict()})
    else:
        _print([text.rstrip(), "", *plan.lines()])


def _train_all(
    family: str, overrides: list[str], evaluation: tuple[str, Path | None, int | None], as_json: bool
) -> None:
    """Stages 1 and 2 and the evaluation; a stage that is finished is not run again."""
    from dataclasses import replace

    from .recipe import load_recipe

    stages = ("align", "instruct")
    for override in overrides:
        if override.partition(".")[0] not in stages:
            raise typer.BadParameter(f"begin with the stage, as in align.{override}: {', '.join(stages)}")
    results: dict[str, Any] = {}
    start = None
    for stage in stages:
        own = [override.partition(".")[2] for override in overrides if override.startswith(f"{stage}.")]
        recipe: Any = load_recipe(f"{family}-{stage}", own)
        if start is not None and not any(override.startswith("model.start=") for override in own):
            recipe = replace(recipe, model=replace(recipe.model, start=start))
        start = str(Path(recipe.out) / "model")
        results[stage] = {"model": start, "finished_before": True} if Path(start).is_dir() else _run(recipe)
    results["evaluation"] = _evaluate(str(start), Path(recipe.out) / "results", *evaluation)
    if is_main_process():
        _print(results if as_json else [line for done in results.values() for line in _lines(done)])


def _evaluate(model: str, out: Path, benchmarks: str, data: Path | None, limit: int | None) -> dict[str, Any]:
    from ..distributed import local_device
    from ..evaluation.pipeline import RunOptions, evaluate_task
    from ..evaluation.tasks import SUITES, find_task
    from ..loading import load

    names = SUITES.get(benchmarks) or benchmarks.split(",")
    rows = [find_task(name) for name in names]
    for row in rows:
        row.load(data)
    loaded, processor = load(model, local_device())
    options = RunOptions(limit=limit)
    results = [evaluate_task(row, loaded, processor, data, out / row.name, options, model) for row in rows]
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
        _print([*_lines(found), *problems])
    if report.broken:
        typer.echo(f"error: {report.broken} of {report.samples} samples cannot be used", err=True)
        raise typer.Exit(1)


@data_app.command("synthetic", epilog="Example: llava-uhd data synthetic --out runs/tiny-data --count 4000")
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Documents to train on.")] = 4000,
    held_out: Annotated[int, typer.Option(min=1, help="Documents to measure on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the documents.")] = 0,
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
    app.command(epilog="Example: llava-uhd train vicuna-7b-align --dry-run --devices 8")(train)
    app.add_typer(data_app, name="data")


def _lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name.replace('_', ' '):16} {json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}"
        for name, value in result.items()
        if value is not None and name != "parts"
    ]


def _print(result: dict[str, Any] | list[str]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False) if isinstance(result, dict) else "\n".join(result))
