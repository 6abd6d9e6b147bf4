"""One run: a projector and a linear readout learn a task, and are measured on held-out pages."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.common.muon import parameter_groups
from experiments.common.trainer import EvaluationMode, Job, Measures, Numbered, cosine
from experiments.common.trainer import train as train_job
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


class Reader(EvaluationMode):
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
        self.projector = model.model.multi_modal_projector
        self.readout = nn.Linear(WIDTH, outputs)
        self.eval()

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

    def loss(pages: torch.Tensor, step: int) -> tuple[torch.Tensor, Measures]:
        return task.loss(reader(*take(views, pages)), task.targets(views, pages)), {}

    def batches(first: int) -> Iterator[Numbered]:
        return enumerate(draw_pages(len(views.symbols), batch, seed), start=1)

    points = {round(steps * point / CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)}
    curve = Curve(points, lambda: ratio(measure(reader, row, task, held_out, CURVE_PAGES)))
    with TemporaryDirectory() as folder:
        train_job(
            Job(
                Path(folder),
                reader,
                loss,
                batches,
                steps,
                parameter_groups([reader], LEARNING_RATE, LEARNING_RATE, head=reader.readout),
                lambda done: cosine((done + 1) / steps, (done + 1) / min(WARMUP, steps)),
                seed=seed,
                checkpoints=False,
                callbacks=[curve],
            )
        )
    scores = measure(reader, row, task, held_out)
    learned = sum(p.numel() for p in reader.projector.parameters() if p.requires_grad)
    tokens = views.symbols.shape[1] * views.symbols.shape[2]
    seconds = round(curve.seconds, 2)
    return Run(name, task_name, seed, budget, steps, tokens, learned, seconds, scores, curve.points)


class Curve(TrainerCallback):
    """Process time of the training, measuring apart, and the score at some steps.

    Args:
        steps: steps after which the score is measured.
        score: measures it.

    Attributes:
        seconds: process time so far.
        points: (step, seconds, score).
    """

    def __init__(self, steps: set[int], score: Callable[[], float]):
        self.steps, self.score = steps, score
        self.seconds, self.began = 0.0, 0.0
        self.points: list[list[float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.process_time()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds += time.process_time() - self.began
        if state.global_step in self.steps:
            self.points.append([state.global_step, round(self.seconds, 2), round(self.score(), 5)])
        self.began = time.process_time()


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
