"""MMBench: infer the option that a free text chooses, by the rules VLMEvalKit applies before it asks a judge.

The rules are those of VLMEvalKit since June 2026, tried in this order: a refusal, a lone option letter, a statement
like "the answer is B", the wording of one option. MMBench asks each question once per rotation of its options and
counts it only if all rotations are right.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILURE = "Failed to obtain answer via API"
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# A letter counts only among the last words of a text: earlier, an "A" is more likely an article.
_LAST_WORDS = 4
NO_ANSWER = "Z"
# "the correct answer is **B**": the first such statement counts. No word boundary follows the letter, as upstream.
_STATEMENT = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)


class MmbenchAnswer(NamedTuple):
    """One rotation of a question: its row's number, the model's text, options by letter, the right letter."""

    row: int
    text: str
    choices: Mapping[str, str]
    answer: str


def _infer_letter(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the only option letter that stands as a word of its own, else the one that the text states.

    NO_ANSWER for a refusal.
    """
    if _API_FAILURE in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_ANSWER
    words = text.translate(_SEPARATORS).split()
    letters = [letter for letter in choices if letter in words]
    if not letters and NO_ANSWER in words:
        return NO_ANSWER
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    statement = _STATEMENT.search(text)
    letter = statement[1].upper() if statement else None
    return letter if letter in choices else None


def _infer_content(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the only option whose wording occurs in a text of reasonable length."""
    if len(text.lower()) > 2 * sum(len(str(choice)) for choice in choices.values()):
        return None
    named = [letter for letter, choice in choices.items() if str(choice).lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def infer_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """Infer the option a text chooses: its letter, "Z" for a refusal to choose, None if the rules cannot tell.

    Args:
        text: answer of the model.
        choices: wording by letter, such as {"A": "red", "B": "green"}.
    """
    return _infer_letter(text, choices) or _infer_content(text, choices)


def mmbench_match(prediction: str, choices: Mapping[str, str], answer: str) -> float:
    """Score 1.0 if the text chooses the right option; what the rules cannot tell is wrong (no judge is asked)."""
    return float(infer_choice(prediction, choices) == answer)


def mmbench_circular(answers: Iterable[MmbenchAnswer], base: int = 1_000_000) -> float | None:
    """Percentage of questions right in all their rotations, whose row numbers differ by multiples of `base`."""
    right: dict[int, bool] = {}
    for rotation in answers:
        question = rotation.row % base
        is_right = mmbench_match(rotation.text, rotation.choices, rotation.answer) == 1.0
        right[question] = right.get(question, True) and is_right
    return 100 * sum(right.values()) / len(right) if right else None
