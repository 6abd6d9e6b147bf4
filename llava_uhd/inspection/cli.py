"""The verb `probe` of the command line: the levels of the pyramid, measured and shown.

llava-uhd probe levels --count 200
llava-uhd probe activation examples/receipt.png "What is the total?" --save activation.png
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..loading import DEFAULT_MODEL
from ..options import AsJson, Device, MaxSlices, Model, check_question
from ..terminal import status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .linear_probe import Sample

TASKS = ("characters", "dense", "classes")

probe_app = typer.Typer(
    help="Levels of the pyramid: linear probes, activation of an answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@probe_app.command("levels", epilog="Example: llava-uhd probe levels --task characters --count 200")
def levels(
    model: Model = DEFAULT_MODEL,
    task: Annotated[
        list[str] | None, typer.Option(help="characters, dense or classes; may be repeated. Default: all three.")
    ] = None,
    count: Annotated[int, typer.Option(min=4, help="Rendered images of a task.")] = 200,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of your images: with a subfolder per class, or with --masks. Default: rendered."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks of --images, for dense: PNG with class ids, 255 for none.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most images of --images, or of each class.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rendered images.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Fit a linear probe on every level of the pyramid: characters, labels of pixels, classes of images."""
    if masks is not None and images is None:
        raise typer.BadParameter("--masks belong to images: give --images, too")
    tasks = task or (list(TASKS) if images is None else ["classes" if masks is None else "dense"])
    if wrong := [name for name in tasks if name not in TASKS]:
        raise typer.BadParameter(f"expected {', '.join(TASKS)}, got {wrong[0]!r}", param_hint="--task")
    if images is not None and tasks != ["classes" if masks is None else "dense"]:
        raise typer.BadParameter("a folder with subfolders is for --task classes, one with --masks for --task dense")
    if images is not None and not images.is_dir():
        raise ValueError(f"there is no folder {images}")
    from ..loading import load
    from .linear_probe import probe_levels, probe_table

    loaded, processor = load(model, device)
    view_size = loaded.config.vision_config.image_size
    results = []
    for name in tasks:
        with status(f"probing {name}"):
            results.append(
                probe_levels(loaded, processor, name, _samples(name, count, images, masks, limit, seed, view_size))
            )
    if as_json:
        typer.echo(json.dumps({"model": model, "probes": [asdict(result) for result in results]}))
    else:
        typer.echo(probe_table(results).rstrip())


def _samples(
    task: str, count: int, images: Path | None, masks: Path | None, limit: int | None, seed: int, view_size: int
) -> "Iterable[Sample]":
    from . import probe_data

    if images is not None:
        if masks is not None:
            return probe_data.folder_dense_samples(images, masks, limit)
        return probe_data.folder_class_samples(images, limit)
    if task == "characters":
        return probe_data.character_samples(count, view_size, seed)
    if task == "dense":
        return probe_data.dense_samples(count, seed)
    return probe_data.class_samples(count, seed)


@probe_app.command(
    "activation",
    epilog='Example: llava-uhd probe activation examples/receipt.png "What is the total?" --save activation.png',
)
def activation(
    image: Annotated[Path, typer.Argument(show_default=False, help="Image.")],
    question: Annotated[str, typer.Argument(show_default=False, callback=check_question, help="Question about it.")],
    model: Model = DEFAULT_MODEL,
    word: Annotated[str | None, typer.Option(help="Word of the answer to look at. Default: all of it.")] = None,
    max_slices: MaxSlices = None,
    save: Annotated[Path | None, typer.Option(help="Draw the figure into this file.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show where an answer's tokens respond to each level of the pyramid: gradient times input."""
    from ..model.images import decode_image

    decoded = decode_image(image, name=str(image))  # before the model is loaded
    if save is not None:
        from .output import check_figure_file

        check_figure_file(save)
    from ..loading import load
    from .activation import activation_figure, answer_activation

    loaded, processor = load(model, device)
    with status("computing the activation"):
        found = answer_activation(loaded, processor, decoded, question, word, max_slices)
    if save is not None:
        looked_at = found.answer if found.word is None else f"{found.answer} (“{found.word}”)"
        activation_figure(decoded, found, f"{question} {looked_at}").savefig(save)
    shares: dict[str, Any] = {f"{level}x": share for level, share in found.shares().items()}
    if as_json:
        typer.echo(json.dumps({"answer": found.answer, "word": found.word, "shares": shares}, ensure_ascii=False))
    else:
        typer.echo(f"{'answer':12} {found.answer}")
        for level, share in shares.items():
            typer.echo(f"{level:12} {share:.1%} of the activation")
