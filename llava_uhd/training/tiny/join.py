"""The two halves as one: the decoder learns to live with what the vision half really reads.

Documents are drawn, and the loss on the answers flows back through everything. The loss of reading stays beside it, so
that every character of a page teaches the vision half, not only those that were asked for.
"""

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BatchFeature

from ...model.hiwin import HiWinProjector
from ...model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
from ...synthetic import make_document, render
from .decoder import SymbolReader, pointing_loss
from .optimization import Log, answer_loss, build_optimizers, optimize, set_rate
from .samples import Sample, batches, collate, make_sample
from .symbols import encode_symbols, sequence_symbols
from .vision import DISTANCE, CharacterReadout, build_image_processor, build_model, score

STEPS = 700
BATCH_SIZE = 8
MAX_QUESTIONS = 10
SCALES = (1.5, 2.6)
# Weights, beside the loss of the answers, of reading and of looking at what is answered.
READING, POINTING = 0.5, 0.3


def join_sample(seed: int, index: int) -> Sample:
    document = make_document(seed, index, scales=SCALES)
    return make_sample(document, random.Random(f"join:{seed}:{index}"), MAX_QUESTIONS)


def draw(samples: list[Sample]) -> BatchFeature:
    """The pixels of a batch of samples."""
    return build_image_processor()([render(sample.document.page) for sample in samples], return_tensors="pt")


def train_join(out: Path, seed: int, device: str, steps: int = STEPS, log_every: int = 20) -> None:
    """Reads `decoder.pt` and `vision.pt`, writes `joined.pt`."""
    log = Log(out / "log.jsonl", "join")
    vision = build_model(seed).model.to(device)
    halves = torch.load(out / "vision.pt", weights_only=True, map_location=device)
    vision.vision_tower.load_state_dict(halves["tower"])
    vision.multi_modal_projector.load_state_dict(halves["projector"])
    readout = CharacterReadout().to(device)
    readout.load_state_dict(halves["readout"])
    reader = SymbolReader().to(device)
    reader.load_state_dict(torch.load(out / "decoder.pt", weights_only=True, map_location=device))
    seeing = [vision.vision_tower, vision.multi_modal_projector, readout]
    optimizers = [
        *build_optimizers(seeing, muon_rate=5e-4, adam_rate=5e-4),
        *build_optimizers([reader], muon_rate=1e-3, adam_rate=1e-3, head=reader.decoder.lm_head),
    ]
    parameters = [p for module in (*seeing, reader) for p in module.parameters() if p.requires_grad]
    stream = batches(lambda index: join_sample(seed + 2, index), BATCH_SIZE)
    losses: list[float] = []
    right = asked = read = 0.0
    for step in range(1, steps + 1):
        samples = next(stream)
        pixels = draw(samples).to(device)
        symbols = torch.cat([torch.from_numpy(sequence_symbols(s.document, s.plan)) for s in samples]).to(device)
        input_ids, labels, pointers = (tensor.to(device) for tensor in collate(samples))
        set_rate(optimizers, step, steps, warmup=30)
        with torch.autocast(device, torch.bfloat16):
            codes = torch.cat(vision.get_image_features(**pixels).pooler_output).float()
            hidden, attention = reader(input_ids, codes)
        loss, exact, answers = answer_loss(hidden.float(), labels, reader.decoder.lm_head)
        entropy, _, text = score(readout(codes), symbols)
        distance = F.mse_loss(codes, encode_symbols(symbols, readout.vectors))
        reading = entropy + DISTANCE * distance
        optimize(loss + POINTING * pointing_loss(attention, pointers) + READING * reading, optimizers, parameters)
        losses.append(loss.item())
        right, asked, read = right + exact, asked + answers, read + text
        if step % log_every == 0 or step == steps:
            mean = sum(losses) / len(losses)
            log.write(step=step, loss=mean, exact=right / asked, text_windows=read / len(losses))
            losses, right, asked, read = [], 0.0, 0.0, 0.0
        if step % 100 == 0 or step == steps:
            torch.save(assemble(vision, reader).state_dict(), out / "joined.pt")


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
