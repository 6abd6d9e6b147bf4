"""Bootstrap intervals over seeds and held-out pages.

Runs of one task are measured on the same pages, so rows are compared page by page. Both seeds and pages are drawn with
replacement, the same draw for both rows of a pair: an interval says what other seeds and other pages of this kind
would give, not what another tower or another size would.

Shapes: R seeds, P pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .training import Run

DRAWS = 4000
COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its bootstrap interval.

    Attributes:
        value: value on all seeds and pages.
        low: lower end.
        high: upper end.
        seeds: number of seeds that it rests on.
    """

    value: float
    low: float
    high: float
    seeds: int


def score_interval(runs: Sequence[Run]) -> Interval:
    """Return the score of a row: mean over seeds of the score over pages."""
    return _interval([_pages(runs)])


def difference_interval(runs: Sequence[Run], others: Sequence[Run]) -> Interval | None:
    """Return the difference of two rows, `runs` minus `others`, over the seeds that both have; None without one."""
    seeds = sorted({run.seed for run in runs} & {run.seed for run in others})
    if not seeds:
        return None
    first, second = ([run for seed in seeds for run in group if run.seed == seed] for group in (runs, others))
    return _interval([_pages(first), _pages(second)])


def _pages(runs: Sequence[Run]) -> np.ndarray:
    """Numerators and denominators of runs of one task: (R, P, 2)."""
    return np.array([run.pages for run in runs], dtype=np.float64)


def _interval(groups: Sequence[np.ndarray]) -> Interval:
    """Bootstrap the score of one group of runs, or the difference of two on the same seeds and pages."""
    seeds, pages, _ = groups[0].shape
    generator = np.random.default_rng(0)
    value = _statistic(groups, np.arange(seeds)[None], np.arange(pages)[None])[0]
    drawn_seeds = generator.integers(0, seeds, (DRAWS, seeds))
    drawn_pages = generator.integers(0, pages, (DRAWS, pages))
    values = _statistic(groups, drawn_seeds, drawn_pages)
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(value), float(low), float(high), seeds)


def _statistic(groups: Sequence[np.ndarray], seeds: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Score, or difference of scores, of every draw of seeds (D, R) and pages (D, P): (D,)."""
    counts = np.zeros((len(pages), groups[0].shape[1]))  # D, P: how often a page is drawn
    np.add.at(counts, (np.arange(len(pages))[:, None], pages), 1)
    scores = []
    for group in groups:
        sums = np.einsum("dp,rpk->drk", counts, group)  # D, R, 2
        of_seed = sums[..., 0] / sums[..., 1]  # D, R
        scores.append(np.take_along_axis(of_seed, seeds, axis=1).mean(axis=1))
    return scores[0] if len(scores) == 1 else scores[0] - scores[1]
