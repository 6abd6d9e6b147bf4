"""Tables, training curves and one JSON file of the runs of a folder."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from llava_uhd.files import write_json, write_text

from .rows import ROWS, TABLES, TASKS, Table
from .statistics import Interval, difference_interval, score_interval
from .training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {"characters": "characters, %", "sub-cells": "sub-cells, R2 x 100"}
Groups = dict[tuple[str, str, str], list[Run]]


def group_runs(runs: Iterable[Run]) -> Groups:
    """Return the runs of each (row, task, budget), by seed."""
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        groups[run.row, run.task, run.budget].append(run)
    return dict(groups)


def summarize(runs: Iterable[Run]) -> dict[str, Any]:
    """Return every row's scores and every pair's differences, ready for JSON."""
    groups = group_runs(runs)
    rows = [
        {
            "row": row,
            "task": task,
            "budget": budget,
            **asdict(score_interval(group)),
            "steps": round(mean(run.steps for run in group)),
            "core_seconds": round(mean(run.core_seconds for run in group), 1),
            "tokens": group[0].tokens,
            "parameters": group[0].parameters,
            "scores": {run.seed: round(run.score, 5) for run in group},
        }
        for (row, task, budget), group in groups.items()
    ]
    differences = []
    for name, table in TABLES.items():
        for better, worse in table.pairs:
            for task in TASKS:
                for budget in _budgets(groups):
                    found = _difference(groups, better, worse, task, budget)
                    if found is not None:
                        pair = {"table": name, "row": better, "minus": worse, "task": task, "budget": budget}
                        differences.append({**pair, **asdict(found)})
    return {"rows": rows, "differences": differences}


def _difference(groups: Groups, better: str, worse: str, task: str, budget: str) -> Interval | None:
    first, second = groups.get((better, task, budget)), groups.get((worse, task, budget))
    return None if first is None or second is None else difference_interval(first, second)


def tables(runs: Sequence[Run]) -> str:
    """Return all tables as Markdown: of each the rows, then the paired differences."""
    groups = group_runs(runs)
    shown = []
    for table in TABLES.values():
        # A table of one row compares nothing.
        if len({row for row, _, _ in groups} & set(table.rows)) > 1:
            shown.append(f"**{table.title}**\n\n{_rows_table(table, groups)}")
            if pairs := _pairs_table(table, groups):
                shown.append(pairs)
    return "\n".join(shown)


def _columns(groups: Groups, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the (task, budget) pairs that any of the rows has."""
    names = set(names)
    return [
        (task, budget)
        for task in TASKS
        for budget in _budgets(groups)
        if any((name, task, budget) in groups for name in names)
    ]


def _budgets(groups: Groups) -> list[str]:
    """Return the budgets of any run: `steps`, then core seconds, ascending."""
    found = {budget for _, _, budget in groups}
    return sorted(found, key=lambda budget: 0.0 if budget == "steps" else float(budget.removesuffix(" s")))


def _heading(task: str, budget: str) -> str:
    return f"{UNITS[task]}, {'equal steps' if budget == 'steps' else f'{budget} of a core'}"


def _rows_table(table: Table, groups: Groups) -> str:
    columns = _columns(groups, table.rows)
    headings = [
        "row",
        "tokens a page",
        "parameters",
        *(_heading(*column) for column in columns),
        "core seconds of equal steps",
    ]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for name in table.rows:
        found = [groups.get((name, *column)) for column in columns]
        first = next((group for group in found if group), None)
        if first is None:
            continue
        cells = [_score(group) if group else "" for group in found]
        seconds = [run.core_seconds for group in found if group for run in group if run.budget == "steps"]
        size = [str(first[0].tokens), f"{first[0].parameters:,}"]
        cost = f"{mean(seconds):.0f}" if seconds else ""
        lines.append(f"| {' | '.join([ROWS[name].label, *size, *cells, cost])} |")
    return "\n".join(lines) + "\n"


def _score(group: Sequence[Run]) -> str:
    found = score_interval(group)
    singles = ", ".join(f"{100 * run.score:.1f}" for run in group)
    return f"**{100 * found.value:.1f}** [{100 * found.low:.1f}, {100 * found.high:.1f}] ({singles})"


def _pairs_table(table: Table, groups: Groups) -> str:
    columns = _columns(groups, table.rows)
    lines = []
    for better, worse in table.pairs:
        found = [_difference(groups, better, worse, *column) for column in columns]
        if any(found):
            cells = ["" if one is None else _signed(one) for one in found]
            lines.append(f"| {' | '.join([f'{ROWS[better].label} - {ROWS[worse].label}', *cells])} |")
    if not lines:
        return ""
    headings = ["paired difference", *(_heading(*column) for column in columns)]
    return "\n".join([f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", *lines]) + "\n"


def _signed(found: Interval) -> str:
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def figure(runs: Iterable[Run]) -> "Figure":
    """Draw the training curves: score against core seconds, a column per task, a line per row (mean of its seeds)."""
    from matplotlib.figure import Figure

    groups = group_runs(runs)
    tasks = [task for task in TASKS if any(task_of_runs == task for _, task_of_runs, _ in groups)]
    drawn = Figure(figsize=(6.5 * len(tasks), 5.2), dpi=120, layout="constrained")
    for axes, task in zip(drawn.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for name in ROWS:
            group = groups.get((name, task, "steps"))
            if group:
                points = list(zip(*(run.curve for run in group), strict=False))
                seconds = [mean(point[1] for point in of_step) for of_step in points]
                scores = [100 * mean(point[2] for point in of_step) for of_step in points]
                axes.plot(seconds, scores, marker=".", label=ROWS[name].label)
        axes.set_xscale("log")
        axes.set_xlabel("core seconds of training")
        axes.set_ylabel(UNITS[task])
        axes.grid(alpha=0.3)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return drawn


def write_report(runs: Sequence[Run], out: Path, settings: dict[str, Any]) -> None:
    """Write `results.json`, `tables.md` and `curves.png`."""
    write_json(out / "results.json", {"settings": settings, **summarize(runs)}, indent=1)
    write_text(out / "tables.md", tables(runs))
    figure(runs).savefig(out / "curves.png")
