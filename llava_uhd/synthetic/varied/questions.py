"""Questions about the facts of a page in many wordings and typing habits, each with its only correct answer."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .content import MONTHS, WEEKDAYS, Content
from .facts import Entries, Field, Line
from .label_wordings import LABELED
from .labels import LABELS
from .notes import compare_rows
from .sheet import Run, Sheet
from .wordings import (
    ANYTHING,
    BEGINNINGS,
    CELL,
    CHEAPEST,
    COLUMNS,
    COUNT,
    DEARER,
    DEAREST,
    ENDINGS,
    FIELD,
    FIRST,
    HIGHEST,
    LARGEST,
    LAST,
    LINE,
    LISTED,
    LOWEST,
    MORE,
    NOUNS,
    OBJECTS,
    OF_COLUMN,
    POLITE,
    PRICE,
    SMALLEST,
    VALUE,
)

NOT_THERE = "not in the document"
NOT_A_DOCUMENT = "this is not a document I can read"
MAX_COUNT = 12

# Fewest letters of a printed label that a question takes for its name: "from" and "until" are none.
SYNONYM = 6
# Share of questions that begin otherwise, that call the document by a noun, or a column by another word.
REWORDED = 0.3
IT = re.compile(r"\bit\b")
# Labels too general to be surely absent.
GENERAL = {"reference", "amount", "customer", "contact", "company", "city", "street", "start date", "end date", "fee",
           "pages", "language", "opening time", "departure time", "arrival time"}  # fmt: skip

# How names of rows are drawn, by their noun.
SORTS: dict[str, Callable[[Content], str]] = {
    "item": Content.product,
    "product": Content.product,
    "dish": Content.dish,
    "person": Content.person,
    "sender": Content.first_name,
    "city": Content.city,
    "destination": Content.city,
    "stop": Content.city,
    "country": Content.country,
    "company": Content.company,
    "team": Content.made_up,
    "name": Content.made_up,
    "month": lambda content: content.rng.choice(MONTHS)[:3],
    "year": lambda content: str(content.rng.randint(1990, 2030)),
    "day": lambda content: content.rng.choice(WEEKDAYS),
}


@dataclass(frozen=True)
class Asked:
    """Question with its answer.

    Attributes:
        ability: `field`, `cell`, `price`, `date`, `name`, `title`, `total`, `line`, `count`, `extreme`, `order`,
            `yes/no`, `unanswerable` or `no document`.
        sources: runs that contain the answer; empty if it is not printed.
        keys: runs by which the answer is found: its label, the name of its row and then of the column that the
            question names, the names that are counted, or what is read to compare two rows or up to `MAX_COUNT`
            (`notes.compare_rows`), after the name of the column; empty if there are none.
        notes: note of each key, see `notes.py`, "" for none; empty if no key has one.
    """

    text: str
    answer: str
    ability: str
    sources: tuple[Run, ...] = ()
    keys: tuple[Run, ...] = ()
    notes: tuple[str, ...] = ()


def habit(text: str, rng: random.Random, nouns: Sequence[str] = ()) -> str:
    """Vary a question as people type it: reworded, longer, politely, in lower case, or without question mark.

    Args:
        text: text of the question.
        rng: random generator of the document.
        nouns: everyday nouns for the document, beside "document" and "page".
    """
    text = _reword(text, rng, nouns)
    if text.endswith("?") and rng.random() < 0.08:
        text = f"{text[:-1]}{rng.choice(ENDINGS)}?"
    if rng.random() < 0.06:
        text = rng.choice(POLITE) + text[0].lower() + text[1:]
    draw = rng.random()
    if draw < 0.15:
        text = text.lower()
    elif draw < 0.22:
        text = text[0].lower() + text[1:]
    elif draw < 0.24:
        text = text.upper()
    if rng.random() < 0.25:
        text = text.rstrip("?.")
    return text + (" " if rng.random() < 0.02 else "")


def _reword(text: str, rng: random.Random, nouns: Sequence[str]) -> str:
    """Begin a question otherwise, and call the document by a noun, in some of the questions where that is possible."""
    for beginning, others in BEGINNINGS.items():
        if text.startswith(beginning) and rng.random() < REWORDED:
            # "On which day is it due?" has the word order of "When is it due?", "Which price" that of "What price".
            text = rng.choice(others) + text.removeprefix(beginning)
            break
    if rng.random() < REWORDED:
        # Not in what is quoted from the page.
        asked, quote, quoted = text.partition('"')
        called = f"{rng.choice(('this', 'the'))} {rng.choice(nouns)}" if nouns and rng.random() < 0.5 else None
        text = IT.sub(called or rng.choice(OBJECTS), asked, count=1) + quote + quoted
    return text


def ask_all(sheet: Sheet, nouns: Sequence[str] = ()) -> list[Asked]:
    """Return questions about every fact of a page and, for one in six, about information that is missing.

    Args:
        sheet: the finished page.
        nouns: everyday nouns for such a page, see `habit`.
    """
    rng, asked = sheet.rng, []
    printed = " ".join(run.text for run in sheet.texts).lower()
    for fact in sheet.facts:
        if isinstance(fact, Field):
            asked.append(_ask_field(fact, sheet))
        elif isinstance(fact, Entries):
            asked += _ask_entries(fact, sheet, printed)
    asked += _ask_lines([fact for fact in sheet.facts if isinstance(fact, Line)], rng, printed)
    answerable = len(asked)
    rng.shuffle(asked)
    asked = asked[:40]
    for _ in range(max(round(min(answerable, 40) / 5), 1)):
        if (question := _ask_absent(sheet, printed)) is not None:
            asked.append(question)
    rng.shuffle(asked)
    return [replace(each, text=habit(each.text, rng, nouns)) for each in asked]


def ask_of_picture(rng: random.Random, count: int = 3) -> list[Asked]:
    """Return questions about an image without text.

    Args:
        rng: random generator of the image.
        count: number of questions.
    """
    texts = [rng.choice(ANYTHING)]
    while len(texts) < count:
        texts.append(rng.choice(FIELD).format(**_cases(label=rng.choice(list(LABELS)))))
    return [Asked(habit(text, rng), NOT_A_DOCUMENT, "no document") for text in texts]


def _cases(**words: str) -> dict[str, str]:
    """Add a capitalized variant of each word, under its capitalized name."""
    capitals = {name.capitalize(): word[:1].upper() + word[1:] for name, word in words.items()}
    return {**words, **capitals}


def _ask_field(fact: Field, sheet: Sheet) -> Asked:
    template = sheet.rng.choice((*FIELD, *fact.wordings, *fact.wordings, *fact.wordings))
    text = template.format(**_cases(label=sheet.rng.choice((fact.label, *_synonyms(fact.label)))))
    return Asked(text, fact.value, fact.ability, fact.sources, fact.keys or _label_of(fact, sheet))


def _synonyms(label: str) -> list[str]:
    """Return the printed forms of a label that are words a question can use."""
    if label not in LABELS:
        return []
    forms = (form.lower() for form in LABELS[label].printed)
    return sorted({form for form in forms if len(form) >= SYNONYM and form.replace(" ", "").isalpha()})


def _label_of(fact: Field, sheet: Sheet) -> tuple[Run, ...]:
    """Return the run of a field's label: the nearest that prints it before its value; empty if none does."""
    if fact.label not in LABELS or not fact.sources:
        return ()
    value, forms = fact.sources[0], {_bare(form) for form in LABELS[fact.label].printed}
    # Labels stand to the left of their values or above them.
    labels = [
        run
        for run in sheet.texts
        if _bare(run.text) in forms
        and run is not value
        and run.baseline < value.baseline + 0.5 * value.size
        and (run.x < value.x or run.baseline < value.baseline)
    ]
    labels.sort(key=lambda run: abs(value.x - run.x) + 3 * abs(value.baseline - run.baseline))
    return tuple(labels[:1])


def _bare(printed: str) -> str:
    """Return a printed label in lower case without the signs behind it."""
    return printed.lower().rstrip(".#: ")


Wordings = tuple[str, ...]


def _heading_of(column: str, cell: Run, sheet: Sheet) -> tuple[Run, ...]:
    """Return the run that names the column above a cell: the nearest; empty if none does."""
    named = [
        run
        for run in sheet.texts
        if run is not cell and _bare(run.text) == _bare(column) and run.baseline < cell.baseline - 0.5 * cell.size
    ]
    named.sort(key=lambda run: 3 * abs(cell.x - run.x) + abs(cell.baseline - run.baseline))
    return tuple(named[:1])


def _of_cells(column: str, fact: Entries) -> Wordings:
    """Return the wordings of questions about the cells of a column."""
    if column != fact.key:
        # Messages have times, too.
        sort = "departure" if column == "time" and fact.noun == "destination" else column
        return *CELL, *2 * OF_COLUMN.get(sort, ())
    return PRICE if column == "price" else (*VALUE, *CELL)


def _ask_entries(fact: Entries, sheet: Sheet, printed: str) -> list[Asked]:
    asked: list[Asked] = []
    rng = sheet.rng
    names, noun = [run.text for run in fact.names], rng.choice((fact.noun, fact.noun, *NOUNS.get(fact.noun, ())))
    nouns = f"{noun[:-1]}ies" if noun[-1] == "y" and noun[-2] not in "aeiou" else f"{noun}s"
    for column, cells in fact.columns.items():
        for run, cell in zip(fact.names, cells, strict=True):
            if cell is not None:
                template = rng.choice(_of_cells(column, fact))
                ability = "price" if column == fact.key == "price" else "cell"
                word = column if rng.random() >= REWORDED else rng.choice((column, *COLUMNS.get(column, ())))
                text = template.format(**_cases(name=run.text, column=word))
                is_of_key = column == fact.key and "{column" not in template.lower()
                heading = () if is_of_key else _heading_of(column, cell, sheet)
                asked.append(Asked(text, cell.text, ability, (cell,), (run, *heading)))
    for column, numbers in fact.values.items():
        if len(numbers) < 2:
            continue
        words = _cases(noun=noun, column=column)
        high: Wordings
        low: Wordings
        high, low = (LARGEST, SMALLEST) if column != fact.key else (HIGHEST, LOWEST)
        if column == "price":
            high, low = DEAREST, CHEAPEST
        cells = fact.columns.get(column) or [None] * len(numbers)
        for wordings, best in ((high, max), (low, min)):
            if numbers.count(best(numbers)) == 1:
                place = numbers.index(best(numbers))
                found = fact.names[place]
                keys, notes = _told_apart(fact.names, cells, numbers, best)
                if notes and column != fact.key:
                    heading = _heading_of(column, keys[1], sheet)
                    keys, notes = (*heading, *keys), (*[""] * len(heading), *notes)
                asked.append(Asked(rng.choice(wordings).format(**words), found.text, "extreme", (found,), keys, notes))
        one, two = rng.sample(range(len(numbers)), k=2)
        if column == fact.key and numbers[one] != numbers[two]:
            text = rng.choice(DEARER if column == "price" else MORE).format(name=names[one], other=names[two])
            answer = "yes" if numbers[one] > numbers[two] else "no"
            rows = [(fact.names[row], cells[row], numbers[row]) for row in (one, two)]
            asked.append(Asked(text, answer, "yes/no", (fact.names[one], fact.names[two]), *_compared(rows)))
    if fact.complete:
        if 1 < len(names) <= MAX_COUNT:
            counted, numbered = tuple(fact.names), tuple(str(number + 1) for number in range(len(names)))
            text = rng.choice(COUNT).format(nouns=nouns)
            asked.append(Asked(text, str(len(names)), "count", counted, counted, numbered))
        if len(names) > 1:
            asked.append(Asked(rng.choice(FIRST).format(noun=noun), names[0], "order", (fact.names[0],)))
            asked.append(Asked(rng.choice(LAST).format(noun=noun), names[-1], "order", (fact.names[-1],)))
    if names:
        listed = rng.choice(fact.names)
        asked.append(Asked(rng.choice(LISTED).format(name=listed.text), "yes", "yes/no", (listed,), (listed,)))
        if (absent := _absent_name(rng, printed, fact.noun)) is not None:
            asked.append(Asked(rng.choice(LISTED).format(name=absent), "no", "yes/no"))
    return asked


def _told_apart(
    names: Sequence[Run],
    cells: Sequence[Run | None],
    numbers: Sequence[float],
    best: Callable[[Sequence[float]], float],
) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return what is read to find the best of some rows, and what is noted of it.

    The best number alone, without a note, where there are many, or where one is not printed.
    """
    found, printed = cells[numbers.index(best(numbers))], [cell for cell in cells if cell is not None]
    if found is None:
        return (), ()
    if len(printed) == len(cells) <= MAX_COUNT:
        keys, notes = compare_rows(names, printed, numbers, best)
        if notes:
            return keys, notes
    return (found,), ()


def _compared(rows: Sequence[tuple[Run, Run | None, float]]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return what is read to compare two rows, and what is noted of it; their names if not all numbers are printed.

    Args:
        rows: name, cell and number of each.
    """
    names, cells = [name for name, *_ in rows], [cell for _, cell, _ in rows if cell is not None]
    if len(cells) == len(rows):
        keys, notes = compare_rows(names, cells, [number for *_, number in rows], max)
        if notes:
            return keys, notes
    return tuple(names), ()


def _absent_name(rng: random.Random, printed: str, noun: str) -> str | None:
    """Return a name none of whose words are on the page, most often one of the rows' sort."""
    content = Content(rng)
    for _ in range(5):
        any_sort = rng.choice((Content.product, Content.person, Content.made_up, Content.city, Content.first_name))
        name = (SORTS.get(noun, any_sort) if rng.random() < 0.75 else any_sort)(content)
        if not any(word in printed for word in name.lower().split()):
            return name
    return None


def _ask_lines(lines: list[Line], rng: random.Random, printed: str) -> list[Asked]:
    """Return transcription questions about lines with a unique beginning."""
    asked = []
    for line in rng.sample(lines, k=min(len(lines), 6)):
        words = line.run.text.split()
        start = " ".join(words[: rng.choice((1, 2, 2, 3))])
        if len(words) > 3 and len(line.run.text) <= 90 and printed.count(start.lower()) == 1:
            asked.append(Asked(rng.choice(LINE).format(start=f'"{start}"'), line.run.text, "line", (line.run,)))
    return asked


def _ask_absent(sheet: Sheet, printed: str) -> Asked | None:
    """Return a question that the page cannot answer: about another label, row or column."""
    rng = sheet.rng
    lists = [fact for fact in sheet.facts if isinstance(fact, Entries) and fact.columns]
    if lists and rng.random() < 0.6:
        fact = rng.choice(lists)
        name, column = _absent_name(rng, printed, fact.noun), rng.choice(list(fact.columns))
        if name is None:
            return None
        template = rng.choice(_of_cells(column, fact))
        return Asked(template.format(**_cases(name=name, column=column)), NOT_THERE, "unanswerable")
    labels = {fact.label for fact in sheet.facts if isinstance(fact, Field)} | sheet.unlabeled
    absent = [name for name in LABELS if name not in labels | GENERAL and _is_absent(name, printed)]
    if not absent:
        return None
    label = rng.choice(absent)
    template = rng.choice((*FIELD, *LABELED[label], *LABELED[label]))
    return Asked(template.format(**_cases(label=label)), NOT_THERE, "unanswerable")


def _is_absent(label: str, printed: str) -> bool:
    """Return True if neither a printed form of a label nor its distinctive words are on the page."""
    forms = [_bare(form) for form in LABELS[label].printed]
    words = [word for word in label.split() if word not in ("number", "date", "code", "post")]
    return not any(form in printed for form in (*forms, *words))
