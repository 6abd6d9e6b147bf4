"""Tables: rows with a name and values in columns, with or without rules, stripes and merged heads."""

from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Entries
from .fonts import Face
from .sheet import Run, Shape, Sheet

# Share of tables whose rows are numbered, and of those whose first column is not the names'.
NUMBERED = 0.15
NAMES_ELSEWHERE = 0.3
ROW_NUMBERS = ("No.", "No", "Pos.", "Position", "#", "Nr.", "Line")


@dataclass(frozen=True)
class _Column:
    """Column of a table.

    Attributes:
        head, cells: texts of the column.
        width: width of the widest text in pixels.
        role: `names` or `numbers` of the rows, or `values`, which are asked for.
    """

    head: str
    cells: list[str]
    width: float
    role: str


def table(
    sheet: Sheet,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    noun: str,
    key: str | None = None,
    numeric: Sequence[str] = (),
    values: dict[str, list[float]] | None = None,
    style: str | None = None,
    groups: Sequence[tuple[str, int]] = (),
    names_first: bool = False,
) -> Entries | None:
    """Place as many rows and columns of a table as fit below the cursor; return None if fewer than two rows fit.

    Args:
        sheet: page to write on.
        header: titles of the columns, the names' column first.
        rows: texts of the cells, the name first; "" for an empty cell.
        noun: singular noun of a row.
        key: title of the column that a question may leave out.
        numeric: titles of the right-aligned columns.
        values: each row's number by column, for comparisons.
        style: `grid`, `lines`, `stripes` or `plain`.
        groups: merged heads above the columns after the first: title and number of columns.
        names_first: True if no other column may stand before the names.
    """
    rng, em = sheet.rng, sheet.em
    face = sheet.style.body.bold if rng.random() < 0.7 else sheet.style.body.regular
    columns: list[_Column] = []
    for place, head in enumerate(header):
        cells = [row[place] for row in rows]
        width = max(map(sheet.measure, cells), default=0.0)
        column = _Column(head, cells, max(width, sheet.measure(head, face)), "values" if place else "names")
        if sum(each.width + 0.9 * em for each in columns) + column.width > sheet.width:
            break
        columns.append(column)
    count = min(sheet.lines_left - 1 - bool(groups), len(rows))
    if len(columns) < 2 or count < 2:
        return None
    if not (names_first or groups):
        columns = _rearrange(sheet, columns, face, is_ranked=key is not None)
    slack = (sheet.width - sum(column.width for column in columns)) / len(columns)
    gap = slack if rng.random() < 0.5 else min(slack, rng.uniform(1.0, 3.0) * em)
    style = style or rng.choice(("grid", "lines", "stripes", "plain"))
    pitch, top = sheet.style.pitch, sheet.top
    edges = [sheet.left]
    for column in columns:
        edges.append(edges[-1] + column.width + gap)
    if groups and sum(width for _, width in groups) == len(columns) - 1:
        first = 1
        for text, width in groups:
            if sheet.measure(text, face) < edges[first + width] - edges[first]:
                sheet.put(text, (edges[first] + edges[first + width]) / 2, 0.5, face)
            first += width
        sheet.feed()
    if rng.random() < 0.35:
        sheet.box((edges[0] - 0.3 * em, sheet.top, edges[-1], sheet.top + pitch), fill=sheet.style.soft)
    asked: dict[str, list[Run | None]] = {column.head.lower(): [] for column in columns if column.role == "values"}
    entries = Entries(noun, [], asked, key=key.lower() if key else None)
    for number in range(count + 1):
        if style == "stripes" and number % 2 == 0 and number:
            sheet.box((edges[0] - 0.3 * em, sheet.top, edges[-1], sheet.top + pitch), fill=sheet.style.soft)
        for column, left, right in zip(columns, edges, edges[1:], strict=False):
            flush = column.head in numeric
            text = column.cells[number - 1] if number else column.head
            run = sheet.put(text, right - gap if flush else left, 1.0 if flush else 0.0, None if number else face)
            if number and column.role == "names":
                entries.names.append(run)
            elif number and column.role == "values":
                entries.columns[column.head.lower()].append(run if text else None)
        sheet.feed()
        if style in ("lines", "grid") and (number == 0 or style == "grid"):
            sheet.rule(edges[0] - 0.3 * em, edges[-1], sheet.style.ink)
    if style == "grid":
        thin = max(round(0.05 * em), 1)
        for edge in [edges[0] - 0.3 * em, *(edge - 0.5 * gap for edge in edges[1:-1]), edges[-1]]:
            points = ((edge, top), (edge, sheet.top))
            sheet.shapes.append(Shape("line", points, outline=sheet.style.ink, width=thin))
    entries.values = {
        name: numbers[:count] for name, numbers in (values or {}).items() if name in asked or name == entries.key
    }
    sheet.facts.append(entries)
    return entries


def _rearrange(sheet: Sheet, columns: list[_Column], face: Face, is_ranked: bool) -> list[_Column]:
    """Move the names of some tables behind other columns, and number the rows of some that no value ranks."""
    rng, columns = sheet.rng, list(columns)
    rest = sheet.width - sum(column.width + 0.9 * sheet.em for column in columns)
    if rng.random() < NAMES_ELSEWHERE:
        columns.insert(rng.randint(1, len(columns) - 1), columns.pop(0))
    if not is_ranked and rng.random() < NUMBERED:
        heads = {column.head.lower() for column in columns}
        head = rng.choice([head for head in ROW_NUMBERS if head.lower() not in heads])
        point, first = rng.choice(("", "", ".")), rng.choice((1, 1, rng.randint(2, 50)))
        cells = [f"{first + number}{point}" for number in range(len(columns[0].cells))]
        width = max(sheet.measure(head, face), sheet.measure(cells[-1]))
        if width < rest:
            columns.insert(0, _Column(head, cells, width, "numbers"))
    return columns
