"""Answers that a model would get wrong are taught to be declined.

The first token of an answer decides between giving it and "not in the document"; see `locations.FOUND_ID`. Where the
tokens of the answer, each after the right ones before it, are not all the likeliest ones, that decision is labeled as
a third one, that of doubt, while the other tokens of the answer are learned as before. The probability of `FOUND_ID`
becomes that of a right answer, and not only that of the page saying it, so that of all questions those are declined
that the model is least able to answer. How many are, is set by a constant afterwards; see `decision.py`.

Absent and doubtful are two decisions, of which the shares in a use are not those of the training: with one token for
both, fewer doubtful answers were declined only with fewer absent ones.
"""

import torch
from torch.nn import functional as F

from .locations import FOUND_ID, LOCATION_ID, SIDES, doubtful_id, first_slice_id
from .samples import IGNORED


def decline_doubtful(labels: torch.Tensor, predicted: torch.Tensor, grid: int, max_slices: int) -> torch.Tensor:
    """Return labels, (B, L), in which the first token of answers that would be wrong is that of doubt.

    Args:
        labels: (B, L), `IGNORED` outside of answers.
        predicted: (B, L), the likeliest token at the place of each label.
        grid: rows and columns of windows of a view.
        max_slices: most slices of an image.
    """
    asked = labels != IGNORED
    starts = asked & ~F.pad(asked, (1, 0))[:, :-1]
    decides = starts & (labels == FOUND_ID)
    wrong = asked & ~starts & (predicted != labels) & ~_is_beside(labels, predicted, grid)
    answer = (starts.flatten().cumsum(0) * asked.flatten()).view_as(labels)  # number of each token's answer, from 1
    return torch.where(decides & torch.isin(answer, answer[wrong]), doubtful_id(grid, max_slices), labels)


def _is_beside(labels: torch.Tensor, predicted: torch.Tensor, grid: int) -> torch.Tensor:
    """Mask of places that are predicted a quarter of a window off, which seldom changes what is read there."""
    first, end, side = LOCATION_ID, first_slice_id(grid), SIDES * grid
    are_places = (labels >= first) & (labels < end) & (predicted >= first) & (predicted < end)
    rows = (labels - first) // side - (predicted - first) // side
    columns = (labels - first) % side - (predicted - first) % side
    return are_places & (rows.abs() <= 1) & (columns.abs() <= 1)
