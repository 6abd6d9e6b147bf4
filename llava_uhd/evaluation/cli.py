"""`llava-uhd eval`: list, run, score, compare and report benchmarks.

What needs no model needs no torch: `list`, `score`, `compare` and `report` answer at once.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..loading import DEFAULT_MODEL
from ..options import AsJson, Device, Dtype, Model, Threads

if TYPE_CHECKING:
    from .tasks import Task

VLMEVALKIT_INSTALL = (
    "git clone https://github.com/open-compass/VLMEvalKit && pip install -e VLMEvalKit rouge-score, "
    "in an environment whose torchvision belongs to its torch (docs/evaluation.md)"
)

app = typer.Typer(
    help="Benchmarks whose every number carries its protocol.", no_args_is_help=True, pretty_exceptions_enable=False
)

Data = Annotated[
    Path | None, typer.Option(help="Folder with the benchmarks' data: `eval list` says what belongs there.")
]
Out = Annotated[Path, typer.Option(help="Folder for predictions, results and reports.")]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Score missing, duplicate and broken answers 0 and say so in the headline."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N questions.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions answered at a time.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes side by side; default: one a core if that pays (a small model on a CPU)."),
]
MaxSlices = Annotated[
    str,
    typer.Option(help="Maximum slices per image: a number, trained, paper (6) or scripts (9, as published runs had)."),
]
MaxSide = Annotated[
    int | None, typer.Option(min=0, help="Scale images to this long side; 0 leaves them. Default: the benchmark's.")
]
Beams = Annotated[int | None, typer.Option(min=1, help="Beams; 1 is greedy. Default: the benchmark's.")]
NewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens. Default: the benchmark's.")]
Images = Annotated[
    Path | None, typer.Option(help="Folder of the images of a file of your own. Default: the file's folder.")
]
Metric = Annotated[
    str | None,
    typer.Option(help="Metric of a file of your own: accuracy, anls, letter, relaxed or vqa. Default: guessed."),
]
Suffix = Annotated[
    str, typer.Option(help="Text after each question of a file of your own, such as the instruction of a benchmark.")
]
Seed = Annotated[int, typer.Option(help="Recorded in the protocol; decoding is deterministic.")]


@app.command("list", epilog="Example: llava-uhd eval list --json")
def list_benchmarks(as_json: AsJson = False) -> None:
    """Show all benchmarks: split, questions, protocol, metric, and where to get the data."""
    from .tasks import PAPER_SUITE, TASKS

    rows = [
        {
            "name": task.name,
            "split": task.split,
            "questions": task.count,
            "folder": task.folder,
            "suffix": task.suffix,
            "max_side": task.max_side,
            "num_beams": task.num_beams,
            "max_new_tokens": task.max_new_tokens,
            "join": task.match_key,
            "metric": task.metric,
            "submission": task.submission,
            "in_paper_suite": task.name in PAPER_SUITE,
            "source": task.source,
            "comparable": task.comparable,
        }
        for task in TASKS.values()
    ]
    if as_json:
        typer.echo(json.dumps({"benchmarks": rows}, ensure_ascii=False))
        return
    for row in rows:
        image = "as it is" if row["max_side"] is None else f"long side {row['max_side']}"
        scored = row["metric"] or f"elsewhere (submission file: {row['submission']})"
        typer.echo(
            f"{row['name']:14} {row['split']}; {row['questions'] or 'varying'} questions; beams {row['num_beams']}, "
            f"{row['max_new_tokens']} new tokens, image {image}; scored by {scored}\n"
            f"{'':14} data in {row['folder']}/: {row['source']}\n"
            f"{'':14} comparable: {row['comparable']}"
        )


@app.command(epilog="Example: llava-uhd eval run docvqa_val chartqa --model tiny --data data --out results")
def run(
    benchmarks: Annotated[
        list[str],
        typer.Argument(metavar="BENCHMARK|FILE...", show_default=False, help="Names of `eval list`, or own files."),
    ],
    out: Out,
    data: Data = None,
    images: Images = None,
    metric: Metric = None,
    suffix: Suffix = "",
    model: Model = DEFAULT_MODEL,
    batch_size: BatchSize = 8,
    max_slices: MaxSlices = "trained",
    max_side: MaxSide = None,
    beams: Beams = None,
    max_new_tokens: NewTokens = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    allow_missing: AllowMissing = False,
    workers: Workers = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer and score benchmarks, or a file of your own (.jsonl, .json, .csv, .tsv, .parquet).

    A killed run resumes; under torchrun or accelerate, ranks share the work.
    """
    from .tasks import parse_max_slices

    slices = parse_max_slices(max_slices)
    rows = [_find_task(name, images, metric, suffix) for name in benchmarks]
    _check_own_options(rows, images, metric, suffix)
    for task in rows:
        task.read_data(data, allow_missing)

    from ..threads import use_threads, wait_passively

    wait_passively()
    import torch

    from ..distributed import local_device
    from ..loading import load, load_calibration
    from .pipeline import RunOptions, evaluate_task

    use_threads(threads)

    torch.manual_seed(seed)
    loaded, processor = load(model, device or local_device(), dtype)
    options = RunOptions(batch_size, slices, max_side, beams, max_new_tokens, limit, seed, allow_missing, workers)
    calibration = load_calibration(model)
    results = [
        evaluate_task(row, loaded, processor, data, out / row.name, options, model, calibration) for row in rows
    ]
    _print_results([result for result in results if result is not None], out, as_json)


@app.command("all", epilog="Example: llava-uhd eval all --suite paper --model tiny --data data --out results")
def run_suite(
    out: Out,
    data: Data = None,
    suite: Annotated[
        str,
        typer.Option(help="paper: the seven benchmarks of the paper; all: every benchmark; or names with commas."),
    ] = "paper",
    model: Model = DEFAULT_MODEL,
    batch_size: BatchSize = 8,
    max_slices: MaxSlices = "trained",
    limit: Limit = None,
    max_new_tokens: NewTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    allow_missing: AllowMissing = False,
    workers: Workers = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Run a whole suite in one go."""
    from .tasks import suite_names

    run(
        suite_names(suite),
        out,
        data,
        model=model,
        batch_size=batch_size,
        max_slices=max_slices,
        limit=limit,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        allow_missing=allow_missing,
        workers=workers,
        threads=threads,
        as_json=as_json,
    )


@app.command(epilog="Example: llava-uhd eval score docvqa_val predictions.jsonl --data data --out results/docvqa_val")
def score(
    benchmark: Annotated[str, typer.Argument(show_default=False)],
    predictions: Annotated[Path, typer.Argument(show_default=False, help="JSON lines: question_id, prompt, text.")],
    data: Data = None,
    images: Images = None,
    metric: Metric = None,
    suffix: Suffix = "",
    out: Annotated[Path | None, typer.Option(help="Folder for result and reports.")] = None,
    allow_missing: AllowMissing = False,
    as_json: AsJson = False,
) -> None:
    """Score an existing prediction file of this package or one that the reference scripts wrote."""
    from .pipeline import score_file

    task = _find_task(benchmark, images, metric, suffix)
    _check_own_options([task], images, metric, suffix)
    result = score_file(task, predictions, data, out, allow_missing)
    _print_results([result], out, as_json)


@app.command(epilog="Example: llava-uhd eval compare results/a/docvqa_val results/b/docvqa_val")
def compare(
    first: Annotated[Path, typer.Argument(show_default=False, help="A result.json, or its folder.")],
    second: Annotated[Path, typer.Argument(show_default=False, help="Another, on the same questions.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two results question by question, with a bootstrap confidence interval of the difference."""
    from dataclasses import asdict

    from .compare import compare_results
    from .results import load_result

    comparison = compare_results(load_result(first), load_result(second), seed)
    if as_json:
        typer.echo(json.dumps(asdict(comparison) | {"is_significant": comparison.is_significant}))
        return
    typer.echo(
        f"{comparison.benchmark}, {comparison.questions} questions: "
        f"{comparison.first:.2f} -> {comparison.second:.2f}, "
        f"difference {comparison.difference:+.2f}, 95 % interval [{comparison.low:+.2f}, {comparison.high:+.2f}]"
        f"{'' if comparison.is_significant else ' (holds zero)'}; {comparison.better} better, {comparison.worse} worse"
    )
    for name, (old, new) in comparison.protocol_changes.items():
        typer.echo(f"  protocol: {name} {old} -> {new}")


@app.command(epilog="Example: llava-uhd eval report results --out report.md")
def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Markdown file to write; stdout without it.")] = None,
) -> None:
    """Write one Markdown report over several results (files, their folders, or a folder of such folders)."""
    from .report import markdown_report
    from .results import load_result
    from .storage import printable, write_atomically

    paths = [path for name in results for path in _result_files(name)]
    text = markdown_report([load_result(path) for path in paths], list(map(str, paths)))
    if out is None:
        typer.echo(printable(text))
    else:
        write_atomically(out, text)


@app.command(epilog="Example: llava-uhd eval calibrate results/synthdoc results/my_questions --model runs/mine/model")
def calibrate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", show_default=False, help="Folders of finished tasks.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="Model folder that confidence.json is written to. Default: written nowhere.")
    ] = None,
    check: Annotated[
        list[Path] | None, typer.Option(help="Folder of a finished task to measure on, not fitted to (repeat).")
    ] = None,
    unmarked_right: Annotated[
        float | None,
        typer.Option(
            help="Share of right ones among the answers of RUN that are not marked as guesses, such as 0.8: the mark "
            "is set below the lowest confidence that gives it. Default: below a confidence of 0.5."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate the confidence in a model's answers on finished runs, and measure it.

    Use questions whose images the model was not trained on, some of which it cannot answer.
    """
    from dataclasses import asdict

    from ..confidence import write_calibration
    from . import calibration as calibrating

    if both := {run.resolve() for run in runs} & {run.resolve() for run in check or []}:
        raise typer.BadParameter(f"{both.pop()} is fitted to, and so not held out: --check takes other runs")
    fitted = [calibrating.read_answers(run) for run in runs]
    held_out = [calibrating.read_answers(run) for run in check or []]
    calibration = calibrating.calibrate(fitted, unmarked_right)
    reports = [calibrating.measure(answers, calibration) for answers in [*fitted, *held_out]]
    if model is not None:
        write_calibration(model, calibration)
    if as_json:
        typer.echo(json.dumps({"calibration": asdict(calibration), "reports": [asdict(row) for row in reports]}))
        return
    for place, row in enumerate(reports):
        auroc, marked = (("-" if value is None else f"{value:.1f}") for value in (row.auroc, row.right_marked))
        typer.echo(
            f"{row.task} ({'fitted' if place < len(fitted) else 'held out'}): {row.answers} answers, "
            f"{row.accuracy:.1f} % right; AUROC {auroc}; right ones marked as guesses {marked} %; "
            f"wrong and not marked {row.wrong_unmarked:.1f} % of all; calibration error {row.calibration_error:.1f}"
        )
    typer.echo(
        f"{calibration.measure} of the tokens' probabilities: slope {calibration.slope:.4f}, "
        f"intercept {calibration.intercept:.4f}; guesses below a confidence of {calibration.guess_below:.4f}"
    )


@app.command(epilog="Example: llava-uhd eval vlmevalkit OCRBench --model tiny --out results")
def vlmevalkit(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", show_default=False)],
    out: Out,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Run data sets of VLMEvalKit, if it is installed, in a process of its own (it changes global settings)."""
    import subprocess
    import sys
    from importlib.util import find_spec

    if find_spec("vlmeval") is None:
        raise ImportError(f"VLMEvalKit is not installed: {VLMEVALKIT_INSTALL}")
    options = ["--model", model, "--out", str(out), "--dtype", dtype, *(["--device", device] if device else [])]
    module = "llava_uhd.evaluation.adapters.vlmevalkit"
    done = subprocess.run([sys.executable, "-m", module, *datasets, *options], check=False)
    raise typer.Exit(min(done.returncode, 1))


def _find_task(name: str, images: Path | None, metric: str | None, suffix: str) -> "Task":
    """The task of a name or of a user's file, of which stderr says what was found in it."""
    from ..terminal import note
    from .own_data import is_own_file, own_task
    from .storage import printable
    from .tasks import find_task

    if not is_own_file(name):
        return find_task(name)
    task, text = own_task(Path(name), images, metric, suffix)
    note(printable(text))
    return task


def _check_own_options(tasks: list["Task"], images: Path | None, metric: str | None, suffix: str) -> None:
    """Refuse options of own files where there is none, which would do nothing.

    Raises:
        typer.BadParameter: see above; or two files have one name, and so one folder of results.
    """
    if not any(not task.published for task in tasks):
        for name, value in (("--images", images), ("--metric", metric), ("--suffix", suffix)):
            if value:
                raise typer.BadParameter(f"{name} is for a file of your own, such as questions.jsonl")
    names = [task.name for task in tasks]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise typer.BadParameter(f"{duplicate!r} is given twice; each needs a folder of results of its own")


def _result_files(path: Path) -> list[Path]:
    """The result a path stands for: itself, or all below a folder."""
    found = sorted(path.rglob("result.json")) if path.is_dir() else [path]
    return found or [path]


def _print_results(results: Iterable[dict[str, Any]], out: Path | None, as_json: bool) -> None:
    from .storage import printable

    results = list(results)
    if as_json:
        short = [{name: value for name, value in result.items() if name != "rows"} for result in results]
        text = json.dumps({"results": short, "out": str(out) if out else None}, ensure_ascii=False)
        typer.echo(printable(text))
        return
    for result in results:
        title = result["headline"] or f"{result['benchmark']}: {result['questions']} answers, scored elsewhere"
        typer.echo(printable(title))
        confidence = result.get("confidence")
        if confidence:
            typer.echo(f"{'':4}wrong and not marked as a guess: {confidence['wrong_unmarked']:.2f} % of all answers")
        published = result["scores"].get("llava-uhd")
        if published:
            from .results import show

            value = show(published["values"][published["headline"]])
            typer.echo(f"{'':4}as the reference scripts score: {published['headline']} {value}")
