"""One run: a projector and a linear readout learn a task, and are measured on held-out pages."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from experiments.tiny_v1.optimization import build_optimizers, optimize, set_rate
from experiments.tiny_v1.setting import PATCH_SIZE, WIDTH
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.model.vision_tower import patches_to_pixels
from llava_uhd.training.assembly import load_upsampler
from llava_uhd.training.parts import parts_of, train_only

from .pages import Pages, Views
from .rows import ProjectorRow
from .tasks import Task

LEARNING_RATE = 2e-3
WARMUP = 30
# Held-out pages and points of a training curve.
CURVE_PAGES, CURVE_POINTS = 16, 6


@dataclass(frozen=True)
class Run:
    """Result of a run.

    Attributes:
        row: name of the row.
        task: name of the task.
        seed: seed of weights and order of pages.
        budget: `steps`, or a number of core seconds, such as `30 s`, from which the number of steps follows.
        steps: training steps.
        tokens: image tokens of a page.
        parameters: trained parameters, readout apart.
        core_seconds: process time of the training, measuring apart.
        pages: numerator and denominator of the score of each held-out page.
        curve: (step, core seconds, score) during training, on the first held-out pages.
    """

    row: str
    task: str
    seed: int
    budget: str
    steps: int
    tokens: int
    parameters: int
    core_seconds: float
    pages: list[list[float]]
    curve: list[list[float]]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Identity of a run within a folder."""
        return self.row, self.task, self.seed, self.budget

    @property
    def score(self) -> float:
        """Score over all held-out pages."""
        return ratio(self.pages)


def ratio(pages: list[list[float]]) -> float:
    """Return the score of pages: sum of numerators by sum of denominators."""
    return sum(numerator for numerator, _ in pages) / sum(denominator for _, denominator in pages)


class Reader(nn.Module):
    """A row's projector and its readout: predictions (N, T, outputs) for each window.

    Args:
        row: the projector and what of it learns.
        outputs: width of the readout.
        upsampler: folder of stage 0, for a row that begins with one.
    """

    def __init__(self, row: ProjectorRow, outputs: int, upsampler: str | None):
        super().__init__()
        config = row.build_config()
        model = LlavaUhdForConditionalGeneration(config)
        if upsampler is not None:
            load_upsampler(model, upsampler)
        train_only(model, config, [part for part in row.trained if part in parts_of(model, config)])
        # In evaluation mode: dropout is meant for stage 0.
        self.projector = model.model.multi_modal_projector.eval()
        self.readout = nn.Linear(WIDTH, outputs)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Predict from features (N, C, H, W) and pixels (N, 3, ., .)."""
        return self.readout(self.projector(features, pixels))


def take(views: Views, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, C, H, W) and pixels (N, 3, ., .) of the views of some pages."""
    patches = views.patches[pages].flatten(0, 1).float()
    return views.features[pages].flatten(0, 1).float(), patches_to_pixels(patches, views.shape, PATCH_SIZE)


def draw_pages(count: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches of pages without end, every page once before any comes again."""
    rng = random.Random(f"ablation:{seed}")
    while True:
        order = rng.sample(range(count), count)
        for start in range(0, count - batch + 1, batch):
            yield torch.tensor(order[start : start + batch])


def views_of(pages: Pages, row: ProjectorRow) -> Views:
    """Return the views that a row is given."""
    return pages.overviews if row.overview_only else pages.slices


def run_row(
    name: str,
    row: ProjectorRow,
    task_name: str,
    task: Task,
    seed: int,
    budget: str,
    steps: int,
    batch: int,
    train: Pages,
    held_out: Pages,
    upsampler: str | None,
) -> Run:
    """Train and measure a row.

    Args:
        name: name of the row.
        row: the row.
        task_name: name of the task.
        task: the task.
        seed: seed of weights and order of pages.
        budget: see `Run`.
        steps: training steps.
        batch: pages of a step.
        train: pages to train on.
        held_out: pages to measure on.
        upsampler: folder of stage 0, for a row that begins with one.
    """
    torch.manual_seed(seed)
    reader = Reader(row, task.outputs, upsampler)
    views = views_of(train, row)
    optimizers = build_optimizers([reader], LEARNING_RATE, LEARNING_RATE, head=reader.readout)
    parameters = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    stream = draw_pages(len(views.symbols), batch, seed)
    curve: list[list[float]] = []
    points = {round(steps * point / CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)}
    seconds = 0.0
    for step in range(1, steps + 1):
        start = time.process_time()
        pages = next(stream)
        set_rate(optimizers, step / steps, step / min(WARMUP, steps))
        loss = task.loss(reader(*take(views, pages)), task.targets(views, pages))
        optimize(loss, optimizers, parameters)
        seconds += time.process_time() - start
        if step in points:
            first = measure(reader, row, task, held_out, CURVE_PAGES)
            curve.append([step, round(seconds, 2), round(ratio(first), 5)])
    scores = measure(reader, row, task, held_out)
    learned = sum(p.numel() for p in reader.projector.parameters() if p.requires_grad)
    tokens = views.symbols.shape[1] * views.symbols.shape[2]
    return Run(name, task_name, seed, budget, steps, tokens, learned, round(seconds, 2), scores, curve)


@torch.no_grad()
def measure(
    reader: Reader, row: ProjectorRow, task: Task, pages: Pages, limit: int | None = None
) -> list[list[float]]:
    """Return numerator and denominator of the score of each page, of the first `limit` ones."""
    views = views_of(pages, row)
    scores = []
    for index in range(len(views.symbols))[:limit]:
        page = torch.tensor([index])
        numbers = task.score(reader(*take(views, page)), task.targets(views, page), pages.characters[index])
        scores.append([round(number, 3) for number in numbers])
    return scores
