"""OCRBench: an answer counts if it occurs anywhere in the prediction. 1,000 questions, so the sum is per mille."""

from collections.abc import Iterable
from typing import NamedTuple

_EXPRESSIONS = "Handwritten Mathematical Expression Recognition"
_TEXT_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
_OTHERS = ("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction", _EXPRESSIONS)


class OcrbenchAnswer(NamedTuple):
    """One answered question: the model's text, the references, the category."""

    text: str
    answers: list[str]
    category: str


def ocrbench_match(prediction: str, answers: list[str], category: str) -> float:
    """Score 1.0 if any reference occurs in the prediction.

    Case and newlines do not matter; in handwritten expressions case matters and spaces do not.
    """

    def normalize(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if category == _EXPRESSIONS else text.lower()

    text = normalize(prediction)
    return float(any(normalize(answer) in text for answer in answers))


def ocrbench_scores(answers: Iterable[OcrbenchAnswer]) -> dict[str, float]:
    """Count right answers by group; "Final Score" is their sum and "Final Score Norm" a tenth of it.

    Raises:
        ValueError: a category is none of OCRBench's ten.
    """
    counts = dict.fromkeys(_TEXT_RECOGNITION + _OTHERS, 0.0)
    for row in answers:
        if row.category not in counts:
            raise ValueError(f"{row.category!r} is none of OCRBench's {len(counts)} categories")
        counts[row.category] += ocrbench_match(row.text, row.answers, row.category)
    groups = {"Text Recognition": sum(counts[name] for name in _TEXT_RECOGNITION)}
    groups |= {name: counts[name] for name in _OTHERS}
    total = sum(groups.values())
    return groups | {"Final Score": total, "Final Score Norm": total / 10}
