"""The rows as Markdown, one table per section, and the goals beside what was measured."""

from collections.abc import Callable
from typing import Any

from .plan import SECTIONS

Cells = dict[str, Any]

FORMATS: dict[str, Callable[[float], str]] = {
    "ms": lambda value: f"{value:.3g}" if value < 100 else f"{value:.0f}",
    "of encoder": lambda value: f"{value:.2f}",
    "tokens/s": lambda value: f"{value:.4g}",
    "samples/s": lambda value: f"{value:.3g}",
    "requests/s": lambda value: f"{value:.3g}",
    "questions/s": lambda value: f"{value:.3g}",
    "ms to the first token": lambda value: f"{value:.0f}",
    "TFLOP/s": lambda value: f"{value:.3g}",
    "GB/s": lambda value: f"{value:.0f}",
    "of matmul rate": lambda value: f"{value:.0%}",
    "of copy rate": lambda value: f"{value:.0%}",
    "error": lambda value: f"{value:.1e}",
    "launches": lambda value: f"{value:.0f}",
    "MB moved": lambda value: f"{value:.0f}",
    "MB fewest": lambda value: f"{value:.0f}",
    "peak MiB": lambda value: f"{value:.0f}",
}


def markdown(rows: list[Cells], command: str, seconds: float, is_small: bool = False) -> str:
    """Return the tables of all sections, the goals, and the dearest kernels where they were traced.

    Args:
        rows: rows of all measurements.
        command: command that measured them.
        seconds: duration of the command.
        is_small: whether the sizes are those of a dry run, to which the goals do not apply.
    """
    machine: Cells = next((row["machine"] for row in rows if "machine" in row), {})
    about = ", ".join(f"{name} {value}" if name != "device" else str(value) for name, value in machine.items())
    lines = [f"`{command}`: {about or 'device unknown'}; {seconds:.0f} s.", ""]
    for section in SECTIONS:
        of_section = [row for row in rows if row["section"] == section]
        if of_section:
            lines += [f"**{section}**", "", *_table(of_section), ""]
    if not is_small:
        lines += ["**Goals**", "", "| goal | measured |", "|---|---|", *(f"| {g} | {m} |" for g, m in goals(rows)), ""]
    for row in rows:
        if row.get("kernels"):
            lines += [f"Dearest kernels of {row['measured']}:", "", *(f"- {line}" for line in row["kernels"]), ""]
    return "\n".join(lines)


def _table(rows: list[Cells]) -> list[str]:
    columns = [column for column in FORMATS if any(row.get(column) is not None for row in rows)]
    lines = ["| " + " | ".join(["measured", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        if row["status"] == "ok":
            cells = ["" if row.get(column) is None else FORMATS[column](row[column]) for column in columns]
        else:
            cells = [row["status"].replace("|", "/"), *[""] * (len(columns) - 1)]
        lines.append("| " + " | ".join([row["measured"], *cells]) + " |")
    return lines


def goals(rows: list[Cells]) -> list[tuple[str, str]]:
    """Return each goal on an H100 and what was measured for it."""
    measured = {row["measured"]: row for row in rows if row["status"] == "ok"}

    def find(start: str, column: str) -> float | None:
        return next((row[column] for name, row in measured.items() if name.startswith(start) and column in row), None)

    def shown(value: float | None, form: Callable[[float], str]) -> str:
        return "not measured" if value is None else form(value)

    def share(mode: str) -> str:
        encoder, projector = find(f"encoder, 7 views{mode}", "ms"), find(f"projector, 7 views{mode}", "ms")
        return "not measured" if encoder is None or projector is None else f"{projector / encoder:.0%}"

    step, pipeline = find("stage 2, 32", "samples/s") or find("stage 2", "samples/s"), find("input", "samples/s")
    cores = None if step is None or pipeline is None else step / pipeline
    last = [name for name in measured if name.startswith("stage 2")]
    return [
        ("projector at most 20 % of the encoder at 7 views, eager", share("")),
        ("the same in CUDA graphs", share(", CUDA graph")),
        ("pixels to the first token of a 7B within 60 ms", shown(find("pixels", "ms"), lambda v: f"{v:.1f} ms")),
        ("the same at 45 % of the matrix rate or more", shown(find("pixels", "of matmul rate"), "{:.0%}".format)),
        (
            "stage-2 step at 50 % of the matrix rate or more",
            shown(find(last[-1], "of matmul rate") if last else None, "{:.0%}".format),
        ),
        ("cores of the input pipeline that feed a stage-2 step", shown(cores, "{:.1f}".format)),
    ]
