"""One run: a projector learns, with a linear readout, to say which characters stand in the window of each token."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from experiments.tiny_v1.optimization import build_optimizers, optimize, set_rate
from experiments.tiny_v1.setting import PATCH_SIZE, WIDTH
from experiments.tiny_v1.symbols import EMPTY, NUM_SYMBOLS, PLACES

from ...model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from ...model.vision_tower import patches_to_pixels
from ..assembly import load_upsampler
from ..parts import parts_of, train_only
from .pages import CELLS, Pages, Views
from .variants import Variant

RATE = 2e-3
WARMUP = 30
# Learned as in stage 2: the up-sampler's kernels are stage 0's.
TRAINED = ("projector", "upsampler_fixup")


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        variant: its name.
        steps: of training.
        characters: share of all characters of the held-out pages that were read right, at their place.
        loss: on the held-out pages: mean cross entropy of all places, empty ones among them.
        tokens: of a page.
        parameters: that learned, readout apart.
        core_seconds: of training, over all cores.
    """

    variant: str
    seed: int
    steps: int
    characters: float
    loss: float
    tokens: int
    parameters: int
    core_seconds: float


class Reader(nn.Module):
    """A projector and its readout: the scores of the symbols at each place of each window, (N, T, S, symbols)."""

    def __init__(self, variant: Variant, upsampler: str | None):
        super().__init__()
        config = variant.build_config()
        model = LlavaUhdForConditionalGeneration(config)
        if upsampler is not None:
            load_upsampler(model, upsampler)
        train_only(model, config, [part for part in TRAINED if part in parts_of(model, config)])
        # In evaluation mode: dropout, meant for stage 0, would blur what is to be read.
        self.projector = model.model.multi_modal_projector.eval()
        self.readout = nn.Linear(WIDTH, CELLS**2 * PLACES * NUM_SYMBOLS)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        return self.readout(self.projector(features, pixels)).unflatten(-1, (-1, NUM_SYMBOLS))


def take(views: Views, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (N, C, H, W), pixels (N, 3, ., .) and symbols (N, T, S) of the views of some pages."""
    patches = views.patches[pages].flatten(0, 1).float()
    pixels = patches_to_pixels(patches, views.shape, PATCH_SIZE)
    return views.features[pages].flatten(0, 1).float(), pixels, views.symbols[pages].flatten(0, 1).long()


def draw_pages(count: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of pages, every page once before any comes again."""
    rng = random.Random(f"ablation:{seed}")
    while True:
        order = rng.sample(range(count), count)
        for start in range(0, count - batch + 1, batch):
            yield torch.tensor(order[start : start + batch])


def read(
    name: str,
    variant: Variant,
    seed: int,
    steps: int,
    batch: int,
    train: Pages,
    held_out: Pages,
    upsampler: str | None,
) -> Run:
    """Train and measure.

    Args:
        steps: of training.
        batch: pages of a step.
        upsampler: folder of stage 0, for a variant that begins with one.
    """
    torch.manual_seed(seed)
    reader = Reader(variant, upsampler)
    kind = "overviews" if variant.overview_only else "slices"
    views, start = getattr(train, kind), time.process_time()
    optimizers = build_optimizers([reader], muon_rate=RATE, adam_rate=RATE, head=reader.readout)
    parameters = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    stream = draw_pages(len(views.symbols), batch, seed)
    for step in range(1, steps + 1):
        features, pixels, symbols = take(views, next(stream))
        set_rate(optimizers, step / steps, step / min(WARMUP, steps))
        scores = reader(features, pixels)
        optimize(F.cross_entropy(scores.flatten(0, 2), symbols.flatten()), optimizers, parameters)
    seconds = time.process_time() - start
    right, loss = measure(reader, getattr(held_out, kind), batch)
    learned = sum(p.numel() for p in reader.projector.parameters() if p.requires_grad)
    tokens = views.symbols.shape[1] * views.symbols.shape[2]
    return Run(name, seed, steps, right / held_out.characters, loss, tokens, learned, seconds)


@torch.no_grad()
def measure(reader: Reader, views: Views, batch: int) -> tuple[int, float]:
    """How many characters are read right, and the mean cross entropy."""
    right, losses = 0, []
    for pages in torch.arange(len(views.symbols)).split(batch):
        features, pixels, symbols = take(views, pages)
        scores = reader(features, pixels)
        right += int(((scores.argmax(dim=-1) == symbols) & (symbols != EMPTY)).sum())
        losses.append((F.cross_entropy(scores.flatten(0, 2), symbols.flatten(), reduction="sum"), symbols.numel()))
    return right, float(sum(loss for loss, _ in losses)) / sum(number for _, number in losses)
