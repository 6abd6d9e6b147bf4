"""Document questions that a model may decline: correct, declined, or wrong without declining."""

import re
from collections.abc import Sequence
from typing import Literal

Outcome = Literal["right", "declined", "wrong"]
# Substrings of declining answers.
DECLINING = ("not in the document", "not a document", "not in the image", "cannot read", "can't read", "cannot tell",
             "not mentioned", "not given", "no such", "unanswerable")  # fmt: skip


def normalize_answer(text: str) -> str:
    """Normalize an answer: lower case, single spaces, no enclosing quotes, no final punctuation."""
    text = re.sub(r"\s+", " ", text.lower()).strip(" \"'")
    return text.rstrip(".!? ")


def is_declined(text: str) -> bool:
    """Return whether an answer declines: the document does not contain the answer, or is not a document."""
    plain = normalize_answer(text)
    return any(words in plain for words in DECLINING)


def judge_answer(text: str, answers: Sequence[str], declinable: bool) -> Outcome:
    """Outcome of one answer.

    Args:
        text: the model's answer.
        answers: every right answer.
        declinable: the question has no answer in the document, so that declining is right.
    """
    if is_declined(text):
        return "right" if declinable else "declined"
    return "right" if normalize_answer(text) in map(normalize_answer, answers) else "wrong"
