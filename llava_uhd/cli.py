"""The command line, one verb each: `llava-uhd --help`, `llava-uhd ask receipt.png "What is the total?"`.

Only typer is imported here: a verb imports what it needs when it runs, so that help answers at once. Results go to
stdout, one JSON object with --json; progress, notes and errors go to stderr, errors alone with --quiet. Exit codes: 0
success, 2 bad use, 1 failure with one line that says what was wrong; --debug shows the traceback instead.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .benchmark.cli import app as benchmark
from .checkpoints.cli import mount as mount_checkpoints
from .evaluation.cli import app as evaluation
from .generation.sampling import MAX_NEW_TOKENS
from .inspection.cli import probe_app
from .loading import DEFAULT_MODEL
from .options import (
    AsJson,
    Device,
    Dtype,
    MaxPages,
    MaxSlices,
    Model,
    Pages,
    Quantization,
    Threads,
    check_question,
    former_option,
)
from .serving.cli import mount as mount_serving
from .terminal import be_quiet, is_quiet, note, status, use_utf8
from .training.cli import mount as mount_training

if TYPE_CHECKING:
    from .pages import Page
    from .planning import ImagePlanner

PROGRAM = "llava-uhd"

app = typer.Typer(
    name=PROGRAM,
    help="LLaVA-UHD: ask questions about images at their own resolution and aspect ratio.",
    epilog="Any verb takes --debug, for the traceback of a failure, and --quiet, for nothing on stderr but errors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(epilog='Example: llava-uhd ask examples/receipt.png "What is the total?"')
def ask(
    images_and_question: Annotated[
        list[str], typer.Argument(metavar="IMAGE... QUESTION", show_default=False, help="Images, PDF or TIFF files.")
    ],
    model: Model = DEFAULT_MODEL,
    pages: Pages = None,
    max_pages: MaxPages = 20,
    max_slices: MaxSlices = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = MAX_NEW_TOKENS,
    device: Device = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Ask a question about one or several images or documents; the answer is streamed."""
    from .pages import STDIN, is_file

    *images, question = images_and_question
    if not images:
        raise typer.BadParameter(f"expected at least one image before the question, got only {question!r}")
    check_question(question)
    if is_file(question) and not any(is_file(image) or "://" in image or image == STDIN for image in images):
        raise typer.BadParameter(
            f"the question comes last, after the images; the last argument, {question}, is a file"
        )
    started = time.perf_counter()
    from .planning import ImagePlanner

    planner = ImagePlanner.load(model)
    opened = _open(images, planner, pages, max_pages, max_slices)
    sizes = [planner.fit_letters(page.image, max_slices).size for page in opened]
    planner.check_context(sizes, max_slices, max_new_tokens)
    from .threads import use_threads, wait_passively

    # One answer is a chain of small operations: threads that spin while they wait for the next cost half as much CPU
    # again and make nothing faster.
    wait_passively()
    with status(f"loading {model}"):
        from .generation.generator import Generator
        from .generation.prompt import build_prompt, question_message
        from .generation.sampling import Sampling
        from .loading import load, load_calibration

        use_threads(threads)
        loaded, processor = load(model, device, dtype, quantization)
        calibration = load_calibration(model)
    ready = time.perf_counter()
    prompt = build_prompt(processor, [question_message([page.image for page in opened], question)], max_slices)
    grids = [image.inputs["grids"][0].tolist() for image in prompt.images]
    for event in Generator(loaded, processor).generate(prompt, Sampling(max_new_tokens)):
        if not isinstance(event, str):
            answer = event
        elif not as_json:
            print(event, end="", flush=True)
    if not as_json:
        print()
    confidence = answer.confidence(calibration)
    if confidence.note is not None:
        note(confidence.note)
    if as_json:
        _print_json(
            {
                "answer": answer.text,
                **confidence.as_json(),
                "question": question,
                "images": images,
                "pages": [page.name for page in opened],
                "model": model,
                "num_views": [int(image.inputs["num_views"]) for image in prompt.images],
                "grids": [grid if grid[0] else None for grid in grids],
                "num_image_tokens": prompt.num_image_tokens,
                "num_prompt_tokens": prompt.input_ids.shape[1],
                "load_seconds": round(ready - started, 3),
                "answer_seconds": round(time.perf_counter() - ready, 3),
            }
        )


@app.command(epilog="Example: llava-uhd explain examples/receipt.png --save explained.png")
def explain(
    image: Annotated[str, typer.Argument(show_default=False, help="Image, or PDF or TIFF file with --page.")],
    model: Model = DEFAULT_MODEL,
    page: Annotated[int | None, typer.Option(min=1, help="Page of a PDF or TIFF file, counted from 1.")] = None,
    max_slices: MaxSlices = None,
    save: Annotated[Path | None, typer.Option(help="Write a figure to this file, for example explained.png.")] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            help="Figure that --save writes: explanation (default), slices, pyramid, kernels, windows or answer.",
        ),
    ] = None,
    picture: Annotated[str | None, typer.Option("--picture", hidden=True)] = None,  # former name
    point: Annotated[
        tuple[float, float] | None,
        typer.Option(help="x y in the overview, 0 to 1, for --figure kernels. Default: 0.5 0.5."),
    ] = None,
    question: Annotated[
        str | None, typer.Option(callback=check_question, help="Question, for --figure answer.")
    ] = None,
    word: Annotated[str | None, typer.Option(help="Word of the answer to attribute. Default: all words.")] = None,
    method: Annotated[str | None, typer.Option(help="rollout (default) or gradient, for --figure answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the slice plan of an image: grid, sizes of the views, number of tokens."""
    figure = former_option("picture", picture, "figure", figure)  # former name
    _check_figure_options(save, figure, point=point, question=question, word=word, method=method)
    from .inspection.explanation import explain_image
    from .planning import ImagePlanner

    planner = ImagePlanner.load(model)
    opened = _open([image], planner, None if page is None else str(page), 1, max_slices)[0]
    explanation = explain_image(planner, opened.image, max_slices)
    if save is not None:
        with status(f"writing {save}"):
            from .inspection.figures import make_figure
            from .loading import load

            make_figure(
                figure or "explanation",
                *load(model),
                opened.image,
                max_slices,
                point or (0.5, 0.5),
                question,
                word,
                method or "rollout",
            ).savefig(save)
    if as_json:
        _print_json(explanation)
    else:
        for name, value in explanation.items():
            typer.echo(f"{name.replace('_', ' '):18} {_words(value)}")


def _check_figure_options(save: Path | None, figure: str | None, **options: Any) -> None:
    """Raise BadParameter for an option that would have no effect; InputError for a figure that cannot be written."""
    if save is None and figure is not None:
        raise typer.BadParameter(f"--figure {figure} needs a file to write: name it with --save")
    used = {"kernels": ("point",), "answer": ("question", "word", "method")}.get(figure or "", ())
    for name, value in options.items():
        if value is not None and name not in used:
            needed = "kernels" if name == "point" else "answer"
            raise typer.BadParameter(f"--{name} is for --figure {needed}, with --save")
    if (point := options["point"]) is not None and not all(0 <= part <= 1 for part in point):
        raise typer.BadParameter(f"--point has coordinates from 0 to 1, got {point[0]:g} {point[1]:g}")
    if save is not None:
        from .inspection.output import check_figure, check_figure_file

        check_figure(figure or "explanation", options["question"])
        check_figure_file(save)


def _open(
    images: list[str], planner: "ImagePlanner", pages: str | None, max_pages: int, max_slices: int | None
) -> "list[Page]":
    """Open images and documents before the model is loaded, so that a wrong path is reported at once."""
    from .inspection.legibility import legibility_note
    from .pages import open_all, read_streams

    opened = open_all(read_streams(images), pages, max_pages=max_pages, num_pixels=planner.num_pixels(max_slices))
    noted: dict[str, list[str]] = {}
    for page in opened:
        if (said := legibility_note(planner, page.image, max_slices, page.dpi)) is not None:
            noted.setdefault(said, []).append(page.name)
    for said, names in noted.items():
        note(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {said}")
    return opened


mount_checkpoints(app)
mount_serving(app)
app.add_typer(evaluation, name="eval")
mount_training(app)
app.add_typer(benchmark, name="bench")
app.add_typer(probe_app, name="probe")


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return " x ".join(str(side) for side in value) if isinstance(value, list) else str(value)


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


def main() -> None:
    """Run a verb; turn a failure into one line on stderr and exit code 1."""
    use_utf8()
    arguments = list(sys.argv[1:])
    flags = {"--debug": False, "--quiet": False}
    for flag in flags:
        end = arguments.index("--") if "--" in arguments else len(arguments)
        if flag in arguments[:end]:
            arguments.remove(flag)
            flags[flag] = True
    if flags["--quiet"] or is_quiet():
        be_quiet()
    try:
        app(args=arguments, prog_name=PROGRAM)
    except Exception as error:
        if flags["--debug"]:
            raise
        from .errors import report

        typer.echo(report(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
