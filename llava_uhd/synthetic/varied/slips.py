"""Small papers: receipts, labels, tickets, cards."""

from .content import CURRENCIES
from .facts import Entries, Field
from .labels import LABELS
from .parts import address, dated, field_value, fields, labeled, logo, sums, title
from .sheet import Sheet
from .wordings import OWN_PRICE, PRODUCT, SHOP


def lay_out_receipt(sheet: Sheet) -> None:
    """Lay out a receipt of up to 60 lines: shop, date, goods with prices, sums, payment."""
    rng, content = sheet.rng, sheet.content
    content.currency = rng.choice(CURRENCIES)
    align = rng.choice((0.5, 0.5, 0.0))
    x = sheet.left + align * sheet.width
    shop = content.company()
    if (
        run := sheet.heading(shop.upper() if rng.random() < 0.3 else shop, align, rng.choice((1.0, 1.3, 1.6, 2.2)))
    ) is not None:
        sheet.facts.append(Field("name of the shop", run.text, "name", (run,), SHOP))
        sheet.unlabeled.add("company")
    if rng.random() < 0.5:
        address(sheet, x, align)
    if rng.random() < 0.8:
        dated(sheet, x, align)
    for name in rng.sample(("cashier", "order number", "table number", "phone", "tax number"), k=rng.randint(0, 3)):
        if labeled(sheet, name, sheet.left, sheet.right, align=rng.choice((0.0, align))):
            sheet.feed()
    sheet.feed(0.4)
    if rng.random() < 0.4:
        sheet.rule()
    count = min(sheet.lines_left - 5, rng.choice((rng.randint(2, 12), rng.randint(5, 30), rng.randint(20, 60))))
    names = content.distinct(content.product, max(count, 2))
    goods, total = Entries("item", [], {"price": []}, {"price": []}, key="price"), 0
    symbol, twoline = rng.random() < 0.4, rng.random() < 0.12
    for name in names:
        cents = content.cents()
        price = content.amount(cents, symbol)
        if sheet.measure(name + price) + sheet.em > sheet.width or sheet.lines_left < 5 + twoline:
            continue
        quantity = f"{rng.randint(1, 9)} x " if rng.random() < 0.06 else ""
        if quantity and sheet.measure(quantity + name + price) + sheet.em < sheet.width:
            sheet.put(quantity, sheet.left)
            goods.names.append(sheet.put(name, sheet.left + sheet.measure(quantity)))
        else:
            goods.names.append(sheet.put(name, sheet.left))
        if twoline:
            sheet.feed()
        goods.columns["price"].append(sheet.put(price, sheet.right, 1.0))
        goods.values["price"].append(cents)
        total += cents
        sheet.feed()
    sheet.facts.append(goods)
    sheet.feed(0.3)
    if rng.random() < 0.6:
        sheet.rule()
    sums(sheet, total, sheet.left, sheet.right)
    if rng.random() < 0.4 and labeled(sheet, "payment", sheet.left, sheet.right):
        sheet.feed()
    if rng.random() < 0.4 and sheet.lines_left >= 1:
        thanks = rng.choice(("Thank you!", "Thank you for your visit", "Come again", "Have a nice day"))
        if sheet.measure(thanks) <= sheet.width:
            sheet.put(thanks, x, align)
            sheet.feed()
    sheet.crop()


def lay_out_label(sheet: Sheet) -> None:
    """Lay out the label of a parcel or product in a frame."""
    rng, content = sheet.rng, sheet.content
    tag = rng.random() < 0.45
    if not tag and rng.random() < 0.6:
        title(sheet, rng.choice(("FRAGILE", "PARCEL", "EXPRESS", "SAMPLE", content.company())))
        sheet.rule()
        sheet.feed(0.3)
    if tag:
        _price_tag(sheet)
    elif rng.random() < 0.6:
        sheet.put("To:", sheet.left)
        recipient = content.person()
        run = sheet.put(recipient, sheet.left + 2.5 * sheet.em)
        wordings = ("Who is it for?", "Who receives it?", "To whom does it go?")
        sheet.facts.append(Field("recipient", recipient, "name", (run,), wordings))
        sheet.feed()
        address(sheet, sheet.left + 2.5 * sheet.em)
    names = ("weight", "tracking number", "serial number", "expiry date", "quantity", "color", "order number",
             "article number", "batch", "size", "material")  # fmt: skip
    fields(sheet, rng.sample(names, k=rng.randint(2, 5)), sheet.left, sheet.right)
    sheet.feed(0.3)
    if sheet.lines_left > 3:
        barcode(sheet, sheet.left, min(sheet.right, sheet.left + 14 * sheet.em), 2.2 * sheet.em)
    sheet.crop()
    width, height = sheet.size
    edge = 0.3 * sheet.em
    sheet.box((edge, edge, width - edge, height - edge), outline=sheet.style.ink, width=max(sheet.em // 8, 1))


def _price_tag(sheet: Sheet) -> None:
    """Place the name of a product and its price."""
    rng, content = sheet.rng, sheet.content
    align = rng.choice((0.0, 0.0, 0.5))
    if (run := sheet.heading(content.product(), align, rng.choice((1.0, 1.4, 2.0, 2.6)))) is not None:
        sheet.facts.append(Field("product", run.text, "title", (run,), PRODUCT))
    content.currency = rng.choice(CURRENCIES)
    sheet.unlabeled |= {"total", "subtotal"}
    sheet.feed(0.2)
    if (
        run := sheet.heading(content.amount(content.cents()), align, rng.choice((1.0, 1.5, 2.0, 2.5, 3.2, 4.0)))
    ) is not None:
        sheet.facts.append(Field("price", run.text, "price", (run,), OWN_PRICE))
    sheet.feed(0.4)


def barcode(sheet: Sheet, left: float, right: float, height: float) -> None:
    """Place bars of random widths below the cursor."""
    x = left
    while x < right:
        width = sheet.rng.choice((1, 1, 2, 3)) * max(sheet.em / 10, 1)
        sheet.box((x, sheet.top, min(x + width, right), sheet.top + height), fill=(20, 20, 20))
        x += width + sheet.rng.choice((1, 2, 3)) * max(sheet.em / 10, 1)
    sheet.top += height + 0.3 * sheet.em


def lay_out_ticket(sheet: Sheet) -> None:
    """Lay out a boarding pass, train ticket or admission ticket: values below their labels, side by side."""
    rng = sheet.rng
    title(sheet, rng.choice(("BOARDING PASS", "TRAIN TICKET", "Admit One", "Concert Ticket", "Museum", "Bus Ticket")))
    sheet.feed(0.3)
    names = ["passenger", "seat", "gate", "platform", "booking code", "start date", "ticket number", "fee", "status",
             "departure time", "arrival time", "duration"]  # fmt: skip
    stacked(sheet, rng.sample(names, k=rng.randint(4, 8)), columns=rng.choice((2, 3)))
    if rng.random() < 0.5 and sheet.lines_left > 3:
        barcode(sheet, sheet.left, sheet.left + 0.6 * sheet.width, 2.0 * sheet.em)
    sheet.crop()


def stacked(sheet: Sheet, names: list[str], columns: int) -> None:
    """Place values below their small labels, several side by side."""
    small = max(round(0.72 * sheet.em), 7)
    step = sheet.width / columns
    color = sheet.style.accent
    for start in range(0, len(names), columns):
        if sheet.lines_left < 2:
            return
        for place, name in enumerate(names[start : start + columns]):
            left = sheet.left + place * step
            value = LABELS[name].draw(sheet.content)
            label = sheet.rng.choice(LABELS[name].printed)
            if max(sheet.measure(value), sheet.measure(label, size=small)) + 0.5 * sheet.em > step:
                continue
            sheet.put(label, left, size=small, color=color)
            field_value(sheet, name, sheet.put(value, left, y=sheet.top + 0.8 * sheet.style.pitch))
        sheet.feed(2.1)


def lay_out_card(sheet: Sheet) -> None:
    """Lay out a business card, member card or badge."""
    rng, content = sheet.rng, sheet.content
    if rng.random() < 0.5:
        logo(sheet, sheet.right - 3 * sheet.em, sheet.top, 2.6 * sheet.em)
    person = content.person()
    if (run := sheet.heading(person, 0.0, rng.choice((1.2, 1.5)))) is not None:
        wordings = ("Whose card is it?", "What is the name of the person?", "Who is this?", "name?")
        sheet.facts.append(Field("name", run.text, "name", (run,), wordings))
    job = content.job()
    if sheet.measure(job) < sheet.width:
        field_value(sheet, "job", sheet.put(job, sheet.left))
        sheet.feed()
    firm = content.company()
    if sheet.measure(firm) < sheet.width:
        field_value(sheet, "company", sheet.put(firm, sheet.left))
        sheet.feed()
    sheet.feed(0.5)
    names = ("phone", "email", "fax", "city", "customer number", "expiry date", "website", "member number")
    fields(sheet, rng.sample(names, k=rng.randint(2, 4)), sheet.left, sheet.right)
    sheet.crop()
