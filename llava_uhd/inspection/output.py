"""Checks of what a figure is asked for, made before a model is loaded."""

from pathlib import Path

from ..errors import InputError

FIGURES = ("explanation", "slices", "pyramid", "kernels", "windows", "answer")


def check_figure(name: str, question: str | None) -> None:
    """Raise for an unknown figure, or for one of an answer without a question.

    Raises:
        ValueError: there is no such figure, or the question is missing.
    """
    if name not in FIGURES:
        raise InputError(f"unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    if name == "answer" and not question:
        raise InputError("the figure of an answer needs a question")


def check_figure_file(file: Path) -> None:
    """Create the folder of a figure's file.

    Raises:
        ValueError: matplotlib writes no file of this ending.
        OSError: the folder cannot be created.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.lower().removeprefix(".") not in formats:
        raise InputError(f"cannot write a figure as {file}: the name must end with .{', .'.join(sorted(formats))}")
    if file.is_dir():
        raise InputError(f"cannot write a figure as {file}: that is a folder")
    file.parent.mkdir(parents=True, exist_ok=True)
