"""Receipts: a shop, a date, goods with prices, sums."""

from .canvas import Canvas
from .page import Text
from .vocabulary import GOODS, SHOPS, date, money, number

PRICE = ("What is the price of {name}?", "How much is {name}?", "Price of {name}?", "{name}?")
TOTAL = ("What is the total?", "Total?", "What is the total amount?")
SUBTOTAL = ("What is the subtotal?", "Subtotal?")
TAX = ("What is the tax?", "Tax?", "How much is the tax?")
SHOP = ("What is the name of the shop?", "Which shop is it?", "Shop?")
DATE = ("What is the date?", "Date?")
NUMBER = ("What is the receipt number?", "Receipt number?")


def lay_out_receipt(canvas: Canvas) -> None:
    rng = canvas.rng
    symbol = rng.choice(("", "", "$"))
    shop = rng.choice(SHOPS)
    shop = shop.upper() if rng.random() < 0.3 else shop
    align = rng.choice((0.5, 0.5, 0.0))
    if canvas.lines_left() > 4 and (heading := canvas.heading(shop, align)):
        canvas.ask(SHOP, shop, heading)
    sums = (
        ["Total"]
        if canvas.lines_left() < 6
        else rng.choice((["Total"], ["Tax", "Total"], ["Subtotal", "Tax", "Total"]))
    )
    if canvas.lines_left() > len(sums) + 4:
        _line_below_shop(canvas, align)
    if rng.random() < 0.3:
        canvas.rule()
    room = canvas.lines_left() - len(sums)
    total = 0
    for name in rng.sample(GOODS, k=max(min(room, rng.randint(3, 12)), 1)):
        cents = rng.randint(20, 9999 if rng.random() < 0.2 else 1999)
        if price := _pair(canvas, name, symbol + money(cents)):
            canvas.ask(PRICE, price.text, price, name=name)
            total += cents
    if rng.random() < 0.6:
        canvas.rule()
    tax = total * rng.randint(5, 20) // 100
    amounts = {"Subtotal": total, "Tax": tax, "Total": total + tax * ("Subtotal" in sums)}
    shout = rng.random() < 0.4
    for label in sums:
        if amount := _pair(canvas, label.upper() if shout else label, symbol + money(amounts[label])):
            canvas.ask({"Subtotal": SUBTOTAL, "Tax": TAX, "Total": TOTAL}[label], amount.text, amount)


def _line_below_shop(canvas: Canvas, align: float) -> None:
    """Place the date, the receipt's number, or both on separate lines."""
    rng = canvas.rng
    for part in rng.choice((("date",), ("date", "number"), ("number",))):
        answer = date(rng) if part == "date" else number(rng, 100, 99999)
        label = rng.choice(("Date: ", "Date ", "")) if part == "date" else rng.choice(("No. ", "Receipt ", "No: "))
        if canvas.measure(label + answer) <= canvas.width:
            placed = canvas.place(label + answer, canvas.left + align * canvas.width, align)
            canvas.next_line()
            canvas.ask(DATE if part == "date" else NUMBER, answer, placed)


def _pair(canvas: Canvas, label: str, value: str) -> Text | None:
    """Place a label at the left margin and its value at the right margin; return the value, or None."""
    if canvas.measure(label + "  " + value) > canvas.width or canvas.lines_left() < 1:
        return None
    canvas.place(label, canvas.left)
    placed = canvas.place(value, canvas.right, align=1.0)
    canvas.next_line()
    return placed
