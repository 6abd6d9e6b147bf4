"""Notes before an answer: the numbers that are compared, and how many names were counted.

Two numbers that are only pointed at cannot be compared digit by digit. The note of a number has the count of its
digits before the decimal point and its first three digits, so that the larger of two numbers has the later note in
alphabetical order. Numbers are compared sign by sign: each sign of a note is followed by that of the best number
before, and by which of the two is larger so far. Each such decision is about the two signs just written and the
decision before, however long ago the best number was read; whether the number leads stands at the end.

Numbers are read row by row: the name of a row, its number with the note, then the name of the row that leads so far,
with a note that says whether rows follow. A number is found beside its name, and names stand below each other or side
by side, however far the numbers are apart; where the best row is was written in the row before; and whether there is
another row is one decision, not the sum of all places where it might be.
"""

import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

LEADS, TRAILS = "+", "-"
LARGER, SMALLER, EQUAL = LEADS, TRAILS, "0"
MORE, LAST = LEADS, TRAILS
NOTED = f"0123456789{LEADS}{TRAILS}"
DIGITS = 3
# Signs of a comparison: for each sign of a note three, then whether the number leads.
COMPARED_SIGNS = 3 * (DIGITS + 1) + 1
# Digits in groups of three, or without groups, then one or two behind a decimal sign.
_NUMBER = re.compile(r"(\d{1,3}(?:[.,' \u00a0\u202f]\d{3})+|\d+)(?:[.,](\d{1,2}))?(?!\d)")


class Printed(Protocol):
    """A printed text."""

    @property
    def text(self) -> str: ...


AnyPrinted = TypeVar("AnyPrinted", bound=Printed)


def note_number(text: str) -> str | None:
    """Return the note of the first number of a printed text; None if it has none, or a negative one.

    Args:
        text: printed text, for example "$1,204.50", whose note is "4120".
    """
    found = _NUMBER.search(text)
    if found is None or text[: found.start()].rstrip().endswith(("-", "\u2212", "(")):
        return None
    whole = re.sub(r"\D", "", found[1])
    return f"{len(whole)}{(whole + (found[2] or ''))[:DIGITS]:0<{DIGITS}}" if len(whole) < 10 else None


def note_compared(
    texts: Sequence[str], numbers: Sequence[float], best: Callable[[Sequence[float]], float]
) -> tuple[str, ...]:
    """Return notes of numbers that are read one after the other to find the best; none if they do not tell it.

    Each has the signs of the number's note, each followed by that of the best number before (the first's own) and by
    the order of the two notes up to there, `LARGER`, `SMALLER` or `EQUAL`; then `LEADS` or `TRAILS`.

    Args:
        texts: the printed numbers.
        numbers: their values.
        best: `max` or `min`.
    """
    notes = [note for text in texts if (note := note_number(text)) is not None]
    if len(notes) < len(texts) or _order(notes) != _order(numbers):
        return ()
    compared: list[str] = []
    leader = 0
    for place, note in enumerate(notes):
        leads = best((numbers[leader], numbers[place])) == numbers[place]
        compared.append(_compare(note, notes[leader]) + (LEADS if leads else TRAILS))
        leader = place if leads else leader
    return tuple(compared)


def compare_rows(
    names: Sequence[AnyPrinted],
    cells: Sequence[AnyPrinted],
    numbers: Sequence[float],
    best: Callable[[Sequence[float]], float],
) -> tuple[tuple[AnyPrinted, ...], tuple[str, ...]]:
    """Return the texts that are read to find the best of some rows, and the note of each; none if they do not tell it.

    Of each row these are its name, its number and the name of the row that leads so far, whose note says whether
    another row follows. The last text is the name of the best row.

    Args:
        names: printed names of the rows.
        cells: their printed numbers.
        numbers: values of these.
        best: `max` or `min`.
    """
    notes = note_compared([cell.text for cell in cells], numbers, best)
    read: list[AnyPrinted] = []
    noted: list[str] = []
    for name, cell, note in zip(names, cells, notes, strict=bool(notes)):
        read += [name, cell, name if note.endswith(LEADS) else read[-1]]
        noted += ["", note, MORE]
    return tuple(read), (*noted[:-1], LAST) if noted else ()


def _compare(note: str, best: str) -> str:
    """Signs of a note, each with that of the best one and the order of both up to there."""
    compared, order = "", EQUAL
    for sign, of_best in zip(note, best, strict=True):
        if order == EQUAL and sign != of_best:
            order = LARGER if sign > of_best else SMALLER
        compared += sign + of_best + order
    return compared


def _order(values: Sequence[object]) -> list[int]:
    """Places of values from the least to the largest, equal ones in their order."""
    return sorted(range(len(values)), key=lambda place: values[place])  # type: ignore[arg-type, return-value]


def noted_digits(text: str, note: str) -> list[int]:
    """Return for each sign of a note which character of the printed text it repeats, -1 if none.

    Args:
        text: printed text of the run.
        note: its note; that of a counted run repeats nothing.
    """
    repeated = [-1] * len(note)
    if len(note) == COMPARED_SIGNS:
        printed = [place for place, character in enumerate(text) if character.isdecimal()][:DIGITS]
        repeated[3 : 3 * len(printed) + 1 : 3] = printed
    return repeated
