"""Lists and tables: menus, timetables, tables of all sorts, spreadsheet views."""

import string
from collections.abc import Sequence

from ..vocabulary import COLORS, DEPARTMENTS, STATES
from .content import MONTHS, WEEKDAYS
from .facts import Entries
from .parts import paragraph, title
from .sheet import Shape, Sheet
from .tables import table
from .wordings import OF_COLUMN


def _number_column(sheet: Sheet, count: int) -> tuple[list[str], list[float]]:
    """Return numbers of one kind, as text and as value."""
    rng, content = sheet.rng, sheet.content
    sort = rng.randrange(5)
    if sort == 0:
        cents = [content.cents() for _ in range(count)]
        return [content.amount(each, False) for each in cents], [float(each) for each in cents]
    if sort == 1:
        numbers = [rng.randint(1, 99) for _ in range(count)]
        return [f"{each}%" for each in numbers], [float(each) for each in numbers]
    if sort == 2:
        tenths = [rng.randint(1, 999) for _ in range(count)]
        return [f"{each / 10:.1f}" for each in tenths], [each / 10 for each in tenths]
    numbers = [rng.randint(0, 10 ** rng.choice((2, 3, 4))) for _ in range(count)]
    return [f"{each:{content.thousands}}" for each in numbers], [float(each) for each in numbers]


NUMBER_HEADS = (
    "Price",
    "Stock",
    "Share",
    "Weight",
    "Score",
    "Visits",
    "Sales",
    "Cost",
    "Rate",
    "Size",
    "Points",
    "Total",
    "Orders",
    "Members",
    "Length",
    "Output",
    "Growth",
    "Margin",
    "Profit",
    "Speed",
)
PERIODS = (
    ("Q1", "Q2", "Q3", "Q4"),
    ("2021", "2022", "2023", "2024", "2025"),
    tuple(month[:3] for month in MONTHS),
    tuple(day[:3] for day in WEEKDAYS),
)


def _row_names(sheet: Sheet, count: int) -> tuple[str, str, list[str]]:
    """Return the title of the first column, the noun of a row, and the names."""
    rng, content = sheet.rng, sheet.content
    head, noun, draw = rng.choice(
        (
            ("Item", "item", content.product),
            ("Product", "product", content.product),
            ("Name", "person", content.person),
            ("Name", "person", content.first_name),
            ("City", "city", content.city),
            ("Country", "country", content.country),
            ("Company", "company", content.company),
            ("Code", "row", content.code),
            ("Team", "team", content.made_up),
        )
    )
    return head, noun, content.distinct(draw, count)


def _random_table(sheet: Sheet, most: int, style: str | None = None, names_first: bool = False) -> Entries | None:
    rng, content = sheet.rng, sheet.content
    head, noun, names = _row_names(sheet, max(min(sheet.lines_left - 2, rng.randint(2, most)), 2))
    heads, columns, numeric, values = [head], [names], [], {}
    periods = rng.choice(PERIODS) if rng.random() < 0.35 else None
    number = rng.choice((1, 2, 3, 4, 6))
    groups: list[tuple[str, int]] = []
    if periods:
        further: Sequence[str] = periods[:number]
    elif rng.random() < 0.35:
        # Some columns have questions of their own.
        words = [word for word in content.distinct(content.word, number) if word not in OF_COLUMN]
        further = [word.capitalize() for word in words]
    else:
        further = rng.sample(NUMBER_HEADS, k=number)
    for title_text in further:
        if title_text in heads:
            continue
        if periods or rng.random() < 0.65:
            texts, numbers = _number_column(sheet, len(names))
            if rng.random() < 0.1:
                texts[rng.randrange(len(texts))] = ""
            else:
                values[title_text.lower()] = numbers
            numeric.append(title_text)
        else:
            title_text, draw = rng.choice(
                (
                    ("Status", lambda: rng.choice(STATES)),
                    ("Color", lambda: rng.choice(COLORS)),
                    ("Date", content.date),
                    ("City", content.city),
                    ("Contact", content.person),
                    ("Code", content.code),
                    ("Department", lambda: rng.choice(DEPARTMENTS)),
                    ("Time", content.time),
                )
            )
            texts = [draw() for _ in names]
        if title_text not in heads:
            heads.append(title_text)
            columns.append(texts)
    if periods and len(heads) == 5 and rng.random() < 0.6:
        groups = [("First half", 2), ("Second half", 2)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return table(sheet, heads, rows, noun=noun, numeric=numeric, values=values, style=style, groups=groups,
                 names_first=names_first)  # fmt: skip


def lay_out_table(sheet: Sheet) -> None:
    """Lay out a table with or without title, rules, stripes and merged headers, and text around it."""
    rng, content = sheet.rng, sheet.content
    if rng.random() < 0.7:
        title(
            sheet,
            rng.choice(
                (
                    "Inventory",
                    "Price list",
                    "Overview",
                    "Report",
                    "Results",
                    "Ranking",
                    "Catalog",
                    content.sentence(rng.randint(2, 3)).rstrip("."),
                )
            ),
        )
        sheet.feed(0.4)
    if rng.random() < 0.25:
        paragraph(sheet, content.sentence(rng.randint(6, 18)), sheet.left, sheet.right, 4)
        sheet.feed(0.5)
    _random_table(sheet, 30)
    if rng.random() < 0.5:
        sheet.crop()


def lay_out_menu(sheet: Sheet) -> None:
    """Lay out dishes with prices under headings, with or without dot leaders."""
    rng, content = sheet.rng, sheet.content
    title(sheet, rng.choice(("Menu", "Dinner Menu", "Lunch", "Cafe Menu", content.company())), 0.5)
    sheet.feed(0.5)
    dishes = Entries("dish", [], {"price": []}, {"price": []}, key="price", complete=False)
    dots, below = rng.random() < 0.3, rng.random() < 0.3
    names = content.distinct(content.dish, min(rng.randint(4, 30), max(sheet.lines_left - 2, 2)))
    while names and sheet.lines_left >= 3:
        section = rng.choice(("Starters", "Main courses", "Desserts", "Drinks", "Sides", "Specials", "Soups"))
        sheet.heading(section, None, 1.15)
        for _ in range(rng.randint(2, 7)):
            if not names or sheet.lines_left < 1 + below:
                break
            name, cents = names.pop(), rng.randint(6, 90) * rng.choice((25, 50))
            price = content.amount(cents)
            if sheet.measure(name + price) + 2 * sheet.em > sheet.width:
                continue
            run, cost = sheet.put(name, sheet.left), sheet.put(price, sheet.right, 1.0)
            if dots:
                _dots(sheet, run.x + run.width + 0.4 * sheet.em, cost.x - 0.4 * sheet.em)
            dishes.names.append(run)
            dishes.columns["price"].append(cost)
            dishes.values["price"].append(float(cents))
            sheet.feed()
            if below:
                small = max(round(0.8 * sheet.em), 7)
                text = content.words(rng.randint(2, 5))
                if sheet.measure(text, size=small) < sheet.width:
                    sheet.put(text, sheet.left, size=small, face=sheet.style.body.italic)
                    sheet.feed(0.9)
        sheet.feed(0.6)
    sheet.facts.append(dishes)
    sheet.crop()


def _dots(sheet: Sheet, left: float, right: float) -> None:
    y, step = sheet.top + 0.75 * sheet.style.pitch, 0.5 * sheet.em
    radius = max(0.05 * sheet.em, 0.6)
    for place in range(int(max(right - left, 0) / step)):
        x = left + place * step
        sheet.box((x - radius, y - radius, x + radius, y + radius), "ellipse", fill=sheet.style.ink)


def lay_out_timetable(sheet: Sheet) -> None:
    """Lay out stops or courses with times, or departures with lines and platforms."""
    rng, content = sheet.rng, sheet.content
    title(sheet, rng.choice(("Timetable", "Departures", "Arrivals", "Schedule", "Course plan", "Opening hours")))
    sheet.feed(0.4)
    sort = rng.randrange(3)
    rows: list[list[str]] = []
    minutes = rng.randint(5 * 60, 9 * 60)

    def clock(after: int) -> str:
        return content.format_time(minutes + after)

    if sort == 0:
        stops = content.distinct(content.city, rng.randint(3, 20))
        trips = rng.randint(1, 5)
        for number, stop in enumerate(stops):
            rows.append([stop, *(clock(number * 9 + 47 * trip) for trip in range(trips))])
        header = ["Stop", *(f"Line {chr(65 + trip)}" for trip in range(trips))]
        table(sheet, header, rows, noun="stop", key=header[1] if trips == 1 else None)
    elif sort == 1:
        for number, city in enumerate(content.distinct(content.city, rng.randint(3, 24))):
            rows.append(
                [
                    city,
                    clock(7 * number),
                    f"{rng.choice(('IC', 'RE', 'S', 'BA', 'LH'))} {rng.randint(1, 999)}",
                    str(rng.randint(1, 24)),
                ]
            )
        time = rng.choice(("Time", "Departure", "Departs", "Leaves"))
        vehicle, stand = rng.choice((("Train", "Platform"), ("Line", "Track"), ("Flight", "Gate"), ("Bus", "Stand")))
        header = [rng.choice(("Destination", "To", "Direction", "City")), time, vehicle, stand]
        if rng.random() < 0.4:
            header, rows = [*header[:2], stand], [[*row[:2], row[3]] for row in rows]
        table(sheet, header, rows, noun="destination")
        sheet.unlabeled |= {"platform", "gate"}
    else:
        for day in WEEKDAYS[: rng.randint(4, 7)]:
            opens, closes = 60 * rng.randint(6, 10), 30 * rng.randint(26, 43)
            rows.append([day, f"{content.format_time(opens)} - {content.format_time(closes)}"])
        table(sheet, ["Day", "Hours"], rows, noun="day", key="Hours")
    sheet.crop()


def lay_out_spreadsheet(sheet: Sheet) -> None:
    """Lay out a spreadsheet view: column letters, row numbers, a grid of thin lines."""
    rng, em = sheet.rng, sheet.em
    gray = (120, 120, 120)
    pitch, top = sheet.style.pitch, sheet.top
    sheet.left += 2.4 * em
    sheet.feed()
    start = sheet.top
    entries = _random_table(sheet, 34, "plain", names_first=True)
    if entries is None:
        return
    columns = [[*entries.names], *[[cell for cell in cells if cell] for cells in entries.columns.values()]]
    edges = [sheet.left - 0.4 * em, *(min(run.x for run in cells) - 0.4 * em for cells in columns[1:] if cells)]
    heads = sheet.texts[: len(entries.columns) + 1]
    edges = [edges[0], *(min(edge, head.x - 0.4 * em) for edge, head in zip(edges[1:], heads[1:], strict=False))]
    edges.append(sheet.right)
    if edges != sorted(edges):
        return
    rows = round((sheet.top - start) / pitch)
    for row in range(rows + rng.randint(0, 4)):
        if start + (row + 1) * pitch > sheet.bottom:
            break
        sheet.put(str(row + 1), sheet.left - 0.9 * em, 1.0, color=gray, y=start + row * pitch)
        points = ((0.0, start + row * pitch), (sheet.right, start + row * pitch))
        sheet.shapes.append(Shape("line", points, outline=(190, 190, 190)))
        sheet.top = start + (row + 1) * pitch
    for place, edge in enumerate(edges):
        sheet.shapes.append(Shape("line", ((edge, top), (edge, sheet.top)), outline=(190, 190, 190)))
        if place + 1 < len(edges):
            middle = (edge + edges[place + 1]) / 2
            sheet.put(string.ascii_uppercase[place], middle, 0.5, color=gray, y=top)
    sheet.crop()
