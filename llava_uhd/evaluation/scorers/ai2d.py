"""AI2D: the letter of one of four options."""

import re

from .compat import Compat, as_list, is_published

_LEADING_LETTER = re.compile(r"\s*([A-Za-z])\.")


def ai2d_match(prediction: str, answers: str | list[str], compat: Compat = None) -> float:
    """Score 1.0 if the stripped text, in any case, equals a reference.

    The official reading takes "D." and "D. carbon" for the letter D; the reference script does not.
    """
    text = prediction
    letter = _LEADING_LETTER.match(prediction)
    if letter and not is_published(compat):
        text = letter.group(1)
    return float(text.strip().lower() in {answer.strip().lower() for answer in as_list(answers)})
