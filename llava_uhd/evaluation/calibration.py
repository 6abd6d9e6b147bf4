"""Calibrate the confidence in answers on finished runs, and measure how well it tells right from wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..confidence import Calibration, choose_guess_below, fit_calibration
from .predictions import PROBABILITIES
from .results import OFFICIAL, Result, load_result
from .storage import read_rows

_RIGHT = 0.5  # score from which an answer counts as right


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers of one run.

    Attributes:
        task: name of the task.
        probabilities: mean token probability of each answer.
        right: whether each answer scores at least 0.5.
        products: product of the tokens' probabilities of each answer; None for a run without them.
    """

    task: str
    probabilities: Sequence[float]
    right: Sequence[bool]
    products: Sequence[float] | None = None

    def of(self, measure: str) -> Sequence[float]:
        """Return the measure of a calibration of each answer.

        Raises:
            ValueError: the run has no products.
        """
        if measure == "mean":
            return self.probabilities
        if self.products is None:
            raise ValueError(f"the answers of {self.task} have no {PROBABILITIES[measure]}: run the task again")
        return self.products


@dataclass(frozen=True)
class Report:
    """Quality of the confidence on one run, in percent.

    Attributes:
        task: name of the task.
        answers: number of answers.
        accuracy: right answers.
        auroc: probability that a right answer has a higher confidence than a wrong one; None where all are alike.
        right_marked: right answers marked as guesses, of the right ones; None where there is none.
        wrong_unmarked: wrong answers not marked as guesses, of all answers.
        calibration_error: expected calibration error over ten equal bins of confidence.
    """

    task: str
    answers: int
    accuracy: float
    auroc: float | None
    right_marked: float | None
    wrong_unmarked: float
    calibration_error: float


def read_answers(run: Path) -> ScoredAnswers:
    """Read the answers of a finished run.

    Args:
        run: folder of one task, with result.json and predictions.jsonl.

    Raises:
        ValueError: a file is missing or damaged, or the run has no scores or no token probabilities.
    """
    result = load_result(run)
    file = run / "predictions.jsonl"
    rows, damaged = read_rows(file)
    if damaged or len(rows) != len(result["rows"]):
        raise ValueError(
            f"{file} has {len(rows)} whole predictions for {len(result['rows'])} questions: run the task again"
        )
    if OFFICIAL not in result["scores"]:
        raise ValueError(f"{run} has no scores: a server or a judge gives them")
    pairs: list[tuple[Any, bool]] = [
        (row.get("metadata") or {}, scored["score"] >= _RIGHT)
        for row, scored in zip(rows, result["rows"], strict=True)
        if "error" not in row and scored["score"] is not None
    ]
    means, products = ([metadata.get(field) for metadata, _ in pairs] for field in PROBABILITIES.values())
    if None in means or not pairs:
        raise ValueError(
            f"{means.count(None)} of {len(pairs)} answers in {run} have no token probability: "
            "run the task again with --beams 1"
        )
    # Predictions of earlier versions have no products.
    return ScoredAnswers(
        result["benchmark"], means, [right for _, right in pairs], None if None in products else products
    )


def describe_confidence(
    result: Result, probabilities: Sequence[float | None], calibration: Calibration
) -> dict[str, Any]:
    """Return the field `confidence` of a result, or nothing where an answer has no score or token probability.

    Args:
        result: scored result.
        probabilities: the calibration's `measure` of each row's answer.
        calibration: calibration of the model.
    """
    pairs = [
        (value, row["score"])
        for value, row in zip(probabilities, result["rows"], strict=True)
        if value is not None and row["score"] is not None
    ]
    if not pairs:
        return {}
    values, right = [value for value, _ in pairs], [score >= _RIGHT for _, score in pairs]
    report = asdict(_measure(result["benchmark"], values, right, calibration))
    del report["task"]
    return {"confidence": report}


def calibrate(runs: Sequence[ScoredAnswers], unmarked_right: float | None = None) -> Calibration:
    """Fit the calibration on the answers of all runs together, to the measure that ranks them better (AUROC).

    Args:
        runs: answers to fit to.
        unmarked_right: share of right ones among answers without the mark of a guess, to choose `guess_below` by;
            None leaves it at 0.5.

    Raises:
        ValueError: two runs are of one task, or see `fit_calibration` and `choose_guess_below`.
    """
    if twice := [task for task, count in Counter(run.task for run in runs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} names more than one run to fit to, whose answers would count twice")
    right = [value for run in runs for value in run.right]
    record = {run.task: {"answers": len(run.right), "right": sum(run.right)} for run in runs}
    measures = [measure for measure in PROBABILITIES if measure == "mean" or all(run.products for run in runs)]
    probabilities = {measure: [value for run in runs for value in run.of(measure)] for measure in measures}
    best = max(measures, key=lambda measure: auroc(probabilities[measure], right) or 0.0)
    calibration = fit_calibration(probabilities[best], right, record, best)
    if unmarked_right is None:
        return calibration
    answers = list(zip(probabilities[best], right, strict=True))
    return replace(calibration, guess_below=choose_guess_below(calibration, answers, unmarked_right))


def auroc(scores: Sequence[float], is_right: Sequence[bool]) -> float | None:
    """Return how often, in percent, a right answer has a higher score than a wrong one; None where all are alike.

    Ties count half.
    """
    import numpy as np

    values, right = np.array(scores), np.array(is_right)
    high, low = values[right], values[~right]
    if not len(high) or not len(low):
        return None
    difference = high[:, None] - low[None, :]
    return 100 * float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def measure(run: ScoredAnswers, calibration: Calibration) -> Report:
    """Measure a calibration on the answers of one run.

    Raises:
        ValueError: the run lacks what the calibration scales.
    """
    return _measure(run.task, run.of(calibration.measure), run.right, calibration)


def _measure(task: str, probabilities: Sequence[float], is_right: Sequence[bool], calibration: Calibration) -> Report:
    import numpy as np

    right = np.array(is_right)
    confidence = np.array([calibration.confidence(value) for value in probabilities])
    marked = confidence < calibration.guess_below
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return Report(
        task,
        len(right),
        100 * float(right.mean()),
        auroc(confidence.tolist(), is_right),
        100 * float(marked[right].mean()) if right.any() else None,
        100 * float((~right & ~marked).mean()),
        100 * float(sum(gaps)),
    )
