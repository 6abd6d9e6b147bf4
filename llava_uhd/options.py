"""Options that several verbs of the command line share, each stated once.

Only typer is imported here: help answers at once.
"""

from typing import Annotated, TypeVar

import typer

from .model.slicing import MAX_SLICES

T = TypeVar("T")

DEVICES = ("cpu", "cuda", "cuda:0", "mps", "xpu", "auto")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")


def _complete_models(incomplete: str) -> list[str]:
    """Return the built-in models and the folders that begin so, for shell completion."""
    from glob import escape, glob
    from pathlib import Path

    from .loading import BUILT_IN

    folders = [name for name in sorted(glob(escape(incomplete) + "*")) if Path(name, "config.json").is_file()]
    return [name for name in BUILT_IN if name.startswith(incomplete)] + folders


def _complete(values: tuple[str, ...]):
    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def former_option(former: str, value: T | None, name: str, default: T) -> T:
    """Return the value given by an option's former name, with a warning on stderr; the default if there is none.

    Args:
        former: former name of the option, without dashes.
        value: value given by the former name, or None.
        name: name of the option today, without dashes.
        default: value of the option of today.
    """
    if value is None:
        return default
    typer.echo(f"warning: --{former} is now --{name}", err=True)
    return value


def check_question(question: str | None) -> str | None:
    """Return a question as it is; raise BadParameter for one without a word."""
    if question is not None and not question.strip():
        raise typer.BadParameter("the question is empty")
    return question


Model = Annotated[
    str, typer.Option(help="small or tiny (built in), a folder, or a hub id.", autocompletion=_complete_models)
]
MaxSlices = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_SLICES, help="Most slices per image; 1 for the overview alone. Default: as trained."),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda:0, auto. Default: an accelerator, or the CPU.", autocompletion=_complete(DEVICES)),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", autocompletion=_complete(DTYPES))]
Quantization = Annotated[
    str | None,
    typer.Option(help="8bit or 4bit, of the language model alone.", autocompletion=_complete(QUANTIZATIONS)),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads of PyTorch. Default: OMP_NUM_THREADS, or the CPUs this process may use."),
]
Pages = Annotated[
    str | None,
    typer.Option(
        "--pages",
        "--page",
        help="Pages of PDF and TIFF files, counted from 1, such as 2 or 1,3-5. Default: all.",
        show_default=False,
    ),
]
MaxPages = Annotated[int, typer.Option(min=1, help="Most pages of a document; a longer one is refused.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
