"""Documents that Chromium draws from HTML: receipts, invoices, letters, forms, menus, timetables, tables, screens.

Every value that can be asked for is an element with an id. Its box must lie within the page and be what the browser
shows at its middle; its font size is read from the browser.
"""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from . import page as words
from .page import DECLINED, Page, Question

FONTS = ("Inter", "Carlito", "Caladea", "Linux Libertine O", "Cabin", "Karla", "Vollkorn", "Hack", "Sora", "Cardo")


@dataclass
class Draft:
    """HTML with questions, before the browser says how large the letters of each answer are."""

    kind: str
    body: str
    width: int
    style: str = ""
    questions: list[tuple[str, tuple[str, ...], str, str | None]] = field(default_factory=list)
    count: int = 0

    def value(self, text: str, *asked: tuple[str, str], answers: tuple[str, ...] = ()) -> str:
        """An element with a text; each of `asked` is (ability, question) and answered by it."""
        self.count += 1
        for ability, question in asked:
            self.questions.append((question, answers or (text,), ability, f"v{self.count}"))
        return f'<span id="v{self.count}">{text}</span>'

    def decline(self, question: str) -> None:
        self.questions.append((question, (DECLINED,), "unanswerable", None))


def receipt(rng: random.Random, lines: int) -> Draft:
    draft = Draft("receipt", "", rng.choice((260, 320, 400)))
    firm, cashier, date = rng.choice(words.FIRMS), words.person(rng), words.day(rng)
    names = rng.sample(words.GOODS, k=min(lines, len(words.GOODS)))
    prices = [rng.randint(49, 9999) for _ in names]
    rows = ""
    for name, price in zip(names, prices, strict=True):
        text = words.dollars(price)
        asked = (("price", f"What did the {name} cost?"),) if rng.random() < 3 / len(names) else ()
        rows += (
            f"<tr><td>{name}</td><td class=r>{draft.value(text, *asked, answers=words.money_answers(text))}</td></tr>"
        )
    tax = round(sum(prices) * 0.0825)
    total = words.dollars(sum(prices) + tax)
    draft.body = (
        f"<div class=c><b>{draft.value(firm, ('name', 'In which shop was this bought?'))}</b><br>"
        f"{draft.value(date, ('date', 'On which day was the purchase?'))}<br>Cashier: "
        f"{draft.value(cashier, ('name', 'Who worked the till?'))}</div><hr><table width=100%>{rows}</table><hr>"
        f"<table width=100%><tr><td>Sales tax</td><td class=r>{words.dollars(tax)}</td></tr><tr><td><b>TOTAL</b></td>"
        "<td class=r><b>"
        f"{draft.value(total, ('total', 'What is the sum to pay?'), answers=words.money_answers(total))}"
        "</b></td></tr></table>"
    )
    dearest = names[prices.index(max(prices))]
    draft.questions.append(("Which article has the highest price?", (dearest,), "extreme", None))
    if len(names) <= 12:
        draft.questions.append(("How many articles were bought?", (str(len(names)),), "count", None))
    draft.decline(f"What did the {rng.choice([name for name in words.GOODS if name not in names] or ['Piano'])} cost?")
    return draft


def invoice(rng: random.Random, lines: int) -> Draft:
    draft = Draft("invoice", "", 794)
    names = rng.sample(words.GOODS, k=lines)
    rows, net = "", 0
    for name in names:
        quantity, price = rng.randint(1, 9), rng.randint(100, 20000)
        net += quantity * price
        amount = words.dollars(quantity * price, "")
        asked = (("cell", f"What is the line amount for {name}?"),) if rng.random() < 2 / lines else ()
        often = (("cell", f"How many {name} were ordered?"),) if rng.random() < 1 / lines else ()
        rows += (
            f"<tr><td>{name}<td class=r>{draft.value(str(quantity), *often)}<td class=r>{words.dollars(price, '')}"
            f"<td class=r>{draft.value(amount, *asked, answers=words.money_answers(amount))}"
        )
    number, due, total = words.code(rng), words.day(rng), words.dollars(round(net * 1.2))
    draft.body = (
        f"<h2>{rng.choice(words.FIRMS)}</h2><p>{rng.randint(1, 90)} Mill Lane<br>{rng.choice(words.PLACES)}</p>"
        f"<p><b>Billed to</b><br>{draft.value(words.person(rng), ('name', 'Who has to pay this bill?'))}</p>"
        f"<table><tr><td>Invoice no.<td>{draft.value(number, ('field', 'Under which number was it issued?'))}"
        f"<tr><td>Payable by<td>{draft.value(due, ('date', 'Until when does it have to be paid?'))}</table>"
        "<h3>INVOICE</h3><table class=lines width=100%><tr><th>Article<th class=r>Qty<th class=r>Unit price"
        f"<th class=r>Amount{rows}</table><p class=r>Net {words.dollars(net)}<br>VAT 20 % "
        f"{words.dollars(round(net * 1.2) - net)}<br><b>Total "
        f"{draft.value(total, ('total', 'What is the grand total?'), answers=words.money_answers(total))}</b></p>"
        + "<br>"
        * rng.randint(0, 12)
    )
    draft.decline(rng.choice(("What is the IBAN?", "What is the phone number?", "Which gate is given?")))
    return draft


def letter(rng: random.Random, lines: int) -> Draft:
    draft = Draft("letter", "", rng.choice((620, 794)))
    name = words.person(rng)
    town, entry = rng.choice(words.PLACES), words.code(rng)
    sentences = [
        f"Your appointment at {rng.choice(words.FIRMS)} was moved.",
        f"Please bring {rng.choice(words.GOODS).lower()} and {rng.choice(words.GOODS).lower()}.",
        f"The meeting takes place in {draft.value(town, ('field', 'In which town is the meeting?'))}.",
        f"You will need the code {draft.value(entry, ('field', 'Which code will be needed?'))} at the door.",
        f"There are {draft.value(str(rng.randint(14, 95)), ('field', 'How many seats are there?'))} seats.",
        "We are sorry for the trouble and look forward to seeing you.",
    ]
    rng.shuffle(sentences)
    draft.body = (
        f"<p>{rng.choice(words.FIRMS)}<br>{rng.choice(words.PLACES)}</p><p class=r>"
        f"{draft.value(words.day(rng), ('date', 'When was this letter written?'))}</p><p>Dear {name},</p>"
        + "".join(f"<p>{' '.join(sentences[start : start + 2])}</p>" for start in range(0, 6, 2))
        + "<p>With kind regards</p>"
        + f"<p><i>{draft.value(words.person(rng), ('name', 'Whose signature is below?'))}</i></p>"
    )
    draft.decline(rng.choice(("What is the total?", "Which invoice number is given?", "How much is the tax?")))
    return draft


def form(rng: random.Random, lines: int) -> Draft:
    draft = Draft("form", "", rng.choice((420, 560, 720)))
    labels: dict[str, Callable[[], str]] = {
        "Applicant": lambda: words.person(rng), "Place of residence": lambda: rng.choice(words.PLACES),
        "Telephone": lambda: f"0{rng.randint(100, 999)} {rng.randint(100000, 999999)}",
        "Membership": lambda: words.code(rng), "Joined": lambda: words.day(rng),
        "Shoe size": lambda: str(rng.randint(35, 48)), "Emergency contact": lambda: words.person(rng),
        "Blood type": lambda: rng.choice(("A+", "B-", "AB+", "0-")), "License plate": lambda: words.code(rng),
        "Monthly fee": lambda: words.dollars(rng.randint(500, 9900)), "Locker": lambda: str(rng.randint(1, 480)),
    }  # fmt: skip
    chosen = rng.sample(list(labels), k=min(lines, len(labels)))
    boxed = "border:1px solid #777;padding:4px 8px" if rng.random() < 0.5 else "border-bottom:1px dotted #444"
    rows = ""
    for label in chosen:
        text = labels[label]()
        ability = "name" if label in ("Applicant", "Emergency contact") else "date" if label == "Joined" else "field"
        asked = ((ability, f"What was entered as {label.lower()}?"),) if rng.random() < 3 / len(chosen) else ()
        rows += f'<tr><td style="padding:5px">{label}<td style="{boxed}">{draft.value(text, *asked)}'
    heading = rng.choice(
        ("Club enrolment", "Locker rental", "Gym contract", "Library card request", "Car park permit")
    )
    draft.body = (
        f"<h2>{draft.value(heading, ('title', 'What is this form called?'))}</h2><table width=100%>{rows}</table>"
    )
    absent = [label for label in labels if label not in chosen] or ["Nationality"]
    draft.decline(f"What was entered as {rng.choice(absent).lower()}?")
    return draft


def menu(rng: random.Random, lines: int) -> Draft:
    draft = Draft("menu", "", rng.choice((420, 600)))
    rows, prices = "", {}
    for name in rng.sample(words.GOODS, k=lines):
        prices[name] = rng.randint(12, 290) * 10
        text = words.dollars(prices[name], rng.choice(("", "€")))
        asked = (("price", f"How much do they want for the {name.lower()}?"),) if rng.random() < 3 / lines else ()
        rows += f"<p style='display:flex;justify-content:space-between'><span>{name}</span>"
        rows += f"<b>{draft.value(text, *asked, answers=words.money_answers(text))}</b></p>"
    draft.body = f"<h1 class=c>{draft.value(rng.choice(words.FIRMS), ('title', 'What stands at the top?'))}</h1>{rows}"
    if list(prices.values()).count(min(prices.values())) == 1:
        draft.questions.append(
            ("What is cheapest here?", (min(prices, key=lambda name: prices[name]),), "extreme", None)
        )
    return draft


def timetable(rng: random.Random, lines: int) -> Draft:
    draft = Draft("timetable", "", rng.choice((480, 640)))
    rows, minutes = "", rng.randint(300, 800)
    towns = rng.sample(words.PLACES, k=lines)
    for town in towns:
        minutes += rng.randint(4, 37)
        time = f"{minutes // 60 % 24:02}:{minutes % 60:02}"
        asked = (("cell", f"At what time does the coach to {town} leave?"),) if rng.random() < 3 / lines else ()
        bay = (("cell", f"From which bay does the coach to {town} go?"),) if rng.random() < 1.5 / lines else ()
        rows += f"<tr><td>{draft.value(time, *asked)}<td>{town}<td>{draft.value(str(rng.randint(1, 40)), *bay)}"
    draft.body = f"<h2>Coach departures</h2><table class=lines width=100%><tr><th>Time<th>To<th>Bay{rows}</table>"
    draft.questions.append(("Where does the first coach go?", (towns[0],), "order", None))
    draft.questions.append(("Where does the last coach go?", (towns[-1],), "order", None))
    absent = [town for town in words.PLACES if town not in towns]
    draft.decline(f"At what time does the coach to {rng.choice(absent)} leave?")
    draft.questions.append((f"Is there a coach to {rng.choice(towns)}?", ("yes",), "yes/no", None))
    draft.questions.append((f"Is there a coach to {rng.choice(absent)}?", ("no",), "yes/no", None))
    return draft


def spreadsheet(rng: random.Random, lines: int) -> Draft:
    draft = Draft("spreadsheet", "", rng.choice((640, 900)))
    heads = rng.sample(("North", "South", "East", "West", "Online"), k=rng.randint(2, 4))
    names = rng.sample(words.GOODS, k=lines)
    rows = "<tr><th><th>A" + "".join(f"<th>{letter}" for letter in "BCDE"[: len(heads)])
    rows += "<tr><th>1<td>Article" + "".join(f"<td>{head}" for head in heads)
    for number, name in enumerate(names):
        rows += f"<tr><th>{number + 2}<td>{name}"
        for head in heads:
            asked = (
                (("cell", f"What stands under {head} for {name}?"),) if rng.random() < 3 / (lines * len(heads)) else ()
            )
            rows += f"<td class=r>{draft.value(str(rng.randint(0, 9999)), *asked)}"
    draft.style = "td,th{border:1px solid #ccc;padding:2px 6px} th{background:#eee;font-weight:normal;color:#555}"
    draft.body = f"<table style='border-collapse:collapse'>{rows}</table>"
    draft.questions.append(("Which article is in the last row?", (names[-1],), "order", None))
    return draft


def phone(rng: random.Random, lines: int) -> Draft:
    draft = Draft("phone", "", 390)
    rows = ""
    for name in rng.sample(words.FORENAMES, k=min(lines, 9)):
        text = f"{rng.randint(1, 12)}:{rng.randint(0, 59):02} {rng.choice(('AM', 'PM'))}"
        asked = (("field", f"When did {name} write?"),) if rng.random() < 0.3 else ()
        rows += (
            f"<div class=item><b>{name}</b><span style='float:right'>{draft.value(text, *asked)}</span><br>"
            f"{rng.choice(('See you in', 'Back from', 'Greetings from'))} {rng.choice(words.PLACES)}</div>"
        )
    draft.style = ".item{border-radius:12px;background:#8883;padding:10px;margin:8px 0}"
    draft.body = (
        f"<h2>{draft.value(rng.choice(('Inbox', 'Chats', 'Requests')), ('title', 'Which screen is open?'))}</h2>{rows}"
    )
    draft.decline(f"When did {rng.choice(('Bartholomew', 'Cornelius'))} write?")
    return draft


DRAFTS = {
    "receipt": (receipt, (3, 30)), "invoice": (invoice, (3, 14)), "letter": (letter, (1, 1)), "form": (form, (4, 10)),
    "menu": (menu, (4, 14)), "timetable": (timetable, (4, 16)), "spreadsheet": (spreadsheet, (4, 18)),
    "phone": (phone, (4, 9)),
}  # fmt: skip

VISIBLE = """ids => ids.map(id => {
  const e = document.getElementById(id), r = e.getBoundingClientRect();
  const hit = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
  const inside = r.x >= 0 && r.right <= innerWidth && r.y >= 0 && r.bottom <= innerHeight;
  return {seen: inside && (hit === e || e.contains(hit)), size: parseFloat(getComputedStyle(e).fontSize)};
})"""


def draw(drafts: list[tuple[random.Random, Draft]], chromium: str) -> list[Page]:
    """Screenshots of drafts.

    Args:
        drafts: content generator, with the generator that chooses the look of each page.
        chromium: path of the browser.

    Raises:
        ValueError: an answer is not visible on its page.
    """
    from playwright.sync_api import sync_playwright

    pages = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for rng, draft in drafts:
            pages.append(_draw_one(browser, rng, draft))
        browser.close()
    return pages


def _draw_one(browser, rng: random.Random, draft: Draft) -> Page:
    """The draft in the first of a few random looks in which every answer is visible."""
    for _ in range(8):
        scale = rng.choice((1, 1, 1, 1.5, 2))
        tab = browser.new_page(viewport={"width": draft.width, "height": 300}, device_scale_factor=scale)
        tab.set_content(f"<!doctype html><meta charset=utf-8><style>{_look(rng)}{draft.style}</style>{draft.body}")
        tab.set_viewport_size(
            {"width": draft.width, "height": min(tab.evaluate("document.documentElement.scrollHeight"), 1500)}
        )
        ids = [source for *_, source in draft.questions if source]
        found = dict(zip(ids, tab.evaluate(VISIBLE, ids), strict=True))
        if all(element["seen"] for element in found.values()):
            image = Image.open(io.BytesIO(tab.screenshot(type="png"))).convert("RGB")
            body = tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
            tab.close()
            break
        tab.close()
    else:
        raise ValueError(f"{draft.kind}: in none of 8 looks all {len(found)} answers are visible")
    result = Page(draft.kind, "chromium", image)
    for text, answers, ability, source in draft.questions:
        letters = None if ability == "unanswerable" else scale * (found[source]["size"] if source else body)
        result.questions.append(Question(text, answers, ability, letters))
    return result


def _look(rng: random.Random) -> str:
    """A style sheet: font, size, colors, rules or stripes."""
    ground, ink = rng.choice((("#fff", "#111"), ("#fff", "#333"), ("#fdf6e3", "#222"), ("#1e1f26", "#e8e8ee")))
    lines = ("", ".lines td,.lines th{border-bottom:1px solid #888}", ".lines tr:nth-child(even){background:#8882}")
    return (
        f"body{{font:{rng.choice((12, 13, 14, 16, 18, 20))}px '{rng.choice(FONTS)}';margin:0;"
        f"line-height:{rng.choice((1.25, 1.4, 1.6))};padding:{rng.randint(8, 40)}px;background:{ground};color:{ink};"
        "box-sizing:border-box} .r{text-align:right} .c{text-align:center} th{text-align:left} th.r{text-align:right} "
        f"td{{padding:2px 6px 2px 0}} table{{font-size:inherit}} {rng.choice(lines)}"
    )
