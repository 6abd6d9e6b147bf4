"""Calibrate the confidence in answers on finished runs, and measure how well it tells right from wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..confidence import Calibration, choose_guess_below, fit_calibration
from .predictions import TOKEN_PROBABILITY
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
    """

    task: str
    probabilities: Sequence[float]
    right: Sequence[bool]


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
        ((row.get("metadata") or {}).get(TOKEN_PROBABILITY), scored["score"] >= _RIGHT)
        for row, scored in zip(rows, result["rows"], strict=True)
        if "error" not in row and scored["score"] is not None
    ]
    lacking = sum(probability is None for probability, _ in pairs)
    if lacking or not pairs:
        raise ValueError(
            f"{lacking} of {len(pairs)} answers in {run} have no token probability: run the task again with --beams 1"
        )
    return ScoredAnswers(result["benchmark"], [p for p, _ in pairs], [right for _, right in pairs])


def describe_confidence(
    result: Result, probabilities: Sequence[float | None], calibration: Calibration
) -> dict[str, Any]:
    """Return the field `confidence` of a result, or nothing where an answer has no score or token probability.

    Args:
        result: scored result.
        probabilities: mean token probability of each row's answer.
        calibration: calibration of the model.
    """
    pairs = [
        (value, row["score"])
        for value, row in zip(probabilities, result["rows"], strict=True)
        if value is not None and row["score"] is not None
    ]
    if not pairs:
        return {}
    answers = ScoredAnswers(result["benchmark"], [value for value, _ in pairs], [s >= _RIGHT for _, s in pairs])
    report = asdict(measure(answers, calibration))
    del report["task"]
    return {"confidence": report}


def calibrate(runs: Sequence[ScoredAnswers], unmarked_right: float | None = None) -> Calibration:
    """Fit the calibration on the answers of all runs together.

    Args:
        runs: answers to fit to.
        unmarked_right: share of right ones among answers without the mark of a guess, to choose `guess_below` by;
            None leaves it at 0.5.

    Raises:
        ValueError: two runs are of one task, or see `fit_calibration` and `choose_guess_below`.
    """
    if twice := [task for task, count in Counter(run.task for run in runs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} names more than one run to fit to, whose answers would count twice")
    probabilities = [value for run in runs for value in run.probabilities]
    right = [value for run in runs for value in run.right]
    record = {run.task: {"answers": len(run.right), "right": sum(run.right)} for run in runs}
    calibration = fit_calibration(probabilities, right, record)
    if unmarked_right is None:
        return calibration
    answers = list(zip(probabilities, right, strict=True))
    return replace(calibration, guess_below=choose_guess_below(calibration, answers, unmarked_right))


def measure(run: ScoredAnswers, calibration: Calibration) -> Report:
    """Measure a calibration on the answers of one run."""
    import numpy as np

    right = np.array(run.right)
    confidence = np.array([calibration.confidence(value) for value in run.probabilities])
    marked = confidence < calibration.guess_below
    high, low = confidence[right], confidence[~right]
    auroc = None
    if len(high) and len(low):
        difference = high[:, None] - low[None, :]
        auroc = 100 * float((difference > 0).mean() + 0.5 * (difference == 0).mean())
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return Report(
        run.task,
        len(right),
        100 * float(right.mean()),
        auroc,
        100 * float(marked[right].mean()) if right.any() else None,
        100 * float((~right & ~marked).mean()),
        100 * float(sum(gaps)),
    )
