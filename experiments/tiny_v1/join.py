"""The two halves as one: the decoder learns to live with what the vision half really reads.

First the decoder alone adapts, the vision half fixed, which is cheap; then the loss on the answers flows back through
everything. The loss of reading stays beside it, so that every character of a page teaches the vision half, not only
those that were asked for. Last, the decoder alone once more: it learns longest, and half of what it sees is symbols,
which cost no image.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BatchFeature

from llava_uhd.model.hiwin import HiWinProjector
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
from llava_uhd.synthetic import make_document, render

from ..common.muon import parameter_groups
from ..common.trainer import Job, Measures, Parts, cosine, mixed_precision, skipping, train
from .decoder import READING, SymbolReader, draw_codes, pointing_loss
from .losses import answer_loss
from .samples import Sample, batches, collate, make_sample
from .symbols import encode_symbols, sequence_symbols
from .vision import (
    DISTANCE,
    build_image_processor,
    build_model,
    load_vision,
    save_vision,
    score,
    vision_parts,
)


@dataclass(frozen=True)
class Part:
    """A part of the joint training.

    Attributes:
        rate: learning rate of the decoder.
        vision_rate: learning rate of the vision half; 0 freezes it.
        alternate: every second batch is given by its symbols, as in the decoder's own phases, not by its pixels.
    """

    steps: int
    batch_size: int
    rate: float
    vision_rate: float
    alternate: bool = False


PARTS = {
    "adapt": Part(100, 16, 2e-3, 0.0),
    "join": Part(520, 8, 1e-3, 5e-4),
    "join-long": Part(500, 8, 6e-4, 3e-4),
    "decoder-long": Part(850, 16, 2e-3, 0.0, alternate=True),
}
MAX_QUESTIONS, DRAWS = 10, 3
SCALES = (1.5, 2.6)
# Weights, beside the loss of the answers, of reading and of looking at what is answered.
READING_WEIGHT, POINTING_WEIGHT = 0.5, 0.3


def join_sample(seed: int, index: int) -> Sample:
    document = make_document(seed, index, scales=SCALES)
    return make_sample(document, random.Random(f"join:{seed}:{index}"), MAX_QUESTIONS)


def draw(samples: list[Sample]) -> BatchFeature:
    """The pixels of a batch of samples."""
    return build_image_processor()([render(sample.document.page) for sample in samples], return_tensors="pt")


def train_join(out: Path, seed: int, device: str, name: str, shorten: int = 1, log_every: int = 20) -> None:
    """One part: reads `decoder.pt` and `vision.pt`, writes them anew."""
    torch.manual_seed(seed)
    place, part = list(PARTS).index(name), PARTS[name]
    vision, readout = load_vision(out, device)
    reader = SymbolReader()
    reader.load_state_dict(torch.load(out / "decoder.pt", weights_only=True, map_location="cpu"))
    reader.to(device)
    last, trained = max(part.steps // shorten, 1), part.vision_rate > 0
    parts = vision_parts(vision, readout)
    groups = parameter_groups([reader], muon_rate=part.rate, adam_rate=part.rate, head=reader.decoder.lm_head)
    if trained:
        groups += parameter_groups([parts], muon_rate=part.vision_rate, adam_rate=part.vision_rate)
    else:
        parts.requires_grad_(False)

    def draw_or_see(samples: list[Sample], step: int) -> torch.Tensor:
        if part.alternate and step % 2:
            rng = random.Random(f"jitter:{seed}:{name}:{step}")
            return draw_codes(samples, rng, DRAWS, readout.vectors.cpu()).to(device)
        return torch.cat(vision.get_image_features(**draw(samples).to(device)).pooler_output).float()

    def loss(samples: list[Sample], step: int) -> tuple[torch.Tensor, Measures]:
        symbols = torch.cat([torch.from_numpy(sequence_symbols(s.document, s.plan)) for s in samples]).to(device)
        input_ids, labels, pointers = (tensor.to(device) for tensor in collate(samples))
        with mixed_precision(device):
            codes = draw_or_see(samples, step)
            hidden, attention = reader(input_ids, codes, pointers, READING)
        of_answers, exact, answers = answer_loss(hidden.float(), labels, reader.decoder.lm_head)
        pointing = pointing_loss(attention)
        entropy, measures = score(readout(codes), symbols)
        reading = entropy + DISTANCE * F.mse_loss(codes, encode_symbols(symbols, readout.vectors))
        measures |= {
            "answer_loss": (of_answers.item(), 1.0),
            "pointing": (pointing.item(), 1.0),
            "exact": (exact, answers),
        }
        return of_answers + POINTING_WEIGHT * pointing + READING_WEIGHT * reading, measures

    train(
        Job(
            out / name,
            Parts({"reader": reader, **parts}),
            loss,
            skipping(
                lambda: batches(lambda index: join_sample(seed + 2, index), part.batch_size, first=1_000_000 * place)
            ),
            last,
            groups,
            lambda done: cosine((done + 1) / last, (done + 1) / 20),
            device=device,
            seed=seed,
            log_every=log_every,
        )
    )
    torch.save(reader.state_dict(), out / "decoder.pt")
    if trained:
        save_vision(out, vision, readout)


def assemble_saved(out: Path) -> LlavaUhdForConditionalGeneration:
    """The model of the halves in `decoder.pt` and `vision.pt`."""
    reader = SymbolReader()
    reader.load_state_dict(torch.load(out / "decoder.pt", weights_only=True, map_location="cpu"))
    return assemble(load_vision(out, "cpu")[0], reader)


@torch.no_grad()
def assemble(vision: LlavaUhdModel, reader: SymbolReader) -> LlavaUhdForConditionalGeneration:
    """One model of the two halves: the decoder's matrix for codes becomes a part of the projector's last one."""
    model = build_model(0)
    model.model.load_state_dict({**vision.state_dict(), **_prefixed("language_model.", reader.decoder.model)})
    projector = model.model.multi_modal_projector
    assert isinstance(projector, HiWinProjector)
    projector.proj.copy_(projector.proj @ reader.code_map.weight.cpu().T)
    model.lm_head.load_state_dict(reader.decoder.lm_head.state_dict())
    return model


def _prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}
