"""ScienceQA: a letter among up to five choices; the paper's number is over the questions with an image."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .compat import Compat, is_published

_LETTERS = "ABCDE"
FAILED = "FAILED"
# The period is unescaped in the reference script: any character but a newline will do, but one there must be.
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


class ScienceQaAnswer(NamedTuple):
    """Answer to one problem.

    Fields are the model's text (None if missing), the number of choices, the correct index, and True for a problem
    with an image.
    """

    text: str | None
    num_choices: int
    answer_index: int
    has_image: bool


@dataclass(frozen=True)
class ScienceQaScores:
    """Percentages over all problems and over those with an image (None without any), and the latter's number."""

    accuracy: float | None
    image_accuracy: float | None
    num_images: int


def parse_scienceqa(text: str) -> str:
    """Read the letter of an answer, or FAILED.

    A text that is one letter of A to E; or starts with such a letter, a period and a space; or holds "The answer is
    X." exactly once. "A.", "(A)" and "a" fail.
    """
    if len(text) == 1 and text in _LETTERS:
        return text
    if len(text) >= 3 and text[0] in _LETTERS and text[1:3] == ". ":
        return text[0]
    found = _ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def scienceqa_index(letter: str, num_choices: int) -> int:
    """Turn a parsed letter into the index of a choice; -1 if it names none."""
    return _LETTERS.index(letter) if letter in list(_LETTERS[:num_choices]) else -1


def scienceqa_match(prediction: str | None, num_choices: int, answer_index: int) -> float:
    """Score 1.0 if the parsed letter names the right choice; a missing prediction scores 0."""
    return float(prediction is not None and scienceqa_index(parse_scienceqa(prediction), num_choices) == answer_index)


def scienceqa_scores(answers: Iterable[ScienceQaAnswer], compat: Compat = None) -> ScienceQaScores:
    """Aggregate all problems of a split.

    The reference script learns from the recorded prompt whether there was an image, so a missing prediction leaves
    its image accuracy altogether; officially all problems with an image count.
    """
    rows = list(answers)
    scores = [scienceqa_match(row.text, row.num_choices, row.answer_index) for row in rows]
    published = is_published(compat)
    with_image = [
        score
        for row, score in zip(rows, scores, strict=True)
        if row.has_image and not (published and row.text is None)
    ]
    return ScienceQaScores(
        accuracy=100 * sum(scores) / len(scores) if scores else None,
        image_accuracy=100 * sum(with_image) / len(with_image) if with_image else None,
        num_images=len(with_image),
    )
