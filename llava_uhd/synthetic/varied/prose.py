"""Values that running text states, as letters do: "Your parcel arrives on 3 May 2012."."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from .facts import Field, Line
from .label_wordings import LABELED
from .labels import LABELS
from .sheet import Run, Sheet
from .statements import Statement

# Sentences by label. The words between asterisks are those by which the value is found.
SENTENCES: dict[str, tuple[str, ...]] = {
    "invoice number": (
        "This concerns *invoice* {value}.",
        "Please quote the *invoice number* {value}.",
        "We refer to *invoice* {value}.",
    ),
    "order number": (
        "Thank you for your *order* {value}.",
        "Your *order number* is {value}.",
        "The goods of *order* {value} are ready.",
    ),
    "account number": ("Please pay into *account* {value}.", "Our *account number* is {value}."),
    "ticket number": ("We have opened *ticket* {value} for you.", "Your *ticket number* is {value}."),
    "tracking number": ("The parcel has the *tracking number* {value}.", "For *tracking* please use {value}."),
    "serial number": ("The device has the *serial number* {value}.", "It bears the *serial number* {value}."),
    "booking code": (
        "Your *booking code* is {value}.",
        "We have *booked* it for you under {value}.",
        "Please have the *code* {value} with you.",
    ),
    "due date": (
        "The *payment is due* on {value}.",
        "We expect your *payment* by {value}.",
        "You have to *pay* until {value}.",
    ),
    "delivery date": (
        "The goods will be *delivered* on {value}.",
        "Your parcel *arrives* on {value}.",
        "We *deliver* on {value}.",
    ),
    "expiry date": (
        "Our offer is *valid until* {value}.",
        "Your card *expires* on {value}.",
        "The voucher can be used *until* {value}.",
    ),
    "start date": ("The course *starts* on {value}.", "Your stay *begins* on {value}.", "We *begin* on {value}."),
    "end date": (
        "The contract *ends* on {value}.",
        "It will be *over* on {value}.",
        "The work will be *finished* on {value}.",
    ),
    "birth date": ("The child was *born* on {value}.", "As your *date of birth* we have {value}."),
    "contact": (
        "If you have questions, please *ask* {value}.",
        "Your *contact* is {value}.",
        "For anything else *turn to* {value}.",
    ),
    "manager": (
        "Our *manager* {value} will call you.",
        "The *manager* of the branch is {value}.",
        "The new *manager* is {value}.",
    ),
    "passenger": ("The name of the *passenger* is {value}.", "We have booked a flight for *passenger* {value}."),
    "patient": (
        "We have seen your *patient* {value}.",
        "The *patient* is called {value}.",
        "This is about the *patient* {value}.",
    ),
    "phone": ("You can *call* us at {value}.", "Our *phone number* is {value}.", "The *telephone* number is {value}."),
    "fax": ("Please send a *fax* to {value}.", "Our *fax number* is {value}."),
    "email": ("Please *write* to {value}.", "Our *email address* is {value}.", "Send your *mail* to {value}."),
    "department": ("The *department* {value} takes care of it.", "We have told the *department* {value}."),
    "status": (
        "The *status* of your request is {value}.",
        "Its *status* was set to {value}.",
        "At the moment the *status* is {value}.",
    ),
    "color": ("The *color* that you have chosen is {value}.", "We have it in the *color* {value} only."),
    "room": (
        "Please come to *room* {value}.",
        "The course takes place in *room* {value}.",
        "You find us in *room* {value}.",
    ),
    "table number": ("We have reserved *table* {value} for you.", "You will sit at *table* {value}."),
    "seat": ("Your *seat* is {value}.", "We have reserved *seat* {value} for you.", "You have *seat* {value}."),
    "gate": ("Boarding is at *gate* {value}.", "Please go to *gate* {value}."),
    "platform": ("The train leaves from *platform* {value}.", "Please wait at *platform* {value}."),
    "weight": (
        "The parcel *weighs* {value}.",
        "It has a *weight* of {value}.",
        "With packing the *weight* is {value}.",
    ),
    "height": ("The shelf has a *height* of {value}.", "It is {value} *high*."),
    "quantity": (
        "We have sent you {value} *pieces*.",
        "The box holds {value} *pieces*.",
        "You get {value} *pieces* in all.",
    ),
    "guests": (
        "We expect {value} *guests*.",
        "Our hall has room for {value} *guests*.",
        "Up to {value} *guests* can come.",
    ),
    "deposit": (
        "You have paid a *deposit* of {value}.",
        "We need a *deposit* of {value}.",
        "A *deposit* of {value} was paid.",
    ),
    "fee": ("The *fee* is {value}.", "We charge a *fee* of {value}.", "There is a *fee* of {value} to pay."),
    "discount": ("You get a *discount* of {value}.", "This time the *discount* is {value}."),
    "shipping": ("The *shipping* costs {value}.", "For *shipping* we have added {value}."),
    "total": ("The *total* is {value}.", "All in all you *pay* {value}.", "That makes {value} *altogether*."),
    "tax": ("The *tax* comes to {value}.", "Of this {value} are *tax*.", "It has {value} of *tax* in it."),
}
CUE, VALUE = "cue", "value"


class _Piece(NamedTuple):
    """Part of a word of a text: `part` is the number of the statement that it belongs to and what it is there."""

    text: str
    part: tuple[int, str] | None


_Word = list[_Piece]


def stated(sheet: Sheet, name: str) -> Statement:
    """Return a sentence with a new value of a label.

    Args:
        sheet: page whose content it is of.
        name: label in `SENTENCES`.
    """
    value = LABELS[name].draw(sheet.content)
    return Statement(sheet.rng.choice(SENTENCES[name]), value, name, LABELS[name].ability, LABELED[name])


def state(sheet: Sheet, statements: Sequence[Statement], filling: Sequence[str], lines: int) -> None:
    """Place a paragraph of statements among other sentences, and record their values and the other lines.

    A statement whose value has a word wider than the page is left out.

    Args:
        sheet: page to write on, over its whole width.
        statements: values with their sentences.
        filling: sentences that state nothing.
        lines: most lines.
    """
    # A word that is wider than the page would be cut off; "." may follow it.
    statements = [
        statement
        for statement in statements
        if sheet.measure(max(statement.value.split(), key=sheet.measure) + ".") < sheet.width
    ]
    sentences = [_words(statement.sentence, statement.value, number) for number, statement in enumerate(statements)]
    sentences += [_words(sentence, "", -1) for sentence in filling]
    sheet.rng.shuffle(sentences)
    placed = _place(sheet, [word for sentence in sentences for word in sentence], lines)
    for number, statement in enumerate(statements):
        sheet.unlabeled.add(statement.label)  # also where a part of the sentence did not fit
        sources = placed.get((number, VALUE), ())
        if " ".join(run.text for run in sources) == statement.value:
            keys = tuple(placed.get((number, CUE), ())[-1:])
            sheet.facts.append(Field(statement.label, statement.value, statement.ability, tuple(sources),
                                     statement.wordings, keys=keys))  # fmt: skip


def _words(sentence: str, value: str, number: int) -> list[_Word]:
    """Split a sentence at its spaces, with its cue and its value told apart from the signs beside them."""
    words: list[_Word] = [[]]
    for text in re.split(r"(\*[^*]+\*|\{value\})", sentence):
        if text == "{value}":
            text, part = value, (number, VALUE)
        elif text.startswith("*") and text != "*":
            text, part = text.strip("*"), (number, CUE)
        else:
            part = None
        first, *others = text.split(" ")
        words[-1].append(_Piece(first, part))
        words += [[_Piece(other, part)] for other in others]
    whole = [[piece for piece in word if piece.text] for word in words]
    return [word for word in whole if word]


def _place(sheet: Sheet, words: list[_Word], lines: int) -> dict[tuple[int, str], list[Run]]:
    """Place words line by line, as many lines as fit, and return the runs of cues and values."""
    placed: dict[tuple[int, str], list[Run]] = {}
    spelled = ["".join(piece.text for piece in word) for word in words]
    for line in sheet.wrap(" ".join(spelled), sheet.width)[:lines]:
        if sheet.lines_left < 1:
            break
        count = len(line.split())
        segments = _segments(words[:count])
        words = words[count:]
        if len(segments) == 1 and segments[0].part is None:
            sheet.facts.append(Line(sheet.put(line, sheet.left)))
        else:
            before = ""
            for text, part in segments:
                run = sheet.put(text.strip(), sheet.left + sheet.measure(before + text) - sheet.measure(text.lstrip()))
                before += text
                if part is not None:
                    placed.setdefault(part, []).append(run)
        sheet.feed()
    return placed


def _segments(words: list[_Word]) -> list[_Piece]:
    """Join the pieces of a line that belong together; spaces stay before the words."""
    segments: list[_Piece] = []
    for word in words:
        space = " " if segments else ""
        for place, piece in enumerate(word):
            text = piece.text if place else space + piece.text
            if segments and segments[-1].part == piece.part:
                segments[-1] = _Piece(segments[-1].text + text, piece.part)
            else:
                segments.append(_Piece(text, piece.part))
    return segments
