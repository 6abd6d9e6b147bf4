"""Compare two results question by question: difference of means with a paired bootstrap interval."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .results import Result

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_CHUNK = 500  # resamples drawn at a time, which bounds memory


@dataclass(frozen=True)
class Comparison:
    """Mean per-question scores of two results in percent, and their difference.

    Attributes:
        difference: second minus first.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: upper end of it.
        better: questions the second answers better.
        worse: questions the second answers worse.
        protocol_changes: fields in which the protocols differ, with both values.
    """

    benchmark: str
    questions: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    protocol_changes: dict[str, tuple[object, object]]

    @property
    def is_significant(self) -> bool:
        """Return whether the confidence interval excludes zero."""
        return self.low > 0 or self.high < 0


def _row_scores(result: Result) -> dict[tuple[str, ...], float]:
    if not result["scores"]:
        raise ValueError(f"the result of {result['benchmark']} has no scores: a server or a judge gives them")
    rows = result["rows"]
    if not rows or any(row["score"] is None for row in rows):
        raise ValueError(f"the result of {result['benchmark']} has {len(rows)} rows, not all of them with a score")
    scores: dict[tuple[str, ...], float] = {}
    occurrences: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        key = (str(row["question_id"]), str(row["image"]), row["prompt"])
        occurrences[key] += 1  # duplicate question in the data
        scores[*key, str(occurrences[key])] = row["score"]
    return scores


def compare_results(first: Result, second: Result, seed: int = 0) -> Comparison:
    """Compare two results of one task on the same questions.

    Args:
        first: result that the differences are relative to.
        second: result to compare with it.
        seed: bootstrap seed.

    Raises:
        ValueError: the results are of different tasks or questions.
    """
    if first["benchmark"] != second["benchmark"]:
        raise ValueError(f"cannot compare {first['benchmark']} with {second['benchmark']}")
    a, b = _row_scores(first), _row_scores(second)
    if a.keys() != b.keys():
        raise ValueError(
            f"the results answer different questions: {len(a.keys() - b.keys())} are only in the first, "
            f"{len(b.keys() - a.keys())} only in the second"
        )
    differences = 100 * np.array([b[key] - a[key] for key in a])
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            differences[generator.integers(0, len(differences), (_CHUNK, len(differences)))].mean(axis=1)
            for _ in range(_RESAMPLES // _CHUNK)
        ]
    )
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    old, new = first["protocol"], second["protocol"]
    return Comparison(
        benchmark=first["benchmark"],
        questions=len(a),
        first=100 * float(np.mean(list(a.values()))),
        second=100 * float(np.mean(list(b.values()))),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        protocol_changes={
            name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)
        },
    )
