"""GQA: exact match on short answers, over all questions and over its binary and open kinds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

# Structural types whose answer is one of two; "query" questions are open.
_OPEN = "query"


class GqaAnswer(NamedTuple):
    """One answered question: the model's text, the reference, and the question's structural type."""

    text: str
    answer: str
    structural: str


@dataclass(frozen=True)
class GqaScores:
    """Percentages; None for a kind without questions."""

    accuracy: float | None
    binary: float | None
    open: float | None


def gqa_normalize(text: str) -> str:
    """Drop trailing periods and lower the case, and nothing else: "dog. " keeps its period and space."""
    return text.rstrip(".").lower()


def gqa_match(prediction: str, answer: str) -> float:
    """Score 1.0 if the normalized prediction equals the unchanged answer (GQA's eval.py)."""
    return float(gqa_normalize(prediction) == answer)


def gqa_scores(answers: Iterable[GqaAnswer]) -> GqaScores:
    """Aggregate answered balanced questions."""
    scored = [(gqa_match(row.text, row.answer), row.structural == _OPEN) for row in answers]

    def percent(scores: list[float]) -> float | None:
        return 100 * sum(scores) / len(scores) if scores else None

    return GqaScores(
        accuracy=percent([score for score, _ in scored]),
        binary=percent([score for score, is_open in scored if not is_open]),
        open=percent([score for score, is_open in scored if is_open]),
    )
