"""MME: yes/no answers, two questions to an image, fourteen categories in two groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .compat import Compat, is_published

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PREFIX = 4


class MmeAnswer(NamedTuple):
    """One answered question: category, image, the label "yes" or "no" (any case), the model's text."""

    category: str
    image: str
    label: str
    text: str


@dataclass(frozen=True)
class MmeCategory:
    """Percentages of right questions and of images with both questions right; their sum is the category's score."""

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        """Return a score between 0 and 200."""
        return self.accuracy + self.accuracy_plus


@dataclass(frozen=True)
class MmeScores:
    """MME's aggregate; the "MME" of papers of the LLaVA family is `perception` alone (at most 2000)."""

    categories: Mapping[str, MmeCategory]

    @property
    def perception(self) -> float:
        return sum(self.categories[name].score for name in PERCEPTION if name in self.categories)

    @property
    def cognition(self) -> float:
        return sum(self.categories[name].score for name in COGNITION if name in self.categories)

    @property
    def missing(self) -> tuple[str, ...]:
        """Categories without an answer, which lower their group's sum."""
        return tuple(name for name in PERCEPTION + COGNITION if name not in self.categories)


def parse_mme(text: str) -> Literal["yes", "no", "other"]:
    """Read a label from an answer's first four characters, as MME's calculation.py does.

    "yes" wins over "no", and a substring will do: "eyes" is yes, "know" is no, "the answer is yes" is other.
    """
    prefix = text.lower()[:_PREFIX]
    if "yes" in prefix:
        return "yes"
    return "no" if "no" in prefix else "other"


def _pairs(answers: Sequence[MmeAnswer], published: bool) -> Iterable[Sequence[MmeAnswer]]:
    """Group the questions of an image: by its name, or (calculation.py) by taking every two lines in their order."""
    if published:
        return [answers[start : start + 2] for start in range(0, len(answers), 2)]
    by_image: dict[str, list[MmeAnswer]] = {}
    for answer in answers:
        by_image.setdefault(answer.image, []).append(answer)
    return by_image.values()


def mme_scores(answers: Iterable[MmeAnswer], compat: Compat = None) -> MmeScores:
    """Aggregate answered questions into accuracy, accuracy+ and their sums.

    Raises:
        ValueError: a category is none of the fourteen.
    """
    published = is_published(compat)
    by_category: dict[str, list[MmeAnswer]] = {}
    for answer in answers:
        if answer.category not in PERCEPTION + COGNITION:
            raise ValueError(f"{answer.category!r} is none of MME's {len(PERCEPTION + COGNITION)} categories")
        by_category.setdefault(answer.category, []).append(answer)
    categories = {}
    for name, rows in by_category.items():
        images = [[parse_mme(row.text) == row.label.lower() for row in pair] for pair in _pairs(rows, published)]
        categories[name] = MmeCategory(
            accuracy=100 * sum(map(sum, images)) / len(rows),
            accuracy_plus=100 * sum(map(all, images)) / len(images),
        )
    return MmeScores(categories)
