"""`llava-uhd bench`: the reference formulation against this package, on random weights of any size."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from .compare import BenchRow, Setting
    from .sizes import Sizes

app = typer.Typer(
    help="Speed and memory, the reference formulation beside this package's. Defaults are the published sizes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

NOT_MEASURED = "not measured"

Views = Annotated[int, typer.Option(min=1, help="Views that go through together.")]
ImageSize = Annotated[str, typer.Option("--image", help="Width x height of the image in pixels.")]
MaxSlices = Annotated[int, typer.Option(min=1, help="Maximum number of slices the image is cut into.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Number of new tokens.")]
Numbers = Annotated[str, typer.Option(help="Numbers, separated by commas.")]
Save = Annotated[Path | None, typer.Option(help="File to draw the curves into.")]


@dataclass(frozen=True)
class Settings:
    """Options that every verb of `bench` shares."""

    sizes: "Sizes"
    setting: "Setting"
    as_json: bool


def settings(
    levels: Annotated[str, typer.Option(help="Levels of the pyramid, such as 1,2,4.")] = "1,2,4",
    upsampler: Annotated[str, typer.Option(help="jbu, bilinear or none.")] = "jbu",
    bin_embedding: Annotated[bool, typer.Option("--bin-embedding", help="Add bin embeddings to the keys.")] = False,
    aligned_windows: Annotated[bool, typer.Option("--aligned-windows", help="Pool windows at pixel centers.")] = False,
    query_grid: Annotated[int, typer.Option(min=1, help="A view gives its square of tokens.")] = 12,
    hidden: Annotated[int, typer.Option(min=16, help="Hidden size of the language model.")] = 4096,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Heads of the projector. Default: one per 128 channels.")
    ] = None,
    vision_hidden: Annotated[int, typer.Option(min=4, help="Hidden size of the tower.")] = 1024,
    vision_layers: Annotated[int, typer.Option(min=1, help="Layers of the tower.")] = 24,
    vision_intermediate: Annotated[int, typer.Option(min=4, help="Intermediate size of the tower's MLPs.")] = 4096,
    vision_heads: Annotated[int, typer.Option(min=1, help="Heads of the tower.")] = 16,
    view_size: Annotated[int, typer.Option(min=28, help="Side of a view in pixels, a multiple of 14.")] = 336,
    text_layers: Annotated[
        int | None,
        typer.Option(min=1, help="Layers of the language model. Default: 32 on an accelerator, 2 on a CPU."),
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=64, help="Vocabulary size of the language model.")] = 32000,
    device: Annotated[str, typer.Option(help="cpu, cuda:0: rows of an accelerator need it named.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    runs: Annotated[int, typer.Option(min=1, help="Alternating runs of each way; the median counts.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: as torch chooses.")] = None,
    matmul_side: Annotated[
        int, typer.Option(min=16, help="Side of the matrices whose product gives the machine's rate.")
    ] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> Settings:
    """Read the options that all verbs share, and measure the machine's rate.

    Raises:
        ValueError: a size does not fit, or the device or dtype is unknown.
    """
    import torch

    from .compare import Setting
    from .sizes import Sizes

    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"unknown dtype {dtype!r}: choose float32, bfloat16 or float16")
    try:
        target = torch.device(device)
        torch.zeros(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot measure on device {device!r}: {str(error).splitlines()[0]}") from error
    num_heads = hidden // 128 if heads is None else heads
    for what, width, count in (
        ("--hidden", hidden, 4),
        ("--hidden", hidden, num_heads),
        ("--vision-hidden", vision_hidden, vision_heads),
        ("--view-size", view_size, 14),
    ):
        if count < 1 or width % count:
            raise typer.BadParameter(f"{what} {width} is not a multiple of {count}")
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = Sizes(
        levels=_numbers("--levels", levels),
        upsampler=upsampler,
        bin_embedding=bin_embedding,
        aligned_windows=aligned_windows,
        query_grid=query_grid,
        hidden=hidden,
        heads=heads,
        vision_hidden=vision_hidden,
        vision_layers=vision_layers,
        vision_intermediate=vision_intermediate,
        vision_heads=vision_heads,
        view_size=view_size,
        text_layers=text_layers or (2 if target.type == "cpu" else 32),
        vocabulary=vocabulary,
    )
    sizes.config(with_text=False)  # complains where the sizes do not fit together
    return Settings(sizes, Setting.on(target, getattr(torch, dtype), runs, matmul_side), as_json)


class Verb(TyperCommand):
    """A verb that takes the options of `settings` beside its own; its function finds them in `context.obj`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        shared = typer.Typer(add_completion=False)
        shared.command()(settings)
        self.shared = typer.main.get_command(shared).params
        self.params += self.shared

    def invoke(self, context: Any) -> Any:
        """Read the shared options, then run the verb with its own."""
        context.obj = settings(**{option.name: context.params.pop(option.name) for option in self.shared})
        return super().invoke(context)


@app.command("projector", cls=Verb, epilog="Example: llava-uhd bench projector --views 1 --json")
def projector(context: typer.Context, views: Views = 1) -> None:
    """Measure pyramid and projector alone, on random features."""
    from .compare import projector_row

    bench: Settings = context.obj
    _report(bench, projector_row(bench.sizes, views, bench.setting))


@app.command("vision", cls=Verb, epilog="Example: llava-uhd bench vision --image 1008x672")
def vision(context: typer.Context, image: ImageSize = "1008x672", max_slices: MaxSlices = 7) -> None:
    """Measure the whole vision path of an image, encoder included: pixels to image tokens."""
    from .compare import vision_row

    bench: Settings = context.obj
    _report(bench, vision_row(bench.sizes, _image(image), max_slices, bench.setting))


@app.command("prefill", cls=Verb, epilog="Example: llava-uhd bench prefill --device cuda:0 --dtype bfloat16")
def prefill(context: typer.Context, image: ImageSize = "1008x672", max_slices: MaxSlices = 7) -> None:
    """Measure pixels to the first token: the vision path, and the language model over the whole prompt."""
    from .compare import prefill_row

    bench: Settings = context.obj
    _report(bench, prefill_row(bench.sizes, _image(image), max_slices, bench.setting))


@app.command("generate", cls=Verb, epilog="Example: llava-uhd bench generate --text-layers 2 --new-tokens 16")
def generate(
    context: typer.Context, image: ImageSize = "1008x672", max_slices: MaxSlices = 7, new_tokens: NewTokens = 32
) -> None:
    """Measure pixels to a greedy answer."""
    from .compare import generate_row

    bench: Settings = context.obj
    _report(bench, generate_row(bench.sizes, _image(image), max_slices, new_tokens, bench.setting))


@app.command("train-step", cls=Verb, epilog="Example: llava-uhd bench train-step --views 4")
def train_step(context: typer.Context, views: Views = 4) -> None:
    """Measure forward and backward pass of pyramid and projector, tower and up-sampler frozen."""
    from .compare import train_step_row

    bench: Settings = context.obj
    _report(bench, train_step_row(bench.sizes, views, bench.setting))


@app.command("growth", cls=Verb, epilog="Example: llava-uhd bench growth --save growth.png")
def growth(
    context: typer.Context,
    views: Numbers = "1,2,4,8,12,18,24,36",
    sides: Numbers = "336,672,1008,1344,1680",
    batches: Numbers = "1,2,4",
    max_slices: MaxSlices = 36,
    save: Save = None,
) -> None:
    """Measure time and peak memory against views of the projector, side of a square image, images of a batch."""
    from .growth import growth as measure
    from .growth import growth_figure

    bench: Settings = context.obj
    counts = _numbers("--views", views), _numbers("--sides", sides), _numbers("--batches", batches)
    rows = measure(bench.sizes, *counts, max_slices, bench.setting)
    if save is not None:
        growth_figure(rows).savefig(save)
    columns = {
        "name": lambda row: row.name,
        "curve": lambda row: row.axis,
        "views": lambda row: str(row.views),
        "seconds": lambda row: f"{row.ours_s:.3g}",
        "s / view": lambda row: f"{row.s_per_view:.3g}",
        "peak MiB": lambda row: _mebibytes(row.ours_peak_bytes),
    }
    _print(bench, rows, columns)


def _report(bench: Settings, row: "BenchRow") -> None:
    columns = {
        "name": lambda row: row.name,
        "plain s": lambda row: f"{row.plain_s:.4g}",
        "fused s": lambda row: f"{row.ours_s:.4g}",
        "ratio": lambda row: f"{row.ratio:.2f}",
        "rel. error": lambda row: f"{row.relative_error:.1e}",
        "GFLOP plain": lambda row: f"{row.plain_gflop:.4g}",
        "GFLOP fused": lambda row: f"{row.gflop:.4g}",
        "of matmul rate": lambda row: f"{row.share_of_matmul_rate:.0%}",
        "peak MiB plain": lambda row: _mebibytes(row.plain_peak_bytes),
        "peak MiB fused": lambda row: _mebibytes(row.ours_peak_bytes),
        "folded MiB": lambda row: _mebibytes(row.kept_bytes),
        "encoder s": lambda row: _seconds(row.encoder_s),
        "projector s": lambda row: _seconds(row.projector_s),
        "first call s": lambda row: _seconds(row.first_s),
    }
    _print(bench, [row], columns)


def _print(bench: Settings, rows: list[Any], columns: dict[str, Callable[[Any], str]]) -> None:
    """Print rows as a JSON object or a table, with the machine, and whether an accelerator was measured."""
    from .measure import machine

    setting = bench.setting
    about = machine(setting.device) | {
        "dtype": str(setting.dtype).removeprefix("torch."),
        "runs": setting.runs,
        "matmul_gflop_per_s": setting.rate / 1e9,
    }
    accelerator = NOT_MEASURED if setting.device.type == "cpu" else about["device"]
    if bench.as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows], "machine": about, "accelerator": accelerator}))
        return
    from rich.console import Console
    from rich.table import Table

    # Up and down for one row of many columns, across for many rows.
    if len(rows) == 1:
        table = Table("measure", "value")
        for heading, cell in columns.items():
            table.add_row(heading, cell(rows[0]))
    else:
        table = Table(*columns)
        for row in rows:
            table.add_row(*(cell(row) for cell in columns.values()))
    console = Console()
    console.print(table)
    words = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else str(value) for name, value in about.items()
    )
    console.print(f"{words}; accelerator: {accelerator}", highlight=False)


def _mebibytes(count: int | None) -> str:
    return NOT_MEASURED if count is None else f"{count / 2**20:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise typer.BadParameter(f"{option} takes whole numbers separated by commas, got {text!r}") from error
    if any(number < 1 for number in numbers):
        raise typer.BadParameter(f"{option} takes positive numbers, got {text!r}")
    return numbers


def _image(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"--image takes WIDTHxHEIGHT, such as 1008x672, got {text!r}")
    return int(width), int(height)
