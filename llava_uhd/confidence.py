"""Confidence in an answer: what its tokens' probabilities say of it, calibrated on answers whose score is known.

The mean probability of the generated tokens, and their product, which is the probability of the whole answer, rank
right answers above wrong ones; which of them does so better depends on the model and on the length of its answers.
Neither is the probability of being right. Platt scaling (Platt, 1999) fits that: a logistic regression on the log
odds, with right and wrong answers weighted equally, so that 0.5 is the point between them. A model folder keeps the
fit in `confidence.json`; `llava-uhd eval calibrate` writes it.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .files import seal_file, write_text

CONFIDENCE_FILE = "confidence.json"
CHECKSUMS = "checksums.json"  # sizes and checksums of a model folder's files
GUESS_BELOW = 0.5
CHECKSUM = "checksum"  # CRC-32 of the other values
# Probabilities this near to 0 or 1 are not told apart. Products are small, and those of long answers very small.
_MARGIN = 1e-4
_LEAST = {"mean": _MARGIN, "product": 1e-12}
# Strength of the L2 penalty per answer, which keeps the slope finite where the classes do not overlap.
_PENALTY = 1e-3


class AnswerProbability(NamedTuple):
    """Probability of an answer, from those of its tokens, the end token included.

    Attributes:
        mean: mean of the tokens' probabilities.
        product: their product, the probability of the whole answer.
    """

    mean: float
    product: float

    @classmethod
    def of(cls, probabilities: Sequence[float]) -> "AnswerProbability":
        """Summarize the probabilities of an answer's tokens, (T,)."""
        return cls(sum(probabilities) / len(probabilities), math.prod(probabilities))


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of the probability of one model's answers.

    Attributes:
        slope: factor of the log odds.
        intercept: summand.
        guess_below: confidence below which an answer is marked as a guess.
        fitted_on: record of the data: number of answers and right ones per task.
        measure: field of `AnswerProbability` that is scaled.
    """

    slope: float
    intercept: float
    guess_below: float = GUESS_BELOW
    fitted_on: Mapping[str, Any] | None = None
    measure: str = "mean"

    def __post_init__(self) -> None:
        if self.measure not in _LEAST:
            raise ValueError(f"measure must be one of {', '.join(_LEAST)}, got {self.measure!r}")
        for name in ("slope", "intercept", "guess_below"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if self.slope <= 0:
            raise ValueError(f"slope must be above 0, got {self.slope}: confidence rises with the token probability")
        if not 0 <= self.guess_below <= 1:
            raise ValueError(f"guess_below must be from 0 to 1, got {self.guess_below}")

    def confidence(self, probability: float) -> float:
        """Return the calibrated probability that an answer is right.

        Args:
            probability: the answer's `measure`, from 0 to 1.
        """
        odds = self.slope * log_odds(probability, _LEAST[self.measure]) + self.intercept
        return 0.5 * (1 + math.tanh(odds / 2))  # the logistic function, without overflow

    def is_guess(self, probability: float) -> bool:
        """Return whether an answer of this `measure` is to be marked as a guess."""
        return self.confidence(probability) < self.guess_below


def log_odds(probability: float, least: float = _MARGIN) -> float:
    """Return log(p / (1 - p)) of a probability clipped to [least, 1 - 1e-4]."""
    clipped = min(max(probability, least), 1 - _MARGIN)
    return math.log(clipped / (1 - clipped))


def fit_calibration(
    probabilities: Sequence[float],
    right: Sequence[bool],
    fitted_on: Mapping[str, Any] | None = None,
    measure: str = "mean",
) -> Calibration:
    """Fit the Platt scaling of a model's answers.

    Args:
        probabilities: the `measure` of each answer.
        right: whether each answer is right.
        fitted_on: record of the data, kept in the file.
        measure: field of `AnswerProbability` that the probabilities are.

    Raises:
        ValueError: all answers are right or all are wrong, or right answers have no higher probability.
    """
    import numpy as np

    count, num_right = len(right), sum(right)
    if num_right in (0, count):
        raise ValueError(f"calibration needs right and wrong answers, got {num_right} right ones of {count}")
    x = np.array([[log_odds(p, _LEAST[measure]), 1.0] for p in probabilities])
    y = np.array(right, dtype=float)
    weight = np.where(y == 1, 0.5 / num_right, 0.5 / (count - num_right))
    beta = np.zeros(2)
    for _ in range(100):  # Newton's method; the loss is strictly convex
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (weight * (p - y)) + _PENALTY * beta
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + _PENALTY * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta -= step
        if np.abs(step).max() < 1e-10:
            break
    if beta[0] <= 0:
        raise ValueError(
            f"the right ones of {count} answers have no higher token probability ({measure}) than the wrong ones: "
            "it says nothing about this model's answers"
        )
    return Calibration(float(beta[0]), float(beta[1]), fitted_on=fitted_on, measure=measure)


def choose_guess_below(
    calibration: Calibration, answers: Sequence[tuple[float, bool]], unmarked_right: float
) -> float:
    """Return the lowest confidence from which on at least this share of answers is right.

    Args:
        calibration: calibration of the model.
        answers: the calibration's `measure` of each answer, and whether it is right.
        unmarked_right: share of right ones among answers without the mark of a guess, above 0 and at most 1.

    Raises:
        ValueError: the share is out of range, or reached nowhere.
    """
    if not 0 < unmarked_right <= 1:
        raise ValueError(f"the share of right answers must be above 0 and at most 1, got {unmarked_right}")
    highest, lowest, right, count = 0.0, None, 0, 0
    ranked = sorted(((calibration.confidence(value), is_right) for value, is_right in answers), reverse=True)
    for place, (confidence, is_right) in enumerate(ranked):
        right, count = right + is_right, count + 1
        if place + 1 < len(ranked) and ranked[place + 1][0] == confidence:
            continue  # answers of one confidence are marked together
        highest = max(highest, right / count)
        if right / count >= unmarked_right:
            lowest = confidence
    if lowest is None:
        raise ValueError(
            f"of {count} answers at most {highest:.1%} are right from any confidence on, not {unmarked_right:.1%}"
        )
    return lowest


def read_calibration(folder: Path) -> Calibration | None:
    """Return the calibration of a model folder, or None if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / CONFIDENCE_FILE
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}, no JSON object")
        expected = values.pop(CHECKSUM, None)  # none in files of earlier versions
        if expected is not None and expected != _checksum(values):
            raise ValueError(f"its {CHECKSUM} is {expected}, that of its values {_checksum(values)}")
        return Calibration(**values)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({error}): calibrate the model again, or remove the file") from error


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write the calibration into a model folder.

    Raises:
        ValueError: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it holds no config.json")
    values = asdict(calibration)
    write_text(folder / CONFIDENCE_FILE, json.dumps({**values, CHECKSUM: _checksum(values)}, indent=2) + "\n")
    if (folder / CHECKSUMS).is_file():
        seal_file(folder, CHECKSUMS, CONFIDENCE_FILE)


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


@dataclass(frozen=True)
class Confidence:
    """Confidence in one answer.

    Attributes:
        token_probability: mean probability of the answer's tokens, the end token included.
        confidence: calibrated probability that the answer is right; None for a model without calibration.
        is_guess: whether it is too low to rely on; None for a model without calibration.
    """

    token_probability: float
    confidence: float | None
    is_guess: bool | None

    @classmethod
    def of(cls, probabilities: Sequence[float], calibration: Calibration | None) -> "Confidence":
        """Return the confidence of an answer with these token probabilities, (T,)."""
        of_answer = AnswerProbability.of(probabilities)
        if calibration is None:
            return cls(of_answer.mean, None, None)
        measure = getattr(of_answer, calibration.measure)
        return cls(of_answer.mean, calibration.confidence(measure), calibration.is_guess(measure))

    @property
    def note(self) -> str | None:
        """Sentence that marks the answer as a guess, or None."""
        if not self.is_guess:
            return None
        return f"a guess: the model's confidence in this answer is {100 * (self.confidence or 0):.0f} %"

    def as_json(self) -> dict[str, float | bool | None]:
        """Return the fields for JSON, rounded to four digits."""
        rounded = None if self.confidence is None else round(self.confidence, 4)
        return {
            "token_probability": round(self.token_probability, 4),
            "confidence": rounded,
            "is_guess": self.is_guess,
        }
