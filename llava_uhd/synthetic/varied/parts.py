"""Parts that many layouts share: labeled fields, sums, addresses, text, logos, stamps."""

import math
from collections.abc import Sequence

from ..page import Color
from .facts import Field, Line
from .label_wordings import LABELED
from .labels import LABELS, invented
from .sheet import Run, Shape, Sheet
from .wordings import DATE, TITLE, TOP

# Share of labels that are any words.
INVENTED = 0.2


def title(
    sheet: Sheet,
    text: str,
    align: float | None = None,
    scale: float | None = None,
    wordings: tuple[str, ...] = (),
) -> Run | None:
    """Place a heading and record it as the title, with further wordings of questions about it."""
    of_top = () if sheet.texts else TOP
    run = sheet.heading(text, align, scale)
    if run is not None:
        sheet.facts.append(Field("title", run.text, "title", (run,), (*TITLE, *of_top, *wordings)))
    return run


def field_value(sheet: Sheet, name: str, run: Run) -> None:
    """Record a placed run as the value of a label."""
    sheet.facts.append(Field(name, run.text, LABELS[name].ability, (run,), LABELED[name]))


def labeled(
    sheet: Sheet, name: str, left: float, right: float, start: float | None = None, align: float = 0.0
) -> bool:
    """Place a label and its value on the current line; return False, placing nothing, if they do not fit.

    Some labels are replaced by one of any words.

    Args:
        sheet: page to write on.
        name: name of the label, in `LABELS`.
        left: left bound in pixels.
        right: right bound in pixels.
        start: left end of the value in pixels; None for right after the label.
        align: 0, 0.5 or 1 for a label right before its value at the left bound, in the middle or at the right bound.
    """
    rng = sheet.rng
    is_invented = rng.random() < INVENTED
    name, label, sort = invented(sheet.content) if is_invented else (name, LABELS[name], name)
    shown = rng.choice(label.printed) + rng.choice((":", ":", ""))
    value = label.draw(sheet.content)
    face = sheet.style.body.bold if rng.random() < 0.3 else sheet.style.body.regular
    width = sheet.measure(shown, face) + 0.5 * sheet.em
    left += align * max(right - left - width - sheet.measure(value), 0.0)
    begin = left + width if start is None else max(start, left + width)
    if begin + sheet.measure(value) > right:
        return False
    cue = sheet.put(shown, left, face=face)
    run = sheet.put(value, begin)
    if is_invented:
        sheet.unlabeled.add(sort)
        sheet.facts.append(Field(name, value, "field", (run,), keys=(cue,)))
    else:
        field_value(sheet, name, run)
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


def sums(sheet: Sheet, net: int, left: float, right: float) -> None:
    """Place subtotal, tax and total of an amount in hundredths, right-aligned, the total in bold."""
    rng, content = sheet.rng, sheet.content
    tax = net * rng.choice((5, 7, 8, 10, 19, 20)) // 100
    shown = rng.choice((("total",), ("subtotal", "tax", "total"), ("tax", "total")))
    # Without a subtotal the tax is a part of the total.
    amounts = {"subtotal": net, "tax": tax, "total": net + tax * ("subtotal" in shown)}
    is_beside = rng.random() < 0.25
    for name in shown:
        if sheet.lines_left < 1:
            return
        face = sheet.style.body.bold if name == "total" and rng.random() < 0.8 else None
        label = rng.choice(LABELS[name].printed)
        value = content.amount(amounts[name])
        if sheet.measure(label + value, face) + sheet.em > right - left:
            continue
        run = sheet.put(value, right, 1.0, face)
        sheet.put(label, run.x - 0.5 * sheet.em if is_beside else left, float(is_beside), face)
        field_value(sheet, name, run)
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
