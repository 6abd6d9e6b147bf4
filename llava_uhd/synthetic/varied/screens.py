"""Screens: phone apps, dialogs, slides."""

from .facts import Entries, Field, Line
from .labels import LABELS
from .parts import field_value, logo, title
from .sheet import Sheet
from .tables import table
from .wordings import SCREEN

APPS = (
    "Settings",
    "Messages",
    "Wallet",
    "Calendar",
    "Contacts",
    "Weather",
    "Shopping list",
    "Orders",
    "Music",
    "Mail",
    "Photos",
    "Notes",
    "Calls",
    "Clock",
    "Files",
    "News",
    "Maps",
    "Tickets",
    "Health",
    "Voicemail",
    "Favorites",
    "Archive",
)


def lay_out_phone(sheet: Sheet) -> None:
    """Lay out a phone screen: status bar, title, and a list of entries with a second value."""
    rng, content, em = sheet.rng, sheet.content, sheet.em
    if rng.random() < 0.7:
        _status_bar(sheet)
    name = rng.choice(APPS) if rng.random() < 0.6 else content.words(rng.randint(1, 2)).capitalize()
    title(sheet, name, rng.choice((0.0, 0.5)), wordings=SCREEN)
    sheet.feed(0.5)
    sort = rng.randrange(5)
    if sort == 0:
        for name in rng.sample(list(LABELS), k=rng.randint(4, 12)):
            label, value = LABELS[name].printed[0], LABELS[name].draw(content)
            if sheet.lines_left < 2 or sheet.measure(label + value) + em > sheet.width:
                continue
            sheet.put(label, sheet.left)
            field_value(sheet, name, sheet.put(value, sheet.right, 1.0, color=sheet.style.accent))
            sheet.feed(1.25)
            sheet.rule(color=sheet.style.soft)
            sheet.feed(0.25)
    elif sort == 1:
        entries = Entries("entry", [], {"price": []}, {"price": []}, key="price")
        for name in content.distinct(content.product, rng.randint(3, 12)):
            cents = content.cents()
            price = content.amount(cents)
            if sheet.lines_left < 2 or sheet.measure(name + price) + 4 * em > sheet.width:
                continue
            if rng.random() < 0.9:
                logo(sheet, sheet.left, sheet.top + 0.1 * em, 1.3 * em)
            entries.names.append(sheet.put(name, sheet.left + 2.0 * em))
            entries.columns["price"].append(sheet.put(price, sheet.right, 1.0))
            entries.values["price"].append(float(cents))
            sheet.feed(1.6)
        sheet.facts.append(entries)
    elif sort > 2:
        _inbox(sheet)
    else:
        for place in range(rng.randint(3, 9)):
            lines = sheet.wrap(content.sentence(rng.randint(2, 10)), 0.66 * sheet.width)
            if sheet.lines_left < len(lines) + 1:
                break
            wide = max(sheet.measure(line) for line in lines)
            left = sheet.right - wide if place % 2 else sheet.left
            height = len(lines) * sheet.style.pitch
            bounds = (left - 0.5 * em, sheet.top - 0.2 * em, left + wide + 0.5 * em, sheet.top + height + 0.2 * em)
            sheet.box(bounds, "round", fill=sheet.style.soft)
            for line in lines:
                sheet.facts.append(Line(sheet.put(line, left)))
                sheet.feed()
            sheet.feed(0.7)


def _status_bar(sheet: Sheet) -> None:
    """Place the time and the charge of the battery."""
    small = max(round(0.75 * sheet.em), 7)
    clock = sheet.content.time()
    run = sheet.put(clock, sheet.left, size=small, face=sheet.style.body.bold)
    wordings = ("What time is it on the phone?", "What time does it show?")
    sheet.facts.append(Field("time", clock, "field", (run,), wordings))
    sheet.put(f"{sheet.rng.randint(3, 100)}%", sheet.right, 1.0, size=small)
    sheet.feed(1.3)


def _inbox(sheet: Sheet) -> None:
    """Place messages or calls: who, when, and below them how each begins."""
    rng, content, em = sheet.rng, sheet.content, sheet.em
    entries = Entries("sender", [], {"time": [], "message": []})
    boxed, pictured, below = rng.random() < 0.4, rng.random() < 0.5, rng.random() < 0.8
    face = sheet.style.body.bold if rng.random() < 0.7 else None
    small = max(round(rng.choice((0.75, 0.85, 1.0)) * em), 7)
    left = sheet.left + (2.2 * em if pictured else 0.5 * em)
    dates = rng.random() < 0.15
    if dates:
        entries.columns["date"] = entries.columns.pop("time")
    for name in content.distinct(rng.choice((content.first_name, content.first_name, content.person)), 12):
        text, message = content.date() if dates else content.time(), content.sentence(rng.randint(2, 7)).rstrip(".")
        if sheet.lines_left < 3:
            break
        if sheet.measure(name, face) + sheet.measure(text, size=small) + em > sheet.right - left:
            continue
        height = (2.3 if below else 1.3) * sheet.style.pitch
        if boxed:
            bounds = (
                sheet.left - 0.3 * em,
                sheet.top - 0.2 * em,
                sheet.right + 0.3 * em,
                sheet.top + height - 0.3 * em,
            )
            sheet.box(bounds, "round", fill=sheet.style.soft)
        if pictured:
            logo(sheet, sheet.left, sheet.top + 0.2 * em, 1.4 * em)
        entries.names.append(sheet.put(name, left, face=face))
        entries.columns["date" if dates else "time"].append(sheet.put(text, sheet.right - 0.3 * em, 1.0, size=small))
        fits = below and sheet.measure(message, size=small) < sheet.right - left - em
        run = sheet.put(message, left, size=small, y=sheet.top + sheet.style.pitch) if fits else None
        entries.columns["message"].append(run)
        sheet.top += height
        sheet.feed(rng.choice((0.15, 0.3)))
    sheet.facts.append(entries)


def lay_out_slide(sheet: Sheet) -> None:
    """Lay out a slide: a title, points, sometimes a small table."""
    rng, content, em = sheet.rng, sheet.content, sheet.em
    if rng.random() < 0.4:
        width = sheet.size[0]
        sheet.box((0, 0, width, 0.4 * em), fill=sheet.style.accent)
        sheet.feed(0.4)
    title(sheet, content.sentence(rng.randint(1, 4)).rstrip("."), rng.choice((0.0, 0.0, 0.5)), rng.choice((1.5, 1.9)))
    sheet.feed(0.7)
    points = Entries("point", [], complete=True)
    for _ in range(rng.randint(2, 6)):
        text = content.sentence(rng.randint(2, 6)).rstrip(".")
        if sheet.lines_left < 2 or sheet.measure(text) + 2 * em > sheet.width:
            continue
        y, radius = sheet.top + 0.5 * sheet.style.pitch, 0.16 * em
        sheet.box((sheet.left, y - radius, sheet.left + 2 * radius, y + radius), "ellipse", fill=sheet.style.accent)
        points.names.append(sheet.put(text, sheet.left + 1.1 * em))
        sheet.feed(rng.choice((1.1, 1.5)))
    if points.names:
        sheet.facts.append(points)
    if rng.random() < 0.4 and sheet.lines_left > 4:
        names = content.distinct(content.made_up, rng.randint(2, 4))
        numbers = [rng.randint(1, 999) for _ in names]
        rows = [[name, str(number)] for name, number in zip(names, numbers, strict=True)]
        table(sheet, ["Team", "Score"], rows, noun="team", key="Score", numeric=("Score",),
              values={"score": [float(number) for number in numbers]})  # fmt: skip
    if rng.random() < 0.4:
        foot = str(rng.randint(1, 60))
        run = sheet.put(foot, sheet.right, 1.0, size=max(round(0.7 * em), 7), y=sheet.size[1] - 1.6 * em)
        sheet.facts.append(
            Field("slide number", foot, "field", (run,), ("Which slide is it?", "What is the page number?"))
        )


def lay_out_dialog(sheet: Sheet) -> None:
    """Lay out a dialog with a message and buttons."""
    rng, content, em = sheet.rng, sheet.content, sheet.em
    width = sheet.size[0]
    sheet.box((0, 0, width, 1.7 * em), fill=sheet.style.soft)
    sheet.top = 0.15 * em
    heading = rng.choice(
        ("Error", "Warning", "Save changes?", "Update available", "Print", "Login", content.word().title())
    )
    run = sheet.put(heading, sheet.left, face=sheet.style.body.bold)
    sheet.facts.append(Field("title", heading, "title", (run,), ("What is the title of the window?",)))
    sheet.top = 2.4 * em
    for line in sheet.wrap(content.sentence(rng.randint(5, 16)), sheet.width):
        sheet.facts.append(Line(sheet.put(line, sheet.left)))
        sheet.feed()
    for name in rng.sample(list(LABELS), k=rng.randint(0, 4)):
        label, value = LABELS[name].printed[0], LABELS[name].draw(content)
        if sheet.measure(label + value) + 3 * em < sheet.width:
            sheet.put(f"{label}:", sheet.left)
            field_value(sheet, name, sheet.put(value, sheet.right, 1.0))
            sheet.feed()
    sheet.feed(0.8)
    buttons = Entries("button", [])
    x = sheet.right
    for text in rng.sample(
        ("OK", "Cancel", "Save", "Retry", "Help", "Close", "Yes", "No", "Apply"), k=rng.randint(1, 3)
    ):
        wide = sheet.measure(text) + 1.6 * em
        if x - wide < sheet.left:
            break
        sheet.box(
            (x - wide, sheet.top - 0.2 * em, x, sheet.top + sheet.style.pitch), "round", outline=sheet.style.accent
        )
        buttons.names.insert(0, sheet.put(text, x - 0.5 * wide, 0.5))
        x -= wide + em
    sheet.facts.append(buttons)
    sheet.feed(1.2)
    sheet.crop()
