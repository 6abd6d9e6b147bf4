"""Documents that reportlab sets and PDFium draws: packing lists, statements, certificates, labels; 60 to 200 dpi."""

import io
import random

from . import page as words
from .page import DECLINED, Page, Question

FONTS = ("Helvetica", "Times-Roman", "Courier", "Helvetica-Bold")


class Writer:
    """A page of a PDF from top to bottom, and what is asked about it."""

    def __init__(self, rng: random.Random, size: tuple[float, float], dpi: int):
        from reportlab.pdfgen.canvas import Canvas

        self.rng, self.size, self.dpi, self.file = rng, size, dpi, io.BytesIO()
        self.canvas = Canvas(self.file, pagesize=size)
        self.font, self.points = rng.choice(FONTS), rng.choice((10, 11, 12, 14))
        self.margin = 48
        self.y = size[1] - 60
        self.questions: list[Question] = []

    def text(self, text: str, x: float, points: float | None = None, right: bool = False) -> None:
        self.canvas.setFont(self.font, points or self.points)
        (self.canvas.drawRightString if right else self.canvas.drawString)(x, self.y, text)

    def down(self, lines: float = 1.0) -> None:
        self.y -= lines * 1.5 * self.points

    def ask(self, text: str, answers: tuple[str, ...] | str, ability: str, points: float | None = None) -> None:
        answers = (answers,) if isinstance(answers, str) else answers
        letters = None if answers == (DECLINED,) else (points or self.points) * self.dpi / 72
        self.questions.append(Question(text, answers, ability, letters))

    def page(self, kind: str) -> Page:
        import pypdfium2

        assert self.y > 20, f"{kind}: the text ends {20 - self.y:.0f} points below the page"
        self.canvas.save()
        image = pypdfium2.PdfDocument(self.file.getvalue())[0].render(scale=self.dpi / 72).to_pil().convert("RGB")
        return Page(kind, "reportlab", image, self.questions)


A4, SLIP = (595.0, 842.0), (300.0, 420.0)


def packing_list(rng: random.Random) -> Page:
    writer = Writer(rng, A4, rng.choice((72, 96, 110, 150)))
    right = A4[0] - writer.margin
    writer.text(rng.choice(words.FIRMS), writer.margin, 18)
    writer.down(2)
    shipment, driver = words.code(rng), words.person(rng)
    writer.text(f"Shipment {shipment}", writer.margin)
    writer.ask("Which shipment is this?", shipment, "field")
    writer.text(f"Driver: {driver}", right, right=True)
    writer.ask("Who drives?", driver, "name")
    writer.down(2)
    goods = rng.sample(words.GOODS, k=rng.randint(4, 18))
    weights = rng.sample(range(2, 400), k=len(goods))
    writer.text("Contents", writer.margin)
    writer.text("Weight (kg)", right, right=True)
    writer.canvas.line(writer.margin, writer.y - 5, right, writer.y - 5)
    writer.down(1.2)
    for name, weight in zip(goods, weights, strict=True):
        writer.text(name, writer.margin)
        writer.text(str(weight), right, right=True)
        if rng.random() < 2 / len(goods):
            writer.ask(f"How many kilograms of {name} are packed?", str(weight), "cell")
        writer.down()
    heaviest = goods[weights.index(max(weights))]
    writer.ask("Which of the contents weighs most?", heaviest, "extreme")
    if len(goods) <= 12:
        writer.ask("How many positions does the list have?", str(len(goods)), "count")
    writer.ask("What is the price of the shipment?", DECLINED, "unanswerable")
    return writer.page("packing list")


def statement(rng: random.Random) -> Page:
    writer = Writer(rng, A4, rng.choice((80, 100, 130, 200)))
    right = A4[0] - writer.margin
    writer.text("Savings account", writer.margin, 16)
    writer.ask("What is the heading?", "Savings account", "title", 16)
    writer.down(2)
    owner, number = words.person(rng), f"{rng.randint(10, 99)} {rng.randint(1000, 9999)} {rng.randint(1000, 9999)}"
    writer.text(f"Holder {owner}", writer.margin)
    writer.ask("Who holds the account?", owner, "name")
    writer.down()
    writer.text(f"Account {number}", writer.margin)
    writer.ask("What is the number of the account?", number, "field")
    writer.down(2)
    balance = rng.randint(100000, 900000)
    for place in rng.sample(words.PLACES, k=rng.randint(4, 14)):
        cents = rng.randint(-30000, 30000)
        balance += cents
        writer.text(f"Transfer {place}", writer.margin)
        amount = f"{cents / 100:,.2f}"
        writer.text(amount, right, right=True)
        if rng.random() < 0.2:
            writer.ask(f"Which amount belongs to the transfer {place}?", (amount, amount.replace(",", "")), "cell")
        writer.down()
    writer.down(0.5)
    final = words.dollars(balance)
    writer.text("Closing balance", writer.margin)
    writer.text(final, right, right=True)
    writer.ask("How much is left on the account?", words.money_answers(final), "total")
    return writer.page("statement")


def certificate(rng: random.Random) -> Page:
    writer = Writer(rng, (842.0, 595.0), rng.choice((60, 72, 90)))
    writer.points = 18
    middle = 421
    writer.canvas.rect(20, 20, 802, 555)
    writer.y = 430
    owner, course, date = (
        words.person(rng),
        rng.choice(("First aid", "Sailing", "Welding", "Forklift")),
        words.day(rng),
    )
    for text, points in (
        ("Certificate of attendance", 34),
        (owner, 28),
        (f"attended the course {course}", 18),
        (date, 18),
    ):
        writer.canvas.setFont(writer.font, points)
        writer.canvas.drawCentredString(middle, writer.y, text)
        writer.down(2.4)
    writer.ask("Who attended?", owner, "name", 28)
    writer.ask("Which course was it?", course, "field", 18)
    writer.ask("Which day is printed?", date, "date", 18)
    writer.ask("What was the grade?", DECLINED, "unanswerable")
    return writer.page("certificate")


def price_label(rng: random.Random) -> Page:
    writer = Writer(rng, SLIP, rng.choice((72, 100, 140)))
    name, price, number = rng.choice(words.GOODS), words.dollars(rng.randint(99, 9999), "€"), words.code(rng)
    writer.text(name, writer.margin, 20)
    writer.ask("What is sold?", name, "title", 20)
    writer.down(3)
    writer.text(price, writer.margin, 40)
    writer.ask("How expensive is it?", words.money_answers(price), "price", 40)
    writer.down(3)
    writer.text(f"Art. {number}", writer.margin)
    writer.ask("What is the article number?", number, "field")
    writer.ask("Until when is it fresh?", DECLINED, "unanswerable")
    return writer.page("label")


KINDS = (packing_list, statement, certificate, price_label)
