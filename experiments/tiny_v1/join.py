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

from .decoder import READING, SymbolReader, draw_codes, pointing_loss
from .optimization import Log, answer_loss, build_optimizers, mixed_precision, optimize, set_rate
from .samples import Sample, batches, collate, make_sample
from .symbols import encode_symbols, sequence_symbols
from .vision import DISTANCE, build_image_processor, build_model, load_vision, save_vision, score


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
    log = Log(out / "log.jsonl", name)
    vision, readout = load_vision(out, device)
    reader = SymbolReader().to(device)
    reader.load_state_dict(torch.load(out / "decoder.pt", weights_only=True, map_location=device))
    optimizers = build_optimizers([reader], muon_rate=part.rate, adam_rate=part.rate, head=reader.decoder.lm_head)
    learning: list[nn.Module] = [reader]
    if part.vision_rate > 0:
        learning += [vision.vision_tower, vision.multi_modal_projector, readout]
        optimizers += build_optimizers(learning[1:], muon_rate=part.vision_rate, adam_rate=part.vision_rate)
    parameters = [parameter for module in learning for parameter in module.parameters() if parameter.requires_grad]
    stream = batches(lambda index: join_sample(seed + 2, index), part.batch_size, first=1_000_000 * place)
    history: list[tuple[float, ...]] = []
    last = max(part.steps // shorten, 1)
    for step in range(1, last + 1):
        samples = next(stream)
        symbols = torch.cat([torch.from_numpy(sequence_symbols(s.document, s.plan)) for s in samples]).to(device)
        input_ids, labels, pointers = (tensor.to(device) for tensor in collate(samples))
        set_rate(optimizers, step / last, step / 20)
        with mixed_precision(device):
            if part.alternate and step % 2:
                rng = random.Random(f"jitter:{seed}:{name}:{step}")
                codes = draw_codes(samples, rng, DRAWS, readout.vectors.cpu()).to(device)
            else:
                with torch.set_grad_enabled(part.vision_rate > 0):
                    codes = torch.cat(vision.get_image_features(**draw(samples).to(device)).pooler_output).float()
            hidden, attention = reader(input_ids, codes, pointers, READING)
        loss, exact, answers = answer_loss(hidden.float(), labels, reader.decoder.lm_head)
        pointing = pointing_loss(attention)
        entropy, _, read = score(readout(codes), symbols)
        reading = entropy + DISTANCE * F.mse_loss(codes, encode_symbols(symbols, readout.vectors))
        optimize(loss + POINTING_WEIGHT * pointing + READING_WEIGHT * reading, optimizers, parameters)
        history.append((loss.item(), pointing.item(), read, exact, answers))
        if step % log_every == 0 or step == last:
            losses, pointings, reads, rights, asked = zip(*history, strict=True)
            log.write(
                step=step,
                loss=sum(losses) / len(history),
                pointing=sum(pointings) / len(history),
                text_windows=sum(reads) / len(history),
                exact=sum(rights) / sum(asked),
            )
            history = []
        if step % 50 == 0 or step == last:
            torch.save(reader.state_dict(), out / "decoder.pt")
            if part.vision_rate > 0:
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
