"""The verbs `convert`, `verify` and `push` of the command line; `llava_uhd.cli` mounts them.

Only typer is imported here: help answers at once.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..options import AsJson, former_option
from ..terminal import stderr_console

if TYPE_CHECKING:
    from ..model.layout import LayoutName

FORMER_LAYOUTS = {"ours": "hf", "released": "original"}  # former names of the values of --to


def _part(what: str) -> Any:
    return typer.Option(help=f"{what}: folder, file or hub id.", show_default=False)


def convert(
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    source: Annotated[
        str | None,
        typer.Argument(show_default=False, help="Original checkpoint (folder or hub id), or an HF folder to export."),
    ] = None,
    to: Annotated[str, typer.Option(help="Layout to write: hf, or original to export an HF folder.")] = "hf",
    projector: Annotated[str | None, _part("mm_projector.bin")] = None,
    language_model: Annotated[str | None, _part("Language model, such as Vicuna")] = None,
    vision_tower: Annotated[str | None, _part("CLIP")] = None,
    upsampler: Annotated[str | None, _part("Pretrained JBU (clip-large-jbu.ckpt)")] = None,
    tokenizer: Annotated[str | None, _part("Tokenizer, where no part has one")] = None,
    layout: Annotated[str | None, typer.Option(help="stitched or sequential. Default: as the source says.")] = None,
    levels: Annotated[str | None, typer.Option(help="Pyramid levels, like 1,2,4. Default: the source's mask.")] = None,
    box_dtype: Annotated[
        str | None, typer.Option(help="Window corners: float32 or bfloat16. Default: as the weights were trained.")
    ] = None,
    max_slices: Annotated[int | None, typer.Option(min=1, help="Most slices per image. Default: 7.")] = None,
    projector_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the projector. Default: one per 128 channels.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32. Default: as stored, which alone is reversible.")
    ] = None,
    allow_missing: Annotated[
        list[str] | None, typer.Option(help="Original tensor names that may be missing (* matches anything).")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Unknown tensor names to ignore (* matches anything).")
    ] = None,
    keep_unused: Annotated[
        bool, typer.Option("--keep-unused", help="Store the unused second CLIP, too, so that the export is complete.")
    ] = False,
    keep_dead: Annotated[bool, typer.Option("--keep-dead", hidden=True)] = False,
    license: Annotated[
        str | None, typer.Option(help="License for the model card. Default: that of the language model.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a folder that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert an original checkpoint to HF format, or export an HF folder to the original layout."""
    if to in FORMER_LAYOUTS:
        typer.echo(f"warning: --to {to} is now --to {FORMER_LAYOUTS[to]}", err=True)
        to = FORMER_LAYOUTS[to]
    keep_unused = former_option("keep-dead", keep_dead or None, "keep-unused", keep_unused)
    if to not in ("hf", "original"):
        raise typer.BadParameter(f"--to must be hf or original, got {to!r}")
    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise typer.BadParameter(f"--dtype must be bfloat16, float16 or float32, got {dtype!r}")
    if layout not in (None, "stitched", "sequential"):
        raise typer.BadParameter(f"--layout must be stitched or sequential, got {layout!r}")
    if box_dtype not in (None, "bfloat16", "float32"):
        raise typer.BadParameter(f"--box-dtype must be bfloat16 or float32, got {box_dtype!r}")
    if to == "original":
        if source is None:
            raise typer.BadParameter("name the HF folder to export")
        parts_given = (projector, language_model, vision_tower, upsampler, tokenizer)
        settings = (dtype, layout, levels, box_dtype, max_slices, projector_heads, license)
        if any((*parts_given, *settings, allow_missing, ignore, keep_unused)):
            raise typer.BadParameter("--to original exports an HF folder unchanged and takes no parts or settings")
    try:
        numbers = tuple(int(level) for level in levels.split(",")) if levels else None
    except ValueError as error:
        raise typer.BadParameter(f"--levels must be numbers like 1,2,4, got {levels!r}") from error
    with _Bar(f"converting to {out}") as bar:
        import torch

        from .convert import Options, convert_to_hf
        from .export import convert_to_original
        from .sources import Parts
        from .variants import Overrides

        if to == "original":
            assert source is not None
            report = convert_to_original(Path(source), out, overwrite, bar.show)
        else:
            checked_layout = cast("LayoutName | None", layout)
            overrides = Overrides(checked_layout, numbers, box_dtype, max_slices, projector_heads)
            options = Options(
                overrides=overrides,
                tokenizer=tokenizer,
                dtype=getattr(torch, dtype) if dtype else None,
                allow_missing=tuple(allow_missing or ()),
                ignore=tuple(ignore or ()),
                keep_unused=keep_unused,
                overwrite=overwrite,
                license=license,
            )
            parts = Parts(source, projector, language_model, vision_tower, upsampler)
            report = convert_to_hf(parts, out, options, bar.show)
    _print(report.as_dict() if as_json else report.lines())


def verify(
    folder: Annotated[Path, typer.Argument(show_default=False, help="Folder written by convert or save_pretrained.")],
    as_json: AsJson = False,
) -> None:
    """Check a folder: names, shapes, numbers, tokens, one forward pass; print a fingerprint per module."""
    with _Bar(f"verifying {folder}"):
        from .verify import verify_checkpoint

        found = verify_checkpoint(folder)
    if as_json:
        _print(found.as_dict())
    else:
        lines = [
            f"{module:40} {found.parameters[module]:>14,}  {fingerprint}"
            for module, fingerprint in found.fingerprints.items()
        ]
        lines += [f"{key.replace('_', ' ')}: {value}" for key, value in found.forward.items()]
        _print([*lines, *(f"problem: {problem}" for problem in found.problems)])
    if found.problems:
        typer.echo(f"error: {folder} is not whole: {found.problems[0]}", err=True)
        raise typer.Exit(1)


def push(
    folder: Annotated[Path, typer.Argument(show_default=False, help="Folder written by convert or by training.")],
    repository: Annotated[str, typer.Argument(show_default=False, help="Hub id, as in organization/name.")],
    upload: Annotated[bool, typer.Option("--upload", help="Do it. Without, only say what would be done.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    license: Annotated[
        str | None, typer.Option(help="License for the model card of a folder without one, such as apache-2.0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a model folder on the hub; a dry run unless --upload is given."""
    with _Bar(f"checking {folder}"):
        from .push import push_checkpoint

        done = push_checkpoint(folder, repository, private=not public, dry_run=not upload, license=license)
    if as_json:
        _print(done.as_dict())
    else:
        lines = [f"{size:>16,}  {name}" for name, size in done.files.items()]
        what = f"uploaded to {done.url}" if upload else f"dry run: --upload sends this to {repository}"
        _print([*lines, f"{what} ({'public' if public else 'private'}, license {done.license})"])


# Each verb with the example that its help ends with.
VERBS: dict[Callable[..., None], str] = {
    convert: "Example: llava-uhd convert LLaVA-UHD-v2 --vision-tower openai/clip-vit-large-patch14-336 --out uhd-v2",
    verify: "Example: llava-uhd verify uhd-v2 --json",
    push: "Example: llava-uhd push uhd-v2 me/llava-uhd-v2",
}


def mount(app: typer.Typer) -> None:
    """Add the verbs to an app."""
    for verb, example in VERBS.items():
        app.command(epilog=example)(verb)


def _print(result: dict[str, Any] | list[str]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False) if isinstance(result, dict) else "\n".join(result))


class _Bar:
    """Progress on stderr if that is a terminal."""

    def __init__(self, what: str) -> None:
        self.what, self.status = what, stderr_console().status(what)

    def __enter__(self) -> "_Bar":
        self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.status.stop()

    def show(self, done: int, total: int) -> None:
        self.status.update(f"{self.what}: {100 * done // max(total, 1)} %")
