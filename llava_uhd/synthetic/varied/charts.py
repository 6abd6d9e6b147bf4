"""Charts with axes and legends: bars upright, lying, grouped and stacked; lines, pies, scatter plots."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..page import Color
from .content import MONTHS
from .facts import Entries
from .parts import title
from .sheet import Run, Shape, Sheet
from .wordings import CHART

PALETTES: tuple[tuple[Color, ...], ...] = (
    ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194)),
    ((70, 120, 180), (200, 90, 70), (90, 160, 90), (150, 110, 170), (210, 150, 60), (120, 120, 120), (60, 150, 160)),
    ((38, 70, 83), (42, 157, 143), (233, 196, 106), (244, 162, 97), (231, 111, 81), (100, 100, 140), (160, 190, 120)),
    ((60, 60, 60), (130, 130, 130), (190, 190, 190), (90, 90, 90), (160, 160, 160), (210, 210, 210), (110, 110, 110)),
)
TITLES = ("Sales", "Visitors", "Orders", "Exports", "Members", "Output", "Rainfall", "Votes", "Revenue by region",
          "Energy use", "Monthly costs", "Survey results", "Tickets sold", "Traffic", "Hours worked")  # fmt: skip

# Degrees by which turned names rise or fall, and the part of charts whose names are turned.
TURNS = (15.0, 50.0)
TURNED = 0.4


class Turn(NamedTuple):
    """Direction of the names below a chart: degrees by which they rise, and the part of them left of their mark."""

    angle: float
    align: float


LEVEL = Turn(0.0, 0.5)


def _with_rows(lay_out: Callable[[Sheet], None]) -> Callable[[Sheet], None]:
    """Forget the facts of a chart that did not fit: of its title alone no page is made."""

    @functools.wraps(lay_out)
    def lay_out_whole(sheet: Sheet) -> None:
        lay_out(sheet)
        if not any(isinstance(fact, Entries) for fact in sheet.facts):
            sheet.facts.clear()

    return lay_out_whole


def _categories(sheet: Sheet, count: int, noun: str) -> tuple[str, list[str]]:
    """Return names of one sort, and the noun of one: that of the sort, or the given one."""
    rng, content = sheet.rng, sheet.content
    sort = rng.randrange(5)
    if sort == 0:
        start = rng.randint(0, 12 - min(count, 12))
        return rng.choice(("month", noun)), [month[:3] for month in MONTHS[start : start + count]]
    if sort == 1:
        year = rng.randint(1990, 2020)
        return rng.choice(("year", noun)), [str(year + place) for place in range(count)]
    named, draw = (("city", content.city), ("country", content.country), ("name", content.made_up))[sort - 2]
    return rng.choice((named, noun)), content.distinct(draw, count)


def _values(sheet: Sheet, count: int) -> list[int]:
    """Return distinct values whose bars have visibly different heights."""
    rng = sheet.rng
    top = rng.choice((20, 100, 100, 500, 2000))
    step = max(top // 40, 1)
    return [step * number for number in rng.sample(range(2, top // step), k=count)]


def _ticks(highest: float) -> list[int]:
    """Return round numbers from 0 to just above the highest value."""
    raw = highest / 5
    power = 10 ** math.floor(math.log10(max(raw, 1)))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(step * place) for place in range(math.ceil(highest / step) + 1)]


def _value_axis(sheet: Sheet, highest: float, bounds: tuple[float, float, float, float], lying: bool) -> float:
    """Place tick marks with numbers and grid lines; return the pixels per unit."""
    left, top, right, bottom = bounds
    small, ticks = max(round(0.8 * sheet.em), 7), _ticks(highest)
    scale = ((right - left) if lying else (bottom - top)) / ticks[-1]
    grid = sheet.rng.random() < 0.6
    for tick in ticks:
        if lying:
            x = left + tick * scale
            sheet.put(f"{tick:{sheet.content.thousands}}", x, 0.5, size=small, y=bottom)
            points = ((x, top), (x, bottom))
        else:
            y = bottom - tick * scale
            sheet.put(f"{tick:{sheet.content.thousands}}", left - 0.4 * sheet.em, 1.0, size=small,
                      y=y - 0.5 * sheet.style.pitch)  # fmt: skip
            points = ((left, y), (right, y))
        if grid or tick == 0:
            sheet.shapes.append(Shape("line", points, outline=sheet.style.soft if tick else sheet.style.ink))
    return scale


def _legend(sheet: Sheet, names: Sequence[str], colors: Sequence[Color]) -> list[Run]:
    """Place colored boxes with names in a row below the title; return the names that fit."""
    x, runs = sheet.left, []
    for name, color in zip(names, colors, strict=False):
        width = sheet.measure(name) + 2.2 * sheet.em
        if x + width > sheet.right:
            break
        y = sheet.top + 0.5 * sheet.style.pitch
        sheet.box((x, y - 0.35 * sheet.em, x + 0.7 * sheet.em, y + 0.35 * sheet.em), fill=color)
        runs.append(sheet.put(name, x + sheet.em))
        x += width
    sheet.feed(1.3)
    return runs


def _head(sheet: Sheet) -> None:
    if sheet.rng.random() < 0.85:
        rng = sheet.rng
        text = rng.choice(TITLES) if rng.random() < 0.5 else sheet.content.words(rng.randint(1, 3)).capitalize()
        title(sheet, text, rng.choice((0.0, 0.5, 0.5)), rng.choice((1.0, 1.1, 1.3)), CHART)
        sheet.feed(0.4)


def _draw_turn(sheet: Sheet, step: float) -> Turn:
    """Return how names below a chart stand: level in most charts, and where turned lines would meet.

    Args:
        sheet: the page.
        step: distance of two names in pixels.
    """
    rng = sheet.rng
    angle = rng.uniform(*TURNS) * rng.choice((1, 1, 1, -1))
    if rng.random() > TURNED or step * abs(math.sin(math.radians(angle))) < 1.2 * sheet.em:
        return LEVEL
    return Turn(angle, rng.choice((0.5, 1.0 if angle > 0 else 0.0)))


def _fit_names(sheet: Sheet, names: list[str], turn: Turn, room: float) -> bool:
    """Take away names that do not fit below a chart beside each other; return whether the others do."""
    while not turn.angle and len(names) > 3 and max(map(sheet.measure, names)) + 0.4 * sheet.em > room / len(names):
        names.pop()
    return bool(turn.angle) or max(map(sheet.measure, names)) <= room / len(names)


def _put_name(sheet: Sheet, name: str, x: float, bottom: float, turn: Turn) -> Run:
    """Place a name below a chart."""
    if not turn.angle:
        return sheet.put(name, x, 0.5, y=bottom + 0.1 * sheet.em)
    return sheet.put_turned(name, x, bottom + 0.4 * sheet.em, *turn)


def _frame(
    sheet: Sheet, axis: float, names: Sequence[str] = (), turn: Turn = LEVEL
) -> tuple[float, float, float, float]:
    """Return the bounds of the plot, with room for the axis' numbers at the left and the names below."""
    room = 1.6 * sheet.style.pitch
    if turn.angle:
        sine, cosine = abs(math.sin(math.radians(turn.angle))), math.cos(math.radians(turn.angle))
        room = 0.8 * sheet.em + sine * max(map(sheet.measure, names)) + cosine * sheet.em
    bottom = sheet.bottom - room
    bounds = sheet.left + axis, sheet.top + 0.9 * sheet.style.pitch, sheet.right, bottom
    if sheet.rng.random() < 0.5:
        ground = sheet.style.soft if sheet.rng.random() < 0.5 else None
        sheet.box(bounds, fill=ground, outline=sheet.style.soft if ground else sheet.style.ink)
    return bounds


@_with_rows
def lay_out_bars(sheet: Sheet) -> None:
    """Lay out vertical bars of one series, with values on top or on an axis."""
    rng, em = sheet.rng, sheet.em
    _head(sheet)
    printed = rng.random() < 0.65
    axis = 0.5 * em if printed and rng.random() < 0.5 else 4.0 * em
    noun, names = _categories(sheet, rng.randint(3, 9), "bar")
    turn = _draw_turn(sheet, (sheet.width - axis) / len(names))
    fit = _fit_names(sheet, names, turn, sheet.width - axis)
    left, top, right, bottom = bounds = _frame(sheet, axis, names, turn)
    step = (right - left) / len(names)
    if not fit or bottom - top < 3 * em:
        return
    values = _values(sheet, len(names))
    if left - sheet.left > em:
        scale = _value_axis(sheet, max(values), bounds, lying=False)
    else:
        scale = (bottom - top) / max(values)
        sheet.shapes.append(Shape("line", ((left, bottom), (right, bottom)), outline=sheet.style.ink))
    colors = rng.choice(PALETTES)
    many, width = rng.random() < 0.3, rng.uniform(0.2, 0.45)
    unit = rng.choice(("", "", "%")) if max(values) <= 100 else ""
    entries = Entries(noun, [], {"value": []} if printed else {}, {"value": [float(v) for v in values]}, key="value")
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        x, height = left + (place + 0.5) * step, value * scale
        color = colors[place % len(colors)] if many else colors[0]
        sheet.box((x - width * step, bottom - height, x + width * step, bottom), fill=color)
        entries.names.append(_put_name(sheet, name, x, bottom, turn))
        if printed:
            text = f"{value:{sheet.content.thousands}}{unit}"
            entries.columns["value"].append(sheet.put(text, x, 0.5, y=bottom - height - sheet.style.pitch))
    sheet.facts.append(entries)


@_with_rows
def lay_out_lying_bars(sheet: Sheet) -> None:
    """Lay out horizontal bars, one per line."""
    rng, em = sheet.rng, sheet.em
    _head(sheet)
    noun, names = _categories(sheet, max(min(rng.randint(3, 12), sheet.lines_left - 2), 2), "bar")
    values = _values(sheet, len(names))
    start = sheet.left + max(map(sheet.measure, names)) + 0.6 * em
    printed = rng.random() < 0.75
    unit = rng.choice(("", "", "%")) if max(values) <= 100 else ""
    room = sheet.right - start - (sheet.measure(f"{max(values)},{unit}") + em if printed else 0)
    if room < 4 * em:
        return
    pitch = max(min((sheet.bottom - sheet.top - 2 * em) / len(names), 2.2 * sheet.style.pitch), sheet.style.pitch)
    top, low = sheet.top, sheet.top + pitch * len(names)
    scale = room / max(values)
    if not printed or rng.random() < 0.3:
        scale = _value_axis(sheet, max(values), (start, top, start + room, low), lying=True)
    color, thick = rng.choice(rng.choice(PALETTES)), rng.uniform(0.3, 0.45) * pitch
    entries = Entries(noun, [], {"value": []} if printed else {}, {"value": [float(v) for v in values]}, key="value")
    for name, value in zip(names, values, strict=True):
        middle = sheet.top + 0.5 * pitch
        y, end = middle - 0.5 * sheet.style.pitch, start + value * scale
        sheet.box((start, middle - thick, end, middle + thick), fill=color)
        entries.names.append(sheet.put(name, start - 0.5 * em, 1.0, y=y))
        if printed:
            text = f"{value:{sheet.content.thousands}}{unit}"
            entries.columns["value"].append(sheet.put(text, end + 0.4 * em, y=y))
        sheet.top += pitch
    sheet.facts.append(entries)
    sheet.feed(1.3)
    sheet.crop()


def _series(sheet: Sheet, stacked: bool) -> None:
    """Lay out grouped or stacked bars with a legend, and values in or on the bars where there is room."""
    rng, em = sheet.rng, sheet.em
    _head(sheet)
    colors = rng.choice(PALETTES[:3])
    noun, groups = _categories(sheet, rng.randint(2, 5), "group")
    legend = _legend(sheet, sheet.content.distinct(sheet.content.made_up, rng.randint(2, 3)), colors)
    turn = _draw_turn(sheet, (sheet.width - 4.0 * em) / len(groups))
    left, top, right, bottom = bounds = _frame(sheet, 4.0 * em, groups, turn)
    if len(legend) < 2 or bottom - top < 4 * em:
        return
    step = (right - left) / len(groups)
    if not turn.angle and max(map(sheet.measure, groups)) > step:
        return
    values = {run.text: _values(sheet, len(groups)) for run in legend}
    sums = [sum(numbers) for numbers in zip(*values.values(), strict=True)]
    scale = _value_axis(sheet, max(sums) if stacked else max(map(max, values.values())), bounds, lying=False)
    entries = Entries(noun, [], {run.text.lower(): [] for run in legend})
    entries.values = {name.lower(): [float(number) for number in numbers] for name, numbers in values.items()}
    for place, group in enumerate(groups):
        x, floor = left + (place + 0.5) * step, bottom
        entries.names.append(_put_name(sheet, group, x, bottom, turn))
        wide = 0.6 * step if stacked else 0.8 * step / len(legend)
        for order, (name, color) in enumerate(zip(values, colors, strict=False)):
            height, text = values[name][place] * scale, str(values[name][place])
            begin = x - 0.3 * step if stacked else x - 0.4 * step + order * wide
            sheet.box((begin, floor - height, begin + wide, floor), fill=color)
            y = floor - height / 2 - 0.5 * sheet.style.pitch if stacked else floor - height - sheet.style.pitch
            fits = sheet.measure(text) < wide and (height > sheet.style.pitch or not stacked)
            ink = ((255, 255, 255) if sum(color) < 380 else (10, 10, 10)) if stacked else None
            cell = sheet.put(text, begin + wide / 2, 0.5, color=ink, y=y) if fits else None
            entries.columns[name.lower()].append(cell)
            if stacked:
                floor -= height
    sheet.facts.append(entries)


@_with_rows
def lay_out_grouped_bars(sheet: Sheet) -> None:
    _series(sheet, stacked=False)


@_with_rows
def lay_out_stacked_bars(sheet: Sheet) -> None:
    _series(sheet, stacked=True)


@_with_rows
def lay_out_line_chart(sheet: Sheet) -> None:
    """Lay out a line chart over months or years, with an axis, markers and sometimes values."""
    rng, em = sheet.rng, sheet.em
    _head(sheet)
    count = rng.randint(3, 9)
    first = rng.randint(1980, 2015)
    months = rng.random() < 0.5
    names = [MONTHS[place][:3] if months else str(first + place) for place in range(count)]
    turn = _draw_turn(sheet, (sheet.width - 4.0 * em) / count)
    left, top, right, bottom = bounds = _frame(sheet, 4.0 * em, names, turn)
    step = (right - left) / count
    if bottom - top < 4 * em or (not turn.angle and max(map(sheet.measure, names)) + 0.3 * em > step):
        return
    values = _values(sheet, count)
    scale = _value_axis(sheet, max(values), bounds, lying=False)
    color, printed = rng.choice(rng.choice(PALETTES)), rng.random() < 0.5
    points = [(left + (place + 0.5) * step, bottom - value * scale) for place, value in enumerate(values)]
    sheet.shapes.append(Shape("path", tuple(points), outline=color, width=max(round(0.15 * em), 1)))
    noun = "month" if months else "year"
    entries = Entries(noun, [], {"value": []} if printed else {}, {"value": [float(v) for v in values]}, key="value")
    for (x, y), name, value in zip(points, names, values, strict=True):
        radius = 0.22 * em
        sheet.box((x - radius, y - radius, x + radius, y + radius), "ellipse", fill=color)
        entries.names.append(_put_name(sheet, name, x, bottom, turn))
        if printed:
            entries.columns["value"].append(sheet.put(str(value), x, 0.5, y=y - 1.1 * sheet.style.pitch))
    sheet.facts.append(entries)


@_with_rows
def lay_out_pie(sheet: Sheet) -> None:
    """Lay out a pie or ring with percentages in a legend or around it."""
    rng, content = sheet.rng, sheet.content
    _head(sheet)
    count = rng.randint(3, 6)
    cuts = sorted(rng.sample(range(5, 96, 3), k=count - 1))
    parts = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
    names = content.distinct(rng.choice((content.city, content.made_up, content.product)), count)
    entries = Entries("part", [], {"share": []}, {"share": [float(part) for part in parts]}, key="share")
    surrounded = rng.random() < 0.5 and _surrounded_pie(sheet, entries, names, parts)
    if surrounded or _pie_with_legend(sheet, entries, names, parts):
        sheet.facts.append(entries)


def _look_of_pie(sheet: Sheet) -> tuple[Sequence[Color], float]:
    """Sample the colors of a pie, and the angle in degrees at which its first part begins."""
    return sheet.rng.choice(PALETTES), sheet.rng.uniform(0, 360)


def _draw_pie(
    sheet: Sheet, parts: Sequence[int], look: tuple[Sequence[Color], float], x: float, y: float, side: float
) -> None:
    """Place a pie or ring of a look in the square whose upper left corner is (x, y)."""
    colors, turn = look
    for part, color in zip(parts, colors, strict=False):
        end = turn + 3.6 * part
        sheet.shapes.append(Shape("slice", ((x, y), (x + side, y + side)), fill=color, angles=(turn, end)))
        turn = end
    if sheet.rng.random() < 0.35:
        inner = 0.28 * side
        sheet.box((x + inner, y + inner, x + side - inner, y + side - inner), "ellipse", fill=sheet.style.paper)


def _put_part(sheet: Sheet, entries: Entries, name: str, part: int, x: float, y: float | None = None) -> None:
    """Place a name and its percentage beside each other."""
    run = sheet.put(name, x, y=y)
    entries.names.append(run)
    entries.columns["share"].append(sheet.put(f"{part}%", run.x + run.width + 0.4 * sheet.em, y=y))


def _pie_with_legend(sheet: Sheet, entries: Entries, names: Sequence[str], parts: Sequence[int]) -> bool:
    """Place a pie at the left and a legend at the right; return whether both fit."""
    em, pitch = sheet.em, sheet.style.pitch
    side = min(0.5 * sheet.width, sheet.bottom - sheet.top - em)
    left = sheet.left + side + 1.2 * em
    widest = max(sheet.measure(f"{name}{part}%") for name, part in zip(names, parts, strict=True))
    if side < 4 * em or left + widest + 2 * em > sheet.right:
        return False
    look = _look_of_pie(sheet)
    _draw_pie(sheet, parts, look, sheet.left, sheet.top, side)
    sheet.top += max((side - len(parts) * pitch) / 2, 0)
    for name, part, color in zip(names, parts, look[0], strict=False):
        middle = sheet.top + 0.5 * pitch
        sheet.box((left, middle - 0.35 * em, left + 0.7 * em, middle + 0.35 * em), fill=color)
        _put_part(sheet, entries, name, part, left + em)
        sheet.feed()
    return True


def _surrounded_pie(sheet: Sheet, entries: Entries, names: Sequence[str], parts: Sequence[int]) -> bool:
    """Place a pie in the middle, each part with its name beside it, unless two names would meet; return if it did."""
    em, pitch = sheet.em, sheet.style.pitch
    widths = [sheet.measure(f"{name}{part}%") + 0.4 * em for name, part in zip(names, parts, strict=True)]
    side = min(sheet.width - 2 * max(widths) - 2 * em, sheet.bottom - sheet.top - 3 * pitch)
    if side < 4 * em:
        return False
    x, y = sheet.left + 0.5 * (sheet.width - side), sheet.top + 1.2 * pitch
    look = _look_of_pie(sheet)
    turn = look[1]
    spots: list[tuple[float, float]] = []
    for part, width in zip(parts, widths, strict=True):
        angle = math.radians(turn + 1.8 * part)
        turn += 3.6 * part
        reach = 0.5 * side + 0.7 * em
        at, middle = x + 0.5 * side + reach * math.cos(angle), y + 0.5 * side + reach * math.sin(angle)
        spots.append((at - (width if math.cos(angle) < 0 else 0), middle - 0.5 * pitch))
    for place, (at, top) in enumerate(spots):
        for (other, low), width in zip(spots[:place], widths, strict=False):
            if abs(top - low) < pitch and at < other + width and other < at + widths[place]:
                return False
    _draw_pie(sheet, parts, look, x, y, side)
    for name, part, (at, top) in zip(names, parts, spots, strict=True):
        _put_part(sheet, entries, name, part, at, top)
    return True


@_with_rows
def lay_out_scatter(sheet: Sheet) -> None:
    """Lay out a scatter plot of named points."""
    rng, em = sheet.rng, sheet.em
    _head(sheet)
    left, top, right, bottom = bounds = _frame(sheet, 4.0 * em)
    if bottom - top < 6 * em or right - left < 10 * em:
        return
    count = rng.randint(3, 8)
    heights = _values(sheet, count)
    scale = _value_axis(sheet, max(heights), bounds, lying=False)
    for place in range(1, 6):
        sheet.put(str(10 * place), left + (right - left) * place / 6, 0.5, size=max(round(0.8 * em), 7), y=bottom)
    entries = Entries("point", [], {}, {"value": []}, key="value", complete=False)
    color, taken = rng.choice(rng.choice(PALETTES)), [0.0]
    for name, height in zip(sheet.content.distinct(sheet.content.made_up, count), heights, strict=False):
        x, y = left + rng.uniform(0.04, 0.7) * (right - left), bottom - height * scale
        if min(abs(y - other) for other in taken) < sheet.style.pitch or x + sheet.measure(name) + em > right:
            continue
        taken.append(y)
        sheet.box((x - 0.25 * em, y - 0.25 * em, x + 0.25 * em, y + 0.25 * em), "ellipse", fill=color)
        entries.names.append(sheet.put(name, x + 0.5 * em, y=y - 0.5 * sheet.style.pitch))
        entries.values["value"].append(float(height))
    if len(entries.names) > 1:
        sheet.facts.append(entries)
