"""Notes before an answer: the numbers that are compared, and how many names were counted.

Two numbers that are only pointed at cannot be compared digit by digit. The note of a number has the count of its
digits before the decimal point and its first three digits, so that the larger of two numbers has the later note in
alphabetical order; behind them stands whether the number leads all before it.
"""

import re
from collections.abc import Callable, Sequence

LEADS, TRAILS = "+", "-"
NOTED = f"0123456789{LEADS}{TRAILS}"
DIGITS = 3
# Digits in groups of three, or without groups, then one or two behind a decimal sign.
_NUMBER = re.compile(r"(\d{1,3}(?:[.,' \u00a0\u202f]\d{3})+|\d+)(?:[.,](\d{1,2}))?(?!\d)")


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

    Args:
        texts: the printed numbers.
        numbers: their values.
        best: `max` or `min`.
    """
    notes = [note_number(text) for text in texts]
    if None in notes or _order(notes) != _order(numbers):
        return ()
    leads = [number == best(numbers[: place + 1]) for place, number in enumerate(numbers)]
    return tuple(f"{note}{LEADS if is_best else TRAILS}" for note, is_best in zip(notes, leads, strict=True))


def _order(values: Sequence[object]) -> list[int]:
    """Places of values from the least to the largest, equal ones in their order."""
    return sorted(range(len(values)), key=lambda place: values[place])  # type: ignore[arg-type, return-value]


def noted_digits(text: str, note: str) -> list[int]:
    """Return for each sign of a note which character of the printed text it repeats, -1 if none.

    Args:
        text: printed text of the run.
        note: its note; that of a counted run repeats nothing.
    """
    if len(note) <= DIGITS:
        return [-1] * len(note)
    printed = [place for place, character in enumerate(text) if character.isdecimal()][:DIGITS]
    return [-1, *printed, *[-1] * (len(note) - 1 - len(printed))]
