"""POPE: object hallucination, yes/no questions in three categories."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .compat import Compat, is_published


@dataclass(frozen=True)
class PopeScores:
    """Counts and rates over one category; "yes" is the positive class.

    Attributes:
        undefined: names of the rates whose denominator was 0; they are given as 0.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    undefined: tuple[str, ...]


def parse_pope(text: str) -> Literal["yes", "no"]:
    """Read a label from the first sentence: "no" if one of its words is No, no or not, otherwise "yes".

    Words are cut at single spaces after commas are dropped: "NO", "nope", "no!" and the empty text all read "yes".
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if not {"No", "no", "not"}.isdisjoint(words) else "yes"


def pope_scores(texts: Sequence[str], labels: Sequence[str], compat: Compat = None) -> PopeScores:
    """Aggregate one category's answers; a label other than "no" counts as "yes".

    Raises:
        ValueError: there is no answer; or there is not one label per answer (the reference script pairs what it
            can and takes the yes ratio over all answers).
    """
    if not texts:
        raise ValueError("POPE needs at least 1 answer, got 0")
    if not is_published(compat) and len(texts) != len(labels):
        raise ValueError(f"POPE needs one label per answer, got {len(labels)} labels and {len(texts)} answers")
    says_yes = [parse_pope(text) == "yes" for text in texts]
    pairs = [(said, label != "no") for said, label in zip(says_yes, labels, strict=False)]
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    tn, fn = pairs.count((False, False)), pairs.count((False, True))
    undefined = []

    def rate(name: str, part: float, whole: float) -> float:
        if whole == 0:
            undefined.append(name)
            return 0.0
        return part / whole

    precision, recall = rate("precision", tp, tp + fp), rate("recall", tp, tp + fn)
    return PopeScores(
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        accuracy=rate("accuracy", tp + tn, len(pairs)),
        precision=precision,
        recall=recall,
        f1=rate("f1", 2 * precision * recall, precision + recall),
        yes_ratio=sum(says_yes) / len(says_yes),
        undefined=tuple(undefined),
    )
