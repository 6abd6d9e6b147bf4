"""Forms: labeled fields, filled in."""

import random
from collections.abc import Callable

from .canvas import Canvas
from .vocabulary import CITIES, COLORS, DEPARTMENTS, STATES, code, date, money, number, person, phone

TITLES = ("Application", "Registration", "Order form", "Delivery note", "Booking", "Member card", "Work order",
          "Visitor pass", "Claim form", "Request")  # fmt: skip
FIELDS: dict[str, Callable[[random.Random], str]] = {
    "Name": person,
    "Contact": person,
    "Phone": phone,
    "Fax": phone,
    "City": lambda rng: rng.choice(CITIES),
    "Born in": lambda rng: rng.choice(CITIES),
    "Date": date,
    "Birthday": date,
    "Due date": date,
    "Order": code,
    "Ticket": code,
    "Account": code,
    "Passport": code,
    "Customer": lambda rng: number(rng, 1000, 999999),
    "Invoice": lambda rng: number(rng, 1000, 999999),
    "Post code": lambda rng: number(rng, 10000, 99999),
    "Room": lambda rng: number(rng, 1, 999),
    "Age": lambda rng: number(rng, 18, 99),
    "Guests": lambda rng: number(rng, 1, 60),
    "Weight": lambda rng: f"{rng.randint(1, 99)}.{rng.randint(0, 9)} kg",
    "Length": lambda rng: f"{rng.randint(2, 400)} cm",
    "Amount": lambda rng: money(rng.randint(100, 99999)),
    "Deposit": lambda rng: money(rng.randint(100, 99999)),
    "Department": lambda rng: rng.choice(DEPARTMENTS),
    "Status": lambda rng: rng.choice(STATES),
    "Color": lambda rng: rng.choice(COLORS),
    "Time": lambda rng: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
    "Gate": lambda rng: f"{rng.choice('ABCDEFGH')}{rng.randint(1, 60)}",
}
VALUE = ("What is the {label}?", "What is the {lower}?", "{label}?", "{label}?")
TITLE = ("What is the title?", "Title?")


def lay_out_form(canvas: Canvas) -> None:
    rng = canvas.rng
    title = rng.choice(TITLES)
    if canvas.lines_left() > 4 and (heading := canvas.heading(title, rng.choice((0.0, 0.5)))):
        canvas.ask(TITLE, title, heading)
        if rng.random() < 0.4:
            canvas.rule()
    style = rng.choice(("colon", "aligned", "aligned", "boxed", "stacked"))
    labels = iter(rng.sample(list(FIELDS), k=len(FIELDS)))
    num_fields = rng.randint(4, 14)
    # A wide form has two fields side by side.
    halves = [(canvas.left, canvas.right)]
    middle = (canvas.left + canvas.right) / 2
    if canvas.width > 18 * canvas.size and rng.random() < 0.6:
        halves = [(canvas.left, middle - canvas.size), (middle, canvas.right)]
    height = 2 if style == "stacked" else 1
    while num_fields > 0 and canvas.lines_left() >= height:
        placed = [_field(canvas, labels, left, right, style) for left, right in halves]
        if not any(placed):
            break
        num_fields -= len(halves)
        canvas.next_line(height)


def _field(canvas: Canvas, labels, left: float, right: float, style: str) -> bool:
    """Place the next field that fits between left and right; return False if none does."""
    rng = canvas.rng
    for label in labels:
        value = FIELDS[label](rng)
        shown = label + (":" if style == "colon" or rng.random() < 0.3 else "")
        if style == "stacked":
            start = left
        elif style == "colon":
            start = left + canvas.measure(shown + " ")
        else:
            start = max(left + 0.45 * (right - left), left + canvas.measure(shown + " "))
        if max(start + canvas.measure(value), left + canvas.measure(shown)) > right:
            continue
        canvas.place(shown, left)
        if style == "stacked":
            canvas.next_line()
        placed = canvas.place(value, start)
        if style == "boxed":
            top = canvas.top + 0.03 * canvas.pitch
            canvas.box((start - 0.3 * canvas.size, top, right, top + 0.94 * canvas.pitch))
        if style == "stacked":
            canvas.next_line(-1)
        canvas.ask(VALUE, placed.text, placed, label=label, lower=label.lower())
        return True
    return False
