"""The table and the picture of all runs that are finished."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from .reading import Run
from .variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_variant(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs of each variant, in the order of the table."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.variant].append(run)
    return {name: found[name] for name in VARIANTS if name in found}


def table(runs: Iterable[Run]) -> str:
    """Markdown: the mean over seeds, the standard deviation of a single run, and how many seeds there were."""
    lines = [
        "| variant | tokens a page | parameters | characters read | spread | seeds | held-out loss | core seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in by_variant(runs).items():
        scores = [100 * run.characters for run in group]
        spread = f"{stdev(scores):.1f}" if len(scores) > 1 else "-"
        loss, seconds = mean(run.loss for run in group), mean(run.core_seconds for run in group)
        size = f"{group[0].tokens} | {group[0].parameters:,}"
        lines.append(
            f"| {VARIANTS[name].label} | {size} | {mean(scores):.1f} % | {spread} | {len(scores)} | {loss:.3f} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def figure(runs: Iterable[Run]) -> "Figure":
    """Every run as a dot, the mean of each variant as a line."""
    from matplotlib.figure import Figure

    groups = by_variant(runs)
    drawn = Figure(figsize=(8, 0.55 * len(groups) + 1.2), dpi=150, layout="constrained")
    axes = drawn.subplots()
    for row, group in enumerate(groups.values()):
        scores = [100 * run.characters for run in group]
        axes.vlines(mean(scores), row - 0.3, row + 0.3, color="0.4")
        axes.plot(scores, [row] * len(scores), "o", alpha=0.8)
    axes.set_yticks(range(len(groups)), [VARIANTS[name].label for name in groups])
    axes.invert_yaxis()
    axes.set_xlabel("characters of held-out pages read, %")
    axes.grid(axis="x", alpha=0.3)
    return drawn


def write_report(runs: Iterable[Run], out: Path) -> None:
    """Writes `table.md` and `runs.png`."""
    (out / "table.md").write_text(table(runs))
    figure(runs).savefig(out / "runs.png")
