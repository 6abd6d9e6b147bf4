"""Sheets of paper: invoices, orders, statements, letters, forms, certificates, plain pages."""

import math
import string
from collections.abc import Iterable
from datetime import date, timedelta

from ..page import MIDDLE
from .facts import Field, Line
from .fonts import CHARACTERS, Face, find_families
from .label_wordings import LABELED
from .labels import LABELS
from .parts import address, dated, field_value, fields, labeled, logo, paragraph, stamp, sums, title
from .prose import SENTENCES, state, stated
from .sheet import Run, Sheet
from .slips import stacked
from .statements import draw_statements, told_apart
from .tables import table
from .wordings import SIGNED, WRITTEN

SALUTATIONS = ("Dear {name},", "Hello {name},", "To whom it may concern,", "Dear Sir or Madam,", "Hi {name},")
BILLED = ("", "", "Bill to:", "Billed to:", "Billed to", "To:", "Customer:", "Invoice to", "Sold to:", "For")
CLOSINGS = ("Sincerely,", "Kind regards,", "Best wishes,", "Yours faithfully,", "With best regards,")


def _letterhead(sheet: Sheet) -> None:
    """Place the sender's name with or without a logo, and the address."""
    rng = sheet.rng
    firm = sheet.content.company()
    x = sheet.left
    if rng.random() < 0.6:
        logo(sheet, sheet.left, sheet.top, 2.4 * sheet.em)
        x += 3.2 * sheet.em
    size = round(rng.choice((1.1, 1.5)) * sheet.em)
    if sheet.measure(firm, sheet.style.head.bold, size) < sheet.right - x:
        run = sheet.put(firm, x, face=sheet.style.head.bold, size=size, color=sheet.style.accent)
        sheet.facts.append(Field("sender", firm, "name", (run,), ("Who sent it?", "Which company sent it?")))
        sheet.unlabeled.add("company")
    sheet.feed(1.3)
    if rng.random() < 0.6:
        address(sheet, x)
    sheet.feed(0.8)


def _missing(sheet: Sheet, names: Iterable[str]) -> list[str]:
    """Return those of some labels of which the page has no value yet."""
    there = sheet.unlabeled | {fact.label for fact in sheet.facts if isinstance(fact, Field)}
    return [name for name in names if name not in there]


def _stating(sheet: Sheet, most: int, lines: int) -> None:
    """Place a paragraph that states up to so many values that the page does not have yet."""
    rng, content = sheet.rng, sheet.content
    names = _missing(sheet, SENTENCES)
    filling = [content.sentence(rng.randint(4, 12)) for _ in range(rng.randint(0, 3))]
    count = rng.randint(1, most)
    further = [] if rng.random() < 0.4 else draw_statements(rng, content, rng.randint(1, count))
    labels = {fact.label for fact in sheet.facts if isinstance(fact, Field)}
    further = [statement for statement in further if statement.label not in labels]
    for statement in further:
        sheet.unlabeled |= told_apart(statement)
    # A label of the sort that is said of a thing would be answered by it.
    names = _missing(sheet, names)
    names = rng.sample(names, k=min(count - len(further), len(names)))
    state(sheet, [*further, *(stated(sheet, name) for name in names)], filling, lines)


def _commercial(sheet: Sheet, names: tuple[str, ...], heading: tuple[str, ...]) -> None:
    """Lay out an invoice or order: sender, recipient, fields, goods in a table, sums."""
    rng, content = sheet.rng, sheet.content
    _letterhead(sheet)
    recipient = content.person()
    top = sheet.top
    label = rng.choice(BILLED)
    beside = sheet.measure(f"{label} {recipient}") < 0.5 * sheet.width and rng.random() < 0.5
    face = sheet.style.body.bold if rng.random() < 0.4 else None
    keys = (sheet.put(label, sheet.left, face=face),) if label else ()
    if label and not beside:
        sheet.feed()
    run = sheet.put(recipient, sheet.left + (sheet.measure(f"{label} ", face) if label and beside else 0))
    wordings = ("Who is it addressed to?", "Who is the recipient?", "Who gets it?", "To whom was it sent?",
                *LABELED["customer"])  # fmt: skip
    sheet.facts.append(Field("recipient", recipient, "name", (run,), wordings, keys=keys))
    sheet.feed()
    address(sheet, sheet.left)
    below, sheet.top = sheet.top, top
    if sheet.width > 30 * sheet.em:
        middle = sheet.left + rng.uniform(0.5, 0.6) * sheet.width
    else:
        middle, sheet.top = sheet.left, below + 0.5 * sheet.em
    dated(sheet, middle, label="Date: ")
    fields(sheet, rng.sample(names, k=min(rng.randint(2, 4), len(names))), middle, sheet.right)
    sheet.top = max(below, sheet.top) + 0.7 * sheet.em
    title(sheet, rng.choice(heading), 0.0)
    sheet.feed(0.4)
    count = max(min(sheet.lines_left - 8, rng.choice((rng.randint(2, 8), rng.randint(4, 25)))), 2)
    total, rows, values = 0, [], {"price": [], "amount": [], "quantity": []}  # type: ignore[var-annotated]
    priced = rng.choice(("price", "amount"))
    for name in content.distinct(content.product, count):
        cents, quantity = content.cents(), rng.randint(1, 12)
        cost = cents * quantity
        rows.append([name, str(quantity), content.amount(cents, False), content.amount(cost, False)])
        for column, number in (("price", cents), ("amount", cost), ("quantity", quantity)):
            values[column].append(number)
        total += cost
    header = ["Item", "Quantity", "Price", "Amount"]
    if rng.random() < 0.3:
        header, rows = [header[0], *header[2:]], [[row[0], *row[2:]] for row in rows]
    elif rng.random() < 0.2:
        rows = [[row[0], row[3]] for row in rows]
        header, values = ["Item", "Price"], {"price": values["amount"]}
        priced = "price"
    complete = table(sheet, header, rows, noun="item", key=None if len(header) > 2 else priced, numeric=header[1:],
                     values=values)  # fmt: skip
    if complete is None or len(complete.names) < len(rows):
        return
    sheet.feed(0.3)
    sums(sheet, total, max(sheet.right - 18 * sheet.em, sheet.left), sheet.right)
    if rng.random() < 0.4:
        sheet.feed()
        paragraph(sheet, content.sentence(rng.randint(8, 20)), sheet.left, sheet.right, 3)
    if rng.random() < 0.15:
        stamp(sheet)


def lay_out_invoice(sheet: Sheet) -> None:
    names = ("invoice number", "customer number", "due date", "order number", "tax number", "reference", "contact")
    _commercial(sheet, names, ("Invoice", "INVOICE", "Tax Invoice", "Bill"))


def lay_out_order(sheet: Sheet) -> None:
    names = ("order number", "delivery date", "tracking number", "payment", "contact", "phone", "department")
    _commercial(sheet, names, ("Order", "Purchase Order", "Order confirmation", "Delivery note", "Quotation"))


def lay_out_statement(sheet: Sheet) -> None:
    """Lay out an account statement with the balance."""
    rng, content = sheet.rng, sheet.content
    _letterhead(sheet)
    title(sheet, rng.choice(("Account statement", "Bank Statement", "Monthly statement", "Transactions")), 0.0)
    further = rng.sample(("start date", "end date", "customer", "reference"), k=2)
    number = rng.choice(("account number", "account number", "IBAN"))
    kept = rng.sample((number, *further), k=3)
    fields(sheet, (*kept, *rng.sample(("account holder", "bank"), k=rng.randint(0, 2))), sheet.left, sheet.right)
    sheet.feed(0.5)
    balance, rows, amounts = rng.randint(10_000, 900_000), [], []
    day = date(1998 + rng.randint(0, 30), rng.randint(1, 12), 1)
    count = max(min(sheet.lines_left - 4, rng.randint(4, 40)), 2)
    for name in content.distinct(lambda: rng.choice((content.company, content.person))(), count):
        day += timedelta(days=rng.randint(0, 3))
        cents = content.cents() * rng.choice((1, -1, -1))
        balance += cents
        text = content.amount(abs(cents), False)
        amounts.append(float(cents))
        rows.append(
            [name, content.format_date(day), f"-{text}" if cents < 0 else text, content.amount(abs(balance), False)]
        )
    header = ["Description", "Date", "Amount", "Balance"]
    if balance < 0:
        header, rows = header[:3], [row[:3] for row in rows]
    placed = table(sheet, header, rows, noun="entry", numeric=("Amount", "Balance"), values={"amount": amounts})
    if placed is not None and len(placed.names) == len(rows) and sheet.lines_left >= 2 and rng.random() < 0.5:
        sheet.feed(0.4)
        label, value = rng.choice(LABELS["balance"].printed), content.amount(abs(balance))
        if sheet.measure(f"{label}  {value}") < sheet.width:
            sheet.put(label, sheet.left, face=sheet.style.body.bold)
            field_value(sheet, "balance", sheet.put(f"-{value}" if balance < 0 else value, sheet.right, 1.0))
            sheet.feed()


def lay_out_letter(sheet: Sheet) -> None:
    """Lay out a letter: sender, recipient, date, subject, text, signature."""
    rng, content = sheet.rng, sheet.content
    _letterhead(sheet)
    recipient = content.person()
    run = sheet.put(recipient, sheet.left)
    wordings = ("Who is the letter to?", "Who is it addressed to?", "Who is the recipient?")
    sheet.facts.append(Field("recipient", recipient, "name", (run,), wordings))
    sheet.feed()
    address(sheet, sheet.left)
    sheet.feed(0.6)
    at_right = rng.random() < 0.5
    dated(sheet, sheet.right if at_right else sheet.left, float(at_right))
    if rng.random() < 0.4:
        fields(sheet, rng.sample(("reference", "customer number", "policy number"), k=1), sheet.left, sheet.right)
    sheet.feed(0.4)
    subject = content.sentence(rng.randint(2, 4)).rstrip(".")
    if sheet.measure("Subject: " + subject, sheet.style.body.bold) < sheet.width and rng.random() < 0.7:
        face = sheet.style.body.bold
        sheet.put("Subject:", sheet.left, face=face)
        run = sheet.put(subject, sheet.left + sheet.measure("Subject: ", face), face=face)
        about = ("What is the letter about?", "What is the subject?")
        sheet.facts.append(Field("subject", subject, "title", (run,), about))
        sheet.feed(1.4)
    salutation = rng.choice(SALUTATIONS).format(name=recipient)
    if sheet.measure(salutation) < sheet.width:
        sheet.put(salutation, sheet.left)
        sheet.feed(1.2)
    for _ in range(rng.randint(1, 5)):
        if sheet.lines_left < 8:
            break
        if rng.random() < 0.6:
            _stating(sheet, 4, sheet.lines_left - 5)
        else:
            text = " ".join(content.sentence(rng.randint(5, 14)) for _ in range(rng.randint(1, 5)))
            paragraph(sheet, text, sheet.left, sheet.right, sheet.lines_left - 5)
        sheet.feed(0.6)
    if sheet.lines_left >= 4:
        sheet.put(rng.choice(CLOSINGS), sheet.left)
        sheet.feed(rng.choice((1.0, 2.0)))
        signer = content.person()
        run = sheet.put(signer, sheet.left, face=sheet.style.body.italic if rng.random() < 0.4 else None)
        sheet.facts.append(Field("name of the signer", signer, "name", (run,), SIGNED))
        sheet.feed()
    if rng.random() < 0.15:
        stamp(sheet)


def lay_out_form(sheet: Sheet) -> None:
    """Lay out a form in one or two columns: values after their labels, in boxes, on lines or below."""
    rng, em = sheet.rng, sheet.em
    heading = ("Application", "Registration form", "Claim form", "Patient record", "Booking", "Work order", "Request",
               "Membership", "Customs declaration", "Hotel registration", "Vehicle inspection")  # fmt: skip
    title(sheet, rng.choice(heading))
    if rng.random() < 0.4:
        sheet.rule()
    sheet.feed(0.5)
    names = [name for name in LABELS if name not in ("total", "subtotal", "tax")]
    names = rng.sample(names, k=rng.randint(4, 22))
    style = rng.choice(("plain", "aligned", "boxes", "underlined", "stacked"))
    columns = 2 if sheet.width > 34 * em and rng.random() < 0.6 else 1
    if style == "stacked":
        stacked(sheet, names, columns + 1)
        return
    step = sheet.width / columns
    for first in range(0, len(names), columns):
        if sheet.lines_left < 1.5:
            return
        for place, name in enumerate(names[first : first + columns]):
            left, right = sheet.left + place * step, sheet.left + (place + 1) * step - em
            start = None if style == "plain" else left + 0.42 * step
            if labeled(sheet, name, left, right, start) and style in ("boxes", "underlined"):
                top, low = sheet.top + 0.03 * sheet.style.pitch, sheet.top + 0.97 * sheet.style.pitch
                begin = sheet.texts[-1].x - 0.4 * em
                bounds = (begin, top if style == "boxes" else low, right, low)
                sheet.box(bounds, outline=sheet.style.accent, width=max(em // 14, 1))
        sheet.feed(rng.choice((1.15, 1.3)) if style != "plain" else 1.0)


def lay_out_certificate(sheet: Sheet) -> None:
    """Lay out a framed, centered certificate."""
    rng, content = sheet.rng, sheet.content
    middle = sheet.left + 0.5 * sheet.width
    sheet.feed(1.5)
    headings = ("Certificate", "Certificate of Achievement", "Diploma", "Award", "Certificate of Completion")
    title(sheet, rng.choice(headings), 0.5, rng.choice((1.8, 2.4)))
    sheet.feed(1.2)
    sheet.put(rng.choice(("This certifies that", "Presented to", "is awarded to")), middle, 0.5)
    sheet.feed(1.5)
    person = content.person()
    if (run := sheet.heading(person, 0.5, 1.6)) is not None:
        wordings = ("Who receives the certificate?", "Who is it for?", "Whose certificate is it?", "Who got it?",
                    "Who took part?", "Who completed the course?", "Who was trained?",
                    "Who passed the exam?", "Who was the participant?", "Which person has it?",
                    "To whom was it awarded?", "Who earned it?", "Who attended the course?",
                    "Who visited the course?", "Who was there?", "Who has learned it?", "Who passed?")  # fmt: skip
        sheet.facts.append(Field("name", run.text, "name", (run,), wordings))
    sheet.feed(0.6)
    if rng.random() < 0.5:
        for line in sheet.wrap(f"has completed {content.sentence(rng.randint(4, 9))}", 0.85 * sheet.width):
            sheet.facts.append(Line(sheet.put(line, middle, 0.5)))
            sheet.feed()
    else:
        _course(sheet, middle)
    sheet.feed(1.2)
    if rng.random() < 0.4:
        names = _missing(sheet, ("duration", "city", "teacher", "reference", "company", "language", "member number"))
        for name in rng.sample(names, k=rng.randint(1, 2)):
            if sheet.lines_left >= 4 and labeled(sheet, name, sheet.left, sheet.right, align=0.5):
                sheet.feed()
    dated(sheet, middle, 0.5)
    signer = content.person()
    run = sheet.put(signer, middle, 0.5, sheet.style.body.italic)
    sheet.facts.append(Field("name of the signer", signer, "name", (run,), SIGNED[:-WRITTEN]))
    sheet.feed(1.5)
    sheet.crop()
    width, height = sheet.size
    for edge in (0.4 * sheet.em, 0.7 * sheet.em):
        sheet.box((edge, edge, width - edge, height - edge), outline=sheet.style.accent, width=max(sheet.em // 10, 1))


def _course(sheet: Sheet, middle: float) -> None:
    """Place a line that names a course, centered."""
    rng, content = sheet.rng, sheet.content
    before = rng.choice(("has completed the course", "has passed the course", "for taking part in the course",
                         "has attended", "for the training in", "passed the exam in"))  # fmt: skip
    subject = content.words(rng.randint(1, 3)).capitalize() if rng.random() < 0.6 else content.product()
    left = middle - 0.5 * sheet.measure(f"{before} {subject}")
    if left < sheet.left:
        return
    cue = sheet.put(before, left)
    run = sheet.put(subject, left + sheet.measure(f"{before} "))
    wordings = ("What was the subject?", "In what was it awarded?", "What course does it name?", "What was completed?",
                "Which subject was taught?", "What course did the person take?",
                "Which training was it?", "For what was the exam?", "What has the person learned?",
                "What was the course?", "Name of the course?", "Which course is it about?", "What was taught?",
                "What course was attended?", "In what was the person trained?")  # fmt: skip
    sheet.facts.append(Field("course", subject, "field", (run,), wordings, keys=(cue,)))
    sheet.feed()


def lay_out_plain_page(sheet: Sheet) -> None:
    """Lay out running text with headings, in one or two columns."""
    rng, content = sheet.rng, sheet.content
    title(sheet, content.sentence(rng.randint(2, 5)).rstrip("."))
    if rng.random() < 0.4:
        author = content.person()
        sheet.put("by", sheet.left)
        run = sheet.put(author, sheet.left + sheet.measure("by "))
        sheet.facts.append(Field("author", author, "name", (run,), ("Who wrote it?", "Who is the author?", "author?")))
        sheet.feed()
    sheet.feed(0.5)
    columns = 2 if sheet.width > 44 * sheet.em and rng.random() < 0.4 else 1
    top, step = sheet.top, sheet.width / columns
    lines = rng.choice((rng.randint(4, 14), rng.randint(10, 50), 160))
    for column in range(columns):
        sheet.top = top
        left = sheet.left + column * step
        while sheet.lines_left >= 2 and lines > 0:
            if rng.random() < 0.25:
                heading = content.sentence(rng.randint(1, 3)).rstrip(".")
                if sheet.measure(heading, sheet.style.body.bold) < step - sheet.em:
                    sheet.put(heading, left, face=sheet.style.body.bold)
                    sheet.feed(1.1)
            before = sheet.top
            text = " ".join(content.sentence(rng.randint(4, 14)) for _ in range(rng.randint(2, 6)))
            paragraph(sheet, text, left, left + step - sheet.em, lines)
            lines -= round((sheet.top - before) / sheet.style.pitch)
            sheet.feed(0.5)


def lay_out_note(sheet: Sheet) -> None:
    """Lay out a short notice with a few fields."""
    rng, content = sheet.rng, sheet.content
    title(sheet, content.sentence(rng.randint(1, 3)).rstrip("."))
    if rng.random() < 0.5:
        _stating(sheet, 3, 5)
    else:
        paragraph(sheet, content.sentence(rng.randint(6, 20)), sheet.left, sheet.right, 5)
    sheet.feed(0.4)
    fields(sheet, rng.sample(_missing(sheet, LABELS), k=rng.randint(1, 4)), sheet.left, sheet.right)
    if sheet.lines_left >= 2 and rng.random() < 0.5:
        signer = content.person()
        run = sheet.put(signer, sheet.left)
        sheet.facts.append(Field("name of the signer", signer, "name", (run,), SIGNED))
        sheet.unlabeled |= {"contact", "customer", "manager", "cashier", "patient", "passenger", "owner",
                            "account holder", "driver", "doctor", "teacher", "emergency contact"}  # fmt: skip
        sheet.feed()
    sheet.crop()


def _put_turned_words(sheet: Sheet, words: list[str], face: Face, size: int) -> None:
    """Place words that rise or fall beside each other, as those below a chart, and move the cursor below them."""
    angle = sheet.rng.uniform(15, 50) * sheet.rng.choice((1, 1, -1))
    step = 1.25 * size / abs(math.sin(math.radians(angle)))
    x, low = sheet.left, sheet.top
    for word in words:
        # The ends at the top stand in a row.
        run = sheet.put_turned(word, x, sheet.top, angle, 1.0 if angle > 0 else 0.0, face, size)
        left, _, right, bottom = run.bounds
        if left < sheet.left or right > sheet.right or bottom > sheet.bottom:
            sheet.texts.pop()
        else:
            low = max(low, bottom)
        x += step
    sheet.top = low + 0.3 * size


def lay_out_scribble(sheet: Sheet) -> None:
    """Lay out words, codes, amounts and random characters in changing fonts, for character recognition."""
    rng, content = sheet.rng, sheet.content
    families = find_families(sheet.fonts)
    characters = string.ascii_letters + 3 * string.digits + string.punctuation + CHARACTERS[95:]
    draws = (content.word, content.product, content.person, content.code, content.date, content.made_up, content.phone,
             lambda: content.amount(content.cents()), lambda: content.word().upper(), content.city,
             lambda: "".join(rng.choices(characters, k=rng.randint(1, 9))))  # fmt: skip
    size = sheet.em
    faces = [face for family in rng.sample(families, k=min(3, len(families)))
             for face in (family.regular, family.regular, family.bold, family.italic)]  # fmt: skip
    while sheet.top + 1.6 * size < sheet.bottom:
        if rng.random() < 0.3:
            size = max(round(sheet.em * rng.choice((0.75, 1.0, 1.0, 1.4, 2.0))), 6)
        face = rng.choice(faces)
        if rng.random() < 0.15:
            _put_turned_words(sheet, [rng.choice(draws)() for _ in range(12)], face, size)
            continue
        dark = rng.random() < 0.12
        color = rng.choice((sheet.style.ink, sheet.style.ink, sheet.style.accent))
        pitch = size * rng.uniform(1.1, 1.5)
        if dark:
            sheet.box((0, sheet.top, sheet.size[0], sheet.top + pitch), fill=sheet.style.accent)
            color = sheet.style.paper
        x = sheet.left
        while True:
            text = rng.choice(draws)()
            if x + sheet.measure(text, face, size) > sheet.right:
                break
            run = Run(text, x, sheet.top + 0.5 * pitch + MIDDLE * size, face, size, color)
            sheet.texts.append(run)
            x += run.width + rng.uniform(0.3, 1.2) * size
        sheet.top += pitch
