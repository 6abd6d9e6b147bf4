"""SEED-Bench: the letter of one of four options, by question type and by image or video."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class SeedAnswer(NamedTuple):
    """One question: the model's text (None if missing), the right letter, its type's name, "image" or "video"."""

    text: str | None
    answer: str
    question_type: str
    data_type: str


@dataclass(frozen=True)
class SeedScores:
    """Percentages in all, by question type and by kind of data; a type without a right answer has 0."""

    total: float | None
    by_type: dict[str, float]
    by_data: dict[str, float]


def seed_match(prediction: str | None, answer: str) -> float:
    """Score 1.0 if the text is the letter and nothing else: "C." is wrong for C."""
    return float(prediction == answer)


def seed_scores(answers: Iterable[SeedAnswer]) -> SeedScores:
    """Aggregate all questions; one without a prediction is wrong."""
    rows = [(seed_match(row.text, row.answer), row.question_type, row.data_type) for row in answers]

    def percent_by(column: int) -> dict[str, float]:
        groups: dict[str, list[float]] = {}
        for row in rows:
            groups.setdefault(str(row[column]), []).append(row[0])
        return {name: 100 * sum(scores) / len(scores) for name, scores in groups.items()}

    total = 100 * sum(row[0] for row in rows) / len(rows) if rows else None
    return SeedScores(total=total, by_type=percent_by(1), by_data=percent_by(2))
