"""Tables: a header, rows with a name, and cells of several kinds."""

import random
from collections.abc import Callable

from .canvas import Canvas
from .vocabulary import CITIES, COLORS, DAYS, MONTHS, STATES, THINGS, code, date, money, number

COLUMNS: dict[str, Callable[[random.Random], str]] = {
    "Price": lambda rng: money(rng.randint(50, 99999)),
    "Stock": lambda rng: number(rng, 1, 999),
    "Code": code,
    "City": lambda rng: rng.choice(CITIES),
    "Color": lambda rng: rng.choice(COLORS),
    "Status": lambda rng: rng.choice(STATES),
    "Date": date,
    "Day": lambda rng: rng.choice(DAYS),
    "Weight": lambda rng: f"{rng.randint(1, 99)} kg",
    "Share": lambda rng: f"{rng.randint(1, 99)}%",
}
QUARTERS = ("Q1", "Q2", "Q3", "Q4")
YEARS = ("2021", "2022", "2023", "2024")
TITLES = ("Inventory", "Price list", "Overview", "Stock list", "Report", "Summary", "Catalog", "Supplies")
CELL = ("What is the {column} of {row}?", "What is the {lower} of {row}?", "{column} of {row}?", "{column} of {row}?")


def lay_out_table(canvas: Canvas) -> None:
    rng = canvas.rng
    if canvas.lines_left() > 5 and rng.random() < 0.6:
        canvas.heading(rng.choice(TITLES), rng.choice((0.0, 0.5)))
        canvas.next_line(rng.choice((0.0, 0.3)))
    rows = max(min(canvas.lines_left() - 1, rng.randint(3, 10)), 1)
    names = rng.sample(THINGS, k=rows)
    columns = _columns(canvas, ["Item", *names], rows)
    widest_gap = (canvas.width - sum(max(map(canvas.measure, column)) for column in columns)) / max(
        len(columns) - 1, 1
    )
    gap = min(widest_gap, rng.uniform(1.0, 3.0) * canvas.size)
    grid, stripes = rng.random() < 0.3, rng.random() < 0.3
    top, bold = canvas.top, canvas.bold if rng.random() < 0.5 else None
    align = [0.0, *(rng.choice((0.0, 0.5, 1.0)) for _ in columns[1:])]
    for row in range(rows + 1):
        x = canvas.left
        if row % 2 and stripes:
            red, green, blue = canvas.page.paper
            shade = (red - 14, green - 14, blue - 14)
            canvas.box((canvas.left, canvas.top, canvas.right, canvas.top + canvas.pitch), fill=shade)
        for column, where in zip(columns, align, strict=True):
            width = max(map(canvas.measure, column))
            placed = canvas.place(column[row], x + where * width, where, font=bold if row == 0 else None)
            if row > 0 and column is not columns[0]:
                title = column[0]
                canvas.ask(CELL, placed.text, placed, column=title, lower=title.lower(), row=names[row - 1])
            x += width + gap
        canvas.next_line()
        if row == 0 and not grid:
            canvas.rule()
    if grid:
        for row in range(rows + 2):
            y = top + row * canvas.pitch
            canvas.box((canvas.left - 2, y, canvas.right, y + canvas.unit), fill=canvas.ink)


def _columns(canvas: Canvas, names: list[str], rows: int) -> list[list[str]]:
    """Return the columns that fit, at most the requested number and at least the names, each with its header."""
    rng = canvas.rng
    columns = [names]
    num_columns = rng.randint(1, 4)
    if rng.random() < 0.2:
        kind = COLUMNS[rng.choice(("Stock", "Price"))]
        candidates = [(title, kind) for title in rng.choice((QUARTERS, YEARS, tuple(m[:3] for m in MONTHS[:4])))]
    else:
        candidates = rng.sample(list(COLUMNS.items()), k=len(COLUMNS))
    room = canvas.width - max(map(canvas.measure, names))
    for title, make in candidates:
        column = [title, *(make(rng) for _ in range(rows))]
        needed = max(map(canvas.measure, column)) + canvas.size
        if needed <= room and len(columns) <= num_columns:
            columns.append(column)
            room -= needed
    return columns
