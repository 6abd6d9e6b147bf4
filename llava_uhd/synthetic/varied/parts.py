"""Parts that many layouts share: labeled fields, lists of goods, tables, sums, addresses, text, logos, stamps."""

import math
from collections.abc import Sequence

from ..page import Color
from .facts import Entries, Field, Line
from .label_wordings import LABELED
from .labels import LABELS
from .sheet import Run, Shape, Sheet
from .wordings import DATE, TITLE


def title(
    sheet: Sheet,
    text: str,
    align: float | None = None,
    scale: float | None = None,
    wordings: tuple[str, ...] = (),
) -> Run | None:
    """Place a heading and record it as the title, with further wordings of questions about it."""
    run = sheet.heading(text, align, scale)
    if run is not None:
        sheet.facts.append(Field("title", run.text, "title", (run,), (*TITLE, *wordings)))
    return run


def field_value(sheet: Sheet, name: str, run: Run) -> None:
    """Record a placed run as the value of a label."""
    sheet.facts.append(Field(name, run.text, LABELS[name].ability, (run,), LABELED[name]))


def labeled(sheet: Sheet, name: str, left: float, right: float, start: float | None = None) -> bool:
    """Place a label and its value on the current line; return False, placing nothing, if they do not fit.

    Args:
        sheet: page to write on.
        name: name of the label, in `LABELS`.
        left: left bound in pixels.
        right: right bound in pixels.
        start: left end of the value in pixels; None for right after the label.
    """
    rng = sheet.rng
    shown = rng.choice(LABELS[name].printed) + rng.choice((":", ":", ""))
    value = LABELS[name].draw(sheet.content)
    face = sheet.style.body.bold if rng.random() < 0.3 else sheet.style.body.regular
    begin = left + sheet.measure(shown, face) + 0.5 * sheet.em
    begin = begin if start is None else max(start, begin)
    if begin + sheet.measure(value) > right:
        return False
    sheet.put(shown, left, face=face)
    field_value(sheet, name, sheet.put(value, begin))
    return True


def fields(sheet: Sheet, names: Sequence[str], left: float, right: float, aligned: bool | None = None) -> None:
    """Labeled values, one a line, their values in one column or right after the labels."""
    aligned = sheet.rng.random() < 0.6 if aligned is None else aligned
    start = left + min(9.5 * sheet.em, 0.5 * (right - left)) if aligned else None
    for name in names:
        if sheet.lines_left >= 1 and labeled(sheet, name, left, right, start):
            sheet.feed()


def dated(sheet: Sheet, x: float, align: float = 0.0, label: str | None = None) -> None:
    """Place the date of the document, with or without a label, and move the cursor below it."""
    value = sheet.content.date()
    shown = sheet.rng.choice(("Date: ", "Date ", "")) if label is None else label
    width = sheet.measure(shown + value)
    left = x - align * width
    if shown:
        sheet.put(shown.strip(), left)
    run = sheet.put(value, left + (sheet.measure(shown) if shown else 0))
    sheet.facts.append(Field("date", value, "date", (run,), DATE))
    sheet.feed()


def address(sheet: Sheet, x: float, align: float = 0.0, name: str | None = None) -> None:
    """Place name, street and city below each other, without questions about them."""
    content = sheet.content
    for line in (name, content.street(), f"{content.postcode()} {content.city()}"):
        if line and sheet.lines_left >= 1 and sheet.measure(line) <= sheet.width:
            sheet.put(line, x, align)
            sheet.feed()
    sheet.unlabeled |= {"city", "street", "post code", "customer", "contact", "company"}


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
    """
    rng, em = sheet.rng, sheet.em
    face = sheet.style.body.bold if rng.random() < 0.7 else sheet.style.body.regular
    widths: list[float] = []
    for column, head in enumerate(header):
        widest = max([sheet.measure(head, face), *(sheet.measure(row[column]) for row in rows)])
        if sum(widths) + widest + 0.9 * em * len(widths) > sheet.width:
            break
        widths.append(widest)
    room = sheet.lines_left - 1 - bool(groups)
    rows = rows[: min(room, len(rows))]
    if len(widths) < 2 or len(rows) < 2:
        return None
    header = header[: len(widths)]
    slack = (sheet.width - sum(widths)) / len(widths)
    gap = slack if rng.random() < 0.5 else min(slack, rng.uniform(1.0, 3.0) * em)
    style = style or rng.choice(("grid", "lines", "stripes", "plain"))
    pitch, top = sheet.style.pitch, sheet.top
    edges = [sheet.left]
    for width in widths:
        edges.append(edges[-1] + width + gap)
    if groups and sum(count for _, count in groups) == len(widths) - 1:
        column = 1
        for text, count in groups:
            if sheet.measure(text, face) < edges[column + count] - edges[column]:
                sheet.put(text, (edges[column] + edges[column + count]) / 2, 0.5, face)
            column += count
        sheet.feed()
    if rng.random() < 0.35:
        sheet.box((edges[0] - 0.3 * em, sheet.top, edges[-1], sheet.top + pitch), fill=sheet.style.soft)
    entries = Entries(noun, [], {name.lower(): [] for name in header[1:]}, key=key.lower() if key else None)
    for number, row in enumerate([header, *rows]):
        if style == "stripes" and number % 2 == 0 and number:
            sheet.box((edges[0] - 0.3 * em, sheet.top, edges[-1], sheet.top + pitch), fill=sheet.style.soft)
        for column, head in enumerate(header):
            flush = head in numeric
            x = edges[column + 1] - gap if flush else edges[column]
            run = sheet.put(row[column], x, 1.0 if flush else 0.0, face if number == 0 else None)
            if number and column == 0:
                entries.names.append(run)
            elif number:
                entries.columns[head.lower()].append(run if row[column] else None)
        sheet.feed()
        if style in ("lines", "grid") and (number == 0 or style == "grid"):
            sheet.rule(edges[0] - 0.3 * em, edges[-1], sheet.style.ink)
    if style == "grid":
        thin = max(round(0.05 * em), 1)
        for edge in [edges[0] - 0.3 * em, *(edge - 0.5 * gap for edge in edges[1:-1]), edges[-1]]:
            points = ((edge, top), (edge, sheet.top))
            sheet.shapes.append(Shape("line", points, outline=sheet.style.ink, width=thin))
    kept = {name.lower() for name in header}
    entries.values = {
        name: numbers[: len(rows)] for name, numbers in (values or {}).items() if name in kept or name == entries.key
    }
    sheet.facts.append(entries)
    return entries


def sums(sheet: Sheet, net: int, left: float, right: float) -> None:
    """Place subtotal, tax and total of an amount in hundredths, right-aligned, the total in bold."""
    rng, content = sheet.rng, sheet.content
    tax = net * rng.choice((5, 7, 8, 10, 19, 20)) // 100
    shown = rng.choice((("total",), ("subtotal", "tax", "total"), ("tax", "total")))
    # Without a subtotal the tax is a part of the total.
    amounts = {"subtotal": net, "tax": tax, "total": net + tax * ("subtotal" in shown)}
    for name in shown:
        if sheet.lines_left < 1:
            return
        face = sheet.style.body.bold if name == "total" and rng.random() < 0.8 else None
        label = rng.choice(LABELS[name].printed)
        value = content.amount(amounts[name])
        if sheet.measure(label + value, face) + sheet.em > right - left:
            continue
        sheet.put(label, left, face=face)
        field_value(sheet, name, sheet.put(value, right, 1.0, face))
        sheet.feed()


def paragraph(sheet: Sheet, text: str, left: float, right: float, lines: int | None = None) -> None:
    """Place running text and record each line for transcription."""
    for line in sheet.wrap(text, right - left)[:lines]:
        if sheet.lines_left < 1:
            return
        sheet.facts.append(Line(sheet.put(line, left)))
        sheet.feed()


def logo(sheet: Sheet, x: float, y: float, side: float) -> None:
    """Place a small graphical logo without text."""
    rng, color = sheet.rng, sheet.style.accent
    kind = rng.choice(("ellipse", "box", "round", "polygon", "ring"))
    bounds = (x, y, x + side, y + side)
    if kind == "polygon":
        count, turn = rng.choice((3, 5, 6)), rng.uniform(0, 6.3)
        angles = [turn + 2 * math.pi * corner / count for corner in range(count)]
        center = side / 2
        points = tuple((x + center * (1 + math.cos(a)), y + center * (1 + math.sin(a))) for a in angles)
        sheet.shapes.append(Shape("polygon", points, fill=color))
    elif kind == "ring":
        sheet.box(bounds, "ellipse", outline=color, width=max(round(side / 6), 1))
    else:
        sheet.box(bounds, kind, fill=color)


def stamp(sheet: Sheet) -> None:
    """Place a pale ring or box like an unreadable stamp."""
    rng = sheet.rng
    side = rng.uniform(3, 7) * sheet.em
    x = rng.uniform(0, max(sheet.size[0] - side, 1))
    y = rng.uniform(0, max(sheet.top - side, 1))
    paper, hue = sheet.style.paper, rng.choice(((200, 40, 40), (40, 60, 180), (60, 130, 60)))
    color: Color = tuple((2 * a + b) // 3 for a, b in zip(paper, hue, strict=True))  # type: ignore[assignment]
    kind = rng.choice(("ellipse", "round"))
    sheet.box((x, y, x + side, y + side * rng.uniform(0.4, 1.0)), kind, outline=color, width=max(sheet.em // 8, 1))
