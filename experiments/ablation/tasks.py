"""The two tasks: targets of a view's windows, the loss, and a score that is a ratio of sums over pages.

Shapes: N views, T = 16 windows of a view, S places of a window, K = 16 sub-cells of a window.
"""

from abc import ABC, abstractmethod

import torch
from torch.nn import functional as F

from experiments.tiny_v1.setting import PATCH_SIZE
from experiments.tiny_v1.symbols import EMPTY, NUM_SYMBOLS, PLACES
from llava_uhd.model.vision_tower import patches_to_pixels

from .pages import CELLS, Pages, Views
from .rows import QUERY_GRID

# Sub-cells along a side of a window of 2 x 2 patches: half a patch each.
SUB_CELLS = 4
NORMALIZING_PAGES = 64


class Task(ABC):
    """A readout's targets and score.

    Attributes:
        outputs: width of the linear readout.
    """

    outputs: int

    @abstractmethod
    def targets(self, views: Views, pages: torch.Tensor) -> torch.Tensor:
        """Return the targets of the views of some pages, (N, T, ...)."""

    @abstractmethod
    def loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of predictions (N, T, outputs)."""

    @abstractmethod
    def score(self, predicted: torch.Tensor, targets: torch.Tensor, characters: int) -> tuple[float, float]:
        """Return numerator and denominator of a page's score; the score of pages is the ratio of the sums.

        Args:
            predicted: predictions of the page's views, (N, T, outputs).
            targets: their targets.
            characters: number of characters of the page.
        """


class Characters(Task):
    """Share of a page's characters that are read right at their place; cross entropy of every place."""

    outputs = CELLS**2 * PLACES * NUM_SYMBOLS

    def targets(self, views: Views, pages: torch.Tensor) -> torch.Tensor:
        return views.symbols[pages].flatten(0, 1).long()  # N, T, S

    def loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(predicted.unflatten(-1, (-1, NUM_SYMBOLS)).flatten(0, 2), targets.flatten())

    def score(self, predicted: torch.Tensor, targets: torch.Tensor, characters: int) -> tuple[float, float]:
        symbols = predicted.unflatten(-1, (-1, NUM_SYMBOLS)).argmax(dim=-1)  # N, T, S
        return float(((symbols == targets) & (targets != EMPTY)).sum()), float(characters)


class SubCells(Task):
    """R2 of the darkness of 4 x 4 sub-cells of a window, half a patch each; mean squared error.

    Args:
        pages: pages of which the first normalize the targets, by their mean and standard deviation.
    """

    outputs = SUB_CELLS**2

    def __init__(self, pages: Pages):
        darkness = self._darkness(pages.slices, torch.arange(len(pages.slices.symbols))[:NORMALIZING_PAGES])
        self.mean, self.std = float(darkness.mean()), float(darkness.std())

    def _darkness(self, views: Views, pages: torch.Tensor) -> torch.Tensor:
        patches = views.patches[pages].flatten(0, 1).float()
        gray = patches_to_pixels(patches, views.shape, PATCH_SIZE).mean(dim=1, keepdim=True)  # N, 1, rows, columns
        cells = F.adaptive_avg_pool2d(gray, QUERY_GRID * SUB_CELLS)[:, 0]  # N, G·s, G·s
        windows = cells.unflatten(2, (QUERY_GRID, SUB_CELLS)).unflatten(1, (QUERY_GRID, SUB_CELLS))  # N, G, s, G, s
        return windows.transpose(2, 3).flatten(3).flatten(1, 2)  # N, T, K

    def targets(self, views: Views, pages: torch.Tensor) -> torch.Tensor:
        return (self._darkness(views, pages) - self.mean) / self.std

    def loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(predicted, targets)

    def score(self, predicted: torch.Tensor, targets: torch.Tensor, characters: int) -> tuple[float, float]:
        # Targets have zero mean over the training pages, so their sum of squares is what the constant leaves.
        total = float(targets.square().sum())
        return total - float((predicted - targets).square().sum()), total


def build_task(name: str, train: Pages) -> Task:
    """Return a task by its name in `rows.TASKS`."""
    return SubCells(train) if name == "sub-cells" else Characters()
