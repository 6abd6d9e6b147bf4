"""Measures of what a language model in training finds and copies.

The tokens of an answer, characters and places, are given up to the one that is asked. Pages are codes, or drawn where
the phase draws them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..tiny_v1.losses import answer_loss
from .locations import FOUND_ID, LOCATION_ID, is_quarter, row_and_column
from .losses import codes_of, pixels_of
from .network import Network, Outputs
from .samples import IGNORED, Sample, collate, make_sample
from .setting import Phase

LATER = 5
# Where a place that is named lies beside the right one, from the nearest: a quarter of a window away at most along
# either side, in its rows, in its columns, or neither; or a character is named instead.
NEARNESS = ("right", "beside", "same row", "same column", "elsewhere", "none")


@dataclass
class Page:
    """A page with its answers, and what the model says.

    Attributes:
        labels: (L,), tokens of the answers, `IGNORED` elsewhere.
        predicted: (L,), the likeliest token at each position, given those before.
        points: positions from which a token of an answer is looked for.
        attention: (heads, points), of the taught heads to what is looked for.
        right_answers, answers: answers that are right in every token, and all.
    """

    labels: list[int]
    predicted: list[int]
    points: list[int]
    attention: torch.Tensor
    right_answers: int
    answers: int


@torch.no_grad()
def read_alone(network: Network, sample: Sample) -> tuple[Outputs, torch.Tensor, torch.Tensor]:
    """Read one page with its answers: the network's output, labels and pointers, (1, L) each.

    Args:
        network: the network.
        sample: a page, drawn or as codes.
    """
    is_drawn = sample.patches is not None
    codes = network.image_tokens(*pixels_of([sample], "cpu")) if is_drawn else codes_of(network, [sample])
    input_ids, labels, pointers, positions = collate([sample])
    kept = codes if sample.kept is None else codes[sample.kept]
    return network.hidden_states(input_ids, kept, pointers, positions), labels, pointers


@torch.no_grad()
def predict_pages(network: Network, phase: Phase, pages: int, seed: int) -> Iterator[Page]:
    """Yield pages of a phase with what the model says.

    Args:
        network: the network.
        phase: phase whose pages are read.
        pages: number of pages.
        seed: seed of the pages.
    """
    exact = replace(phase, moved=0.0)
    for index in range(pages):
        sample = make_sample(network.setting, exact, seed, index)
        outputs, labels, pointers = read_alone(network, sample)
        _, right_answers, answers = answer_loss(outputs.hidden, labels, network.model.lm_head)
        predicted = network.model.lm_head(outputs.hidden[0, :-1]).argmax(dim=-1).tolist()
        # Letters of questions are looked for, too.
        in_answers = labels[0, 1:][pointers[0, :-1] >= 0] != IGNORED
        points = (pointers[0, :-1] >= 0).nonzero().flatten()[in_answers].tolist()
        # The token at a position is the one that the position before predicts.
        yield Page(
            labels[0].tolist(), [IGNORED, *predicted], points, outputs.found[:, in_answers], right_answers, answers
        )


def count_copied(page: Page) -> dict[int, list[list[float]]]:
    """List, for each place in an answer, whether the tokens are right and each head's attention to what they name."""
    rows = defaultdict(list)
    for point, looked in zip(page.points, page.attention.T.tolist(), strict=True):
        start = point
        while page.labels[start] != IGNORED:
            start -= 1
        right = float(page.predicted[point + 1] == page.labels[point + 1])
        rows[min(point - start + 1, LATER)].append([right, *looked])
    return rows


def count_places(page: Page, grid: int) -> dict[int, Counter[str]]:
    """Count how near the places are with which answers begin: the first, and later ones given those before."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for position, label in enumerate(page.labels):
        if not is_quarter(label, grid):
            continue
        start, number = position, 0
        while page.labels[start] >= LOCATION_ID:
            number += is_quarter(page.labels[start], grid)
            start -= 1
        if page.labels[start] == FOUND_ID:
            counts[min(number, 2)][_nearness(page.predicted[position], label, grid)] += 1
    return counts


def _nearness(predicted: int, label: int, grid: int) -> str:
    if not is_quarter(predicted, grid):
        return "none"
    rows, columns = (
        abs(found - true)
        for found, true in zip(row_and_column(predicted, grid), row_and_column(label, grid), strict=True)
    )
    if rows == columns == 0:
        return "right"
    return {(True, True): "beside", (True, False): "same row", (False, True): "same column"}.get(
        (rows <= 1, columns <= 1), "elsewhere"
    )
