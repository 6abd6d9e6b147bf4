"""Bar charts with the value printed at each bar."""

from .canvas import Canvas
from .page import Color, Text
from .vocabulary import CITIES, DAYS, DEPARTMENTS, MONTHS, THINGS

TITLES = ("Sales", "Visitors", "Orders", "Hours", "Exports", "Members", "Output", "Tickets", "Rainfall", "Votes")
VALUE = ("What is the value of {name}?", "Value of {name}?", "{name}?")
HIGHEST = ("Which is the highest?", "Which bar is the longest?")
LOWEST = ("Which is the lowest?", "Which bar is the shortest?")
WHICH = "Which bar is {value}?"
HIGHEST_VALUE, LOWEST_VALUE = "What is the highest value?", "What is the lowest value?"
COMPARISONS = (*HIGHEST, *LOWEST, HIGHEST_VALUE, LOWEST_VALUE)
TITLE = ("What is the title?", "Title?")
PALETTE: tuple[Color, ...] = (
    (70, 120, 180), (200, 90, 70), (90, 160, 90), (150, 110, 170), (210, 150, 60), (120, 120, 120), (60, 150, 160)
)  # fmt: skip


def lay_out_chart(canvas: Canvas) -> None:
    rng = canvas.rng
    title = rng.choice(TITLES)
    if canvas.lines_left() > 4 and (heading := canvas.heading(title, rng.choice((0.0, 0.5)))):
        canvas.ask(TITLE, title, heading)
    unit = rng.choice(("", "", "", "%"))
    names = _names(canvas)
    values = rng.sample(range(2, 100) if unit or rng.random() < 0.4 else range(10, 1000), k=len(names))
    lay_out = _upright if _upright_fits(canvas, names, values, unit) and rng.random() < 0.3 else _lying
    bars = lay_out(canvas, names, values, unit)
    for name, value in bars:
        canvas.ask(VALUE, value.text, value, name=name.text)
        canvas.hint(WHICH.format(value=value.text), name.text, name)
    if len(bars) >= 3:
        of = dict(zip(values, bars, strict=False))
        (highest, highest_value), (lowest, lowest_value) = of[max(of)], of[min(of)]
        canvas.ask(HIGHEST, highest.text, highest)
        canvas.ask(LOWEST, lowest.text, lowest)
        canvas.hint(HIGHEST_VALUE, highest_value.text, highest_value)
        canvas.hint(LOWEST_VALUE, lowest_value.text, lowest_value)


def _names(canvas: Canvas) -> list[str]:
    rng = canvas.rng
    words = rng.choice((CITIES, DAYS, DEPARTMENTS, THINGS, MONTHS, tuple(month[:3] for month in MONTHS)))
    names = rng.sample(words, k=rng.randint(3, min(9, len(words))))
    return names if words in (CITIES, DEPARTMENTS, THINGS) else sorted(names, key=words.index)


def _lying(canvas: Canvas, names: list[str], values: list[int], unit: str) -> list[tuple[Text, Text]]:
    """Bars from left to right, one a line, the value behind the bar's end; name and value of those that fit."""
    rng = canvas.rng
    names = names[: canvas.lines_left()]
    start = canvas.left + max(map(canvas.measure, names)) + 0.5 * canvas.size
    room = canvas.right - start - canvas.measure(f" {max(values)}{unit}")
    color, spread = rng.choice(PALETTE), min(canvas.lines_left() / len(names), rng.uniform(1.0, 1.8))
    bars = []
    for name, value in zip(names, values, strict=False):
        label = canvas.place(name, start - 0.5 * canvas.size, align=1.0)
        end = start + max(room * value / max(values), 1.0)
        middle = canvas.top + 0.5 * canvas.pitch
        canvas.box((start, middle - 0.35 * canvas.size, end, middle + 0.35 * canvas.size), fill=color)
        bars.append((label, canvas.place(f"{value}{unit}", end + 0.4 * canvas.size)))
        canvas.next_line(spread)
    return bars


def _upright_fits(canvas: Canvas, names: list[str], values: list[int], unit: str) -> bool:
    widest = max(map(canvas.measure, [*names, f"{max(values)}{unit}"]))
    return canvas.lines_left() >= 6 and (widest + 0.8 * canvas.size) * len(names) <= canvas.width


def _upright(canvas: Canvas, names: list[str], values: list[int], unit: str) -> list[tuple[Text, Text]]:
    """Bars from the bottom up, the value on top of each and its name below it."""
    rng = canvas.rng
    color, step = rng.choice(PALETTE), canvas.width / len(names)
    height = (canvas.lines_left() - 2) * canvas.pitch * rng.uniform(0.6, 1.0)
    floor, bars = canvas.top + canvas.pitch + height, []
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        middle = canvas.left + (place + 0.5) * step
        top = floor - max(height * value / max(values), 1.0)
        canvas.box((middle - 0.3 * step, top, middle + 0.3 * step, floor), fill=color)
        canvas.top = top - canvas.pitch
        above = canvas.place(f"{value}{unit}", middle, align=0.5)
        canvas.top = floor
        bars.append((canvas.place(name, middle, align=0.5), above))
    canvas.box((canvas.left, floor, canvas.right, floor + canvas.unit), fill=canvas.ink)
    return bars
