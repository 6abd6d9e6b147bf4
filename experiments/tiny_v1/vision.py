"""Second half: tower, pyramid and projector learn to tell the characters in the window of each image token.

First the tower alone, which is cheap: a throw-away head on its patches names the characters whose middles lie in each.
Then the whole path: the projector's tokens are pulled towards the code of their window, and read out by comparing them
with the code's vectors, place by place. Documents repeat their words, so most pages are covered with random
characters.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
from llava_uhd.model.pyramid import JBUPyramid
from llava_uhd.model.vision_tower import encode_views
from llava_uhd.synthetic import Document, make_document, make_scribble, render
from llava_uhd.training.assembly import read_upsampler

from ..common.muon import parameter_groups
from ..common.trainer import Job, Measures, Parts, cosine, mixed_precision, skipping, train
from .setting import MAX_SLICES, PATCH_SIZE, QUERY_GRID, VIEW_SIZE, VISION_WIDTH, build_config
from .symbols import EMPTY, NUM_SYMBOLS, PLACES, encode_symbols, plan_of, symbol_vectors, view_symbols


@dataclass(frozen=True)
class ProjectorPhase:
    """A part of the training of the whole vision half.

    Attributes:
        muon_rate, adam_rate: learning rate of the projector.
        tower_rate: learning rate of the tower, which is trained before.
        documents: every so many-th page is a document, not random characters.
        upsampler: the pyramid begins as stage 0 left it, and stays so but for its correction, as in stage 2.
    """

    steps: int
    muon_rate: float
    adam_rate: float
    tower_rate: float
    documents: int = 4
    upsampler: bool = False


PROJECTOR_PHASES = {
    "projector": ProjectorPhase(300, muon_rate=3e-3, adam_rate=2e-3, tower_rate=1e-3),
    "projector-fine": ProjectorPhase(600, muon_rate=2e-3, adam_rate=1.5e-3, tower_rate=1e-3),
    "projector-long": ProjectorPhase(
        2100, muon_rate=2e-3, adam_rate=1.5e-3, tower_rate=1e-3, documents=2, upsampler=True
    ),
}
TOWER_STEPS = 2800
VIEWS = 64
SCALES = (1.4, 2.2)
# Weight of the distance to the code beside the cross entropy of the symbols.
DISTANCE = 0.5

Shape = tuple[int, int]


def build_image_processor() -> LlavaUhdImageProcessor:
    return LlavaUhdImageProcessor(max_slices=MAX_SLICES, view_size=VIEW_SIZE, patch_size=PATCH_SIZE)


def make_page(seed: str, index: int, documents: int) -> Document:
    """A page of random characters, or every `documents`-th time a document. Slices reduce them, so they are small."""
    if index % documents:
        return make_scribble(seed, index, scales=SCALES)
    return make_document(seed, index, scales=SCALES)


@dataclass(frozen=True)
class ViewBatch:
    """Views of one shape.

    Attributes:
        shape: rows and columns of patches.
        patches: (N, H·W, 3·p·p).
        symbols: (N, G², S).
    """

    shape: Shape
    patches: torch.Tensor
    symbols: torch.Tensor

    def __len__(self) -> int:
        return len(self.patches)


class ViewStream:
    """Batches of views of one shape, each view once, from pages drawn anew."""

    def __init__(self, seed: str, documents: int = 4, overviews: bool = True):
        self.seed, self.documents, self.overviews = seed, documents, overviews
        self.process = build_image_processor()
        self.rng = random.Random(f"views:{seed}")
        self.next_page = 0
        self.waiting: dict[Shape, list[tuple[torch.Tensor, np.ndarray]]] = defaultdict(list)

    def draw_page(self) -> None:
        """Adds the views of one page. Empty views are mostly left out."""
        page = make_page(self.seed, self.next_page, self.documents)
        self.next_page += 1
        plan = plan_of(page)
        pixels = self.process(render(page.page), return_tensors="pt")["pixel_values"].half()
        views = pixels.split([rows * columns for rows, columns in plan.view_shapes])
        all_symbols = view_symbols(page, plan)
        if plan.grid is not None and not self.overviews:
            del all_symbols[-1]
        for shape, view, symbols in zip(plan.view_shapes, views, all_symbols, strict=False):
            if (symbols != EMPTY).mean() > 0.02 or self.rng.random() < 0.1:
                self.waiting[shape].append((view, symbols))

    def __iter__(self) -> Iterator[ViewBatch]:
        while True:
            while max((len(views) for views in self.waiting.values()), default=0) < VIEWS:
                self.draw_page()
            shape = max(self.waiting, key=lambda shape: len(self.waiting[shape]))
            views, symbols = zip(*self.waiting.pop(shape), strict=True)
            yield ViewBatch(shape, torch.stack(views).float(), torch.from_numpy(np.stack(symbols)))


def score(scores: torch.Tensor, symbols: torch.Tensor) -> tuple[torch.Tensor, Measures]:
    """Cross entropy of the symbols; windows without an error, of all and of those with text.

    Args:
        scores: (..., S, symbols).
        symbols: (..., S).
    """
    right = (scores.detach().argmax(dim=-1) == symbols).all(dim=-1)
    text = (symbols != EMPTY).any(dim=-1)
    entropy = F.cross_entropy(scores.flatten(0, -2), symbols.flatten())
    return entropy, {
        "windows": (right.sum().item(), right.numel()),
        "text_windows": (right[text].sum().item(), text.sum().item()),
    }


def build_model(seed: int) -> LlavaUhdForConditionalGeneration:
    """The model with random weights."""
    torch.manual_seed(seed)
    config = build_config()
    # In evaluation mode: the up-sampler's dropout, meant for its training on its own, would blur what is to be read.
    model = LlavaUhdForConditionalGeneration(config).eval()
    nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.1)
    return model


def train_tower(out: Path, seed: int, device: str, shorten: int = 1, log_every: int = 100) -> None:
    """The tower with its throw-away head; writes `tower.pt`."""
    steps = max(TOWER_STEPS // shorten, 1)
    tower = build_model(seed).model.vision_tower
    head = nn.Linear(VISION_WIDTH, PLACES * NUM_SYMBOLS)

    def loss(batch: ViewBatch, step: int) -> tuple[torch.Tensor, Measures]:
        with mixed_precision(device):
            features = encode_views(tower, batch.patches.to(device), batch.shape, feature_layer=-2)
            scores = head(features.permute(0, 2, 3, 1)).unflatten(-1, (PLACES, NUM_SYMBOLS))
        rows, columns = (min(side, QUERY_GRID) for side in batch.shape)
        symbols = batch.symbols.unflatten(1, (QUERY_GRID, QUERY_GRID))
        return score(scores[:, :rows, :columns].float(), symbols[:, :rows, :columns].to(device))

    train(
        Job(
            out / "tower",
            Parts({"tower": tower, "head": head}),
            loss,
            skipping(lambda: iter(ViewStream(f"tower:{seed}", overviews=False))),
            steps,
            parameter_groups([tower, head], muon_rate=2e-3, adam_rate=2e-3, head=head),
            lambda done: cosine((done + 1) / steps, (done + 1) / 100),
            device=device,
            seed=seed,
            log_every=log_every,
        )
    )
    torch.save(tower.state_dict(), out / "tower.pt")


class CharacterReadout(nn.Module):
    """Scores of the symbols at each place of a token: its similarity to the code's vectors."""

    vectors: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("vectors", symbol_vectors(), persistent=False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.zeros(self.vectors.shape[:2]))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., E) to (..., S, symbols)."""
        parts = tokens.unflatten(-1, (PLACES, -1))
        scores = torch.einsum("...pd,pad->...pa", parts, self.vectors)
        return self.scale * scores / parts.shape[-1] ** 0.5 + self.bias


def train_projector(out: Path, seed: int, device: str, name: str, shorten: int = 1, log_every: int = 20) -> None:
    """One phase of the whole vision half, tower, projector and readout.

    The first reads `tower.pt` and writes `vision.pt`, which those after it read and write anew.
    """
    phase = PROJECTOR_PHASES[name]
    steps = max(phase.steps // shorten, 1)
    if name == next(iter(PROJECTOR_PHASES)):
        model, readout = build_model(seed).model, CharacterReadout()
        model.vision_tower.load_state_dict(torch.load(out / "tower.pt", weights_only=True))
    else:
        model, readout = load_vision(out, device)
    if phase.upsampler:
        upsampler = model.multi_modal_projector.upsampler
        assert isinstance(upsampler, JBUPyramid)
        upsampler.load_state_dict(read_upsampler(str(out / "upsampler")))
        upsampler.requires_grad_(False)
        upsampler.fixup_proj.requires_grad_(True)

    def loss(batch: ViewBatch, step: int) -> tuple[torch.Tensor, Measures]:
        symbols = batch.symbols.to(device)
        with mixed_precision(device):
            tokens = model.project_views(batch.patches.to(device), batch.shape).float()
        entropy, measures = score(readout(tokens), symbols)
        return entropy + DISTANCE * F.mse_loss(tokens, encode_symbols(symbols, readout.vectors)), measures

    train(
        Job(
            out / name,
            vision_parts(model, readout),
            loss,
            skipping(lambda: iter(ViewStream(f"{name}:{seed}", phase.documents))),
            steps,
            [
                *parameter_groups(
                    [model.multi_modal_projector, readout], muon_rate=phase.muon_rate, adam_rate=phase.adam_rate
                ),
                *parameter_groups([model.vision_tower], muon_rate=phase.tower_rate, adam_rate=phase.tower_rate),
            ],
            lambda done: cosine((done + 1) / steps, (done + 1) / 50),
            device=device,
            seed=seed,
            log_every=log_every,
        )
    )
    save_vision(out, model, readout)


def vision_parts(model: LlavaUhdModel, readout: CharacterReadout) -> Parts:
    """Tower, projector and readout of the vision half, by name."""
    return Parts({"tower": model.vision_tower, "projector": model.multi_modal_projector, "readout": readout})


def save_vision(out: Path, model: LlavaUhdModel, readout: CharacterReadout) -> None:
    """Writes `vision.pt`: tower, projector and readout."""
    parts = vision_parts(model, readout)
    torch.save({name: part.state_dict() for name, part in parts.items()}, out / "vision.pt")


def load_vision(out: Path, device: str) -> tuple[LlavaUhdModel, CharacterReadout]:
    """Reads `vision.pt`."""
    model, readout = build_model(0).model, CharacterReadout()
    states = torch.load(out / "vision.pt", weights_only=True)
    for name, part in vision_parts(model, readout).items():
        part.load_state_dict(states[name])
    return model.to(device), readout.to(device)
