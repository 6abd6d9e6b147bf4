"""The command line, one verb each: `llava-uhd --help`, `llava-uhd ask receipt.png "What is the total?"`.

Only typer is imported here: a verb imports what it needs when it runs, so that help answers at once. Results go to
stdout, one JSON object with --json; progress and errors go to stderr. Exit codes: 0 success, 2 bad use, 1 failure with
one line that says what was wrong; --debug shows the traceback instead.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .benchmark.cli import app as benchmark
from .checkpoints.cli import mount as mount_checkpoints
from .evaluation.cli import app as evaluation
from .serving.cli import mount as mount_serving
from .training.cli import mount as mount_training

app = typer.Typer(
    help="LLaVA-UHD: ask questions about images at their own resolution and aspect ratio.",
    epilog="Any verb takes --debug, for the traceback of a failure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option(help="tiny (built in), a folder, or a hub id.")]
MaxSlices = Annotated[
    int | None, typer.Option(min=1, help="Most slices per image; 1 for the overview alone. Default: as trained.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command(epilog='Example: llava-uhd ask examples/receipt.png "What is the total?"')
def ask(
    images_and_question: Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", show_default=False)],
    model: Model = "tiny",
    max_slices: MaxSlices = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, auto. Default: an accelerator, or the CPU.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="8bit or 4bit, of the language model alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a question about one or several images; the answer is streamed."""
    *images, question = images_and_question
    if not images:
        raise typer.BadParameter(f"expected at least one image before the question, got only {question!r}")
    started = time.perf_counter()
    with _progress(f"loading {model}"):
        from transformers import TextStreamer

        from .answering import answer, prepare, question_message
        from .loading import load

        loaded, processor = load(model, device, dtype, quantization)
    ready = time.perf_counter()
    sizes = {} if max_slices is None else {"max_slices": max_slices}
    inputs = prepare(loaded, processor, [question_message(images, question)], max_new_tokens, **sizes)
    streamer = None if as_json else TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = answer(loaded, processor, inputs, max_new_tokens, streamer)
    if as_json:
        _print_json(
            {
                "answer": text,
                "question": question,
                "images": images,
                "model": model,
                "num_views": inputs["num_views"].tolist(),
                "grids": [grid if grid[0] else None for grid in inputs["grids"].tolist()],
                "num_image_tokens": int((inputs["input_ids"] == processor.image_token_id).sum()),
                "num_prompt_tokens": inputs["input_ids"].shape[1],
                "load_seconds": round(ready - started, 3),
                "answer_seconds": round(time.perf_counter() - ready, 3),
            }
        )


@app.command(epilog="Example: llava-uhd explain examples/receipt.png --save explained.png")
def explain(
    image: Annotated[str, typer.Argument(show_default=False, help="Image file.")],
    model: Model = "tiny",
    max_slices: MaxSlices = None,
    save: Annotated[Path | None, typer.Option(help="Draw the picture into this file.")] = None,
    picture: Annotated[
        str, typer.Option(help="explanation, slices, pyramid, kernels, windows or answer.")
    ] = "explanation",
    point: Annotated[tuple[float, float], typer.Option(help="x y in 0..1, for --picture kernels.")] = (0.5, 0.5),
    question: Annotated[str | None, typer.Option(help="For --picture answer.")] = None,
    word: Annotated[str | None, typer.Option(help="Word of the answer to look at. Default: all.")] = None,
    method: Annotated[str, typer.Option(help="rollout or gradient, for --picture answer.")] = "rollout",
    as_json: AsJson = False,
) -> None:
    """Show how an image is seen: its grid of slices, the views' sizes, the number of tokens."""
    with _progress(f"loading {model}"):
        from .inspection.explanation import explain_image
        from .loading import load_processor

        processor = load_processor(model)
    explanation = explain_image(processor, image, max_slices)
    if save is not None:
        with _progress(f"drawing {save}"):
            from .inspection.pictures import picture as draw
            from .loading import load

            draw(picture, load(model)[0], processor, image, max_slices, point, question, word, method).savefig(save)
    if as_json:
        _print_json(explanation)
    else:
        for name, value in explanation.items():
            typer.echo(f"{name.replace('_', ' '):18} {_words(value)}")


mount_checkpoints(app)
mount_serving(app)
app.add_typer(evaluation, name="eval")
mount_training(app)
app.add_typer(benchmark, name="bench")


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return " x ".join(str(side) for side in value) if isinstance(value, list) else str(value)


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


def _progress(what: str):
    """A spinner on stderr while something takes its time."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def main() -> None:
    """Entry point of `llava-uhd`: runs a verb and turns a failure into one line and exit code 1."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[argument for argument in arguments if argument != "--debug"])
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        from .loading import first_line

        typer.echo(f"error: {first_line(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
