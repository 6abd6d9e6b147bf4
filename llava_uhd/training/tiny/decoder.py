"""First half: the language model answers questions on documents given as symbols.

The image's tokens stand where they will stand later, each the code of its window times a matrix that is learned. Pages
begin small: on short sequences the decoder finds sooner how to look (a sudden rise), and large pages are then easy.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaForCausalLM

from ...synthetic import make_document
from .optimization import Log, answer_loss, build_optimizers, optimize, set_rate
from .samples import Sample, batches, collate, make_sample
from .setting import WIDTH, build_config
from .symbols import encode_symbols, sequence_symbols, symbol_vectors
from .tokenizer import IMAGE_ID


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum: pages of about so many slices (None: as they come), for a number of steps."""

    steps: int
    batch_size: int
    num_slices: tuple[int, ...] | None
    max_questions: int = 10
    read: float = 0.0


PHASES = (
    Phase(800, 32, (1, 1, 2), read=0.3),
    Phase(200, 24, (2, 3, 4)),
    Phase(380, 16, None),
)


class SymbolReader(nn.Module):
    """The decoder with the matrix that takes a window's code into its embeddings."""

    def __init__(self):
        super().__init__()
        config = build_config().text_config
        # Faster than the fused kernel on a CPU in bfloat16, at these lengths.
        config._attn_implementation = "eager"
        self.decoder = LlamaForCausalLM(config)
        self.code_map = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.orthogonal_(self.code_map.weight, gain=0.1)
        nn.init.normal_(self.decoder.model.embed_tokens.weight, std=0.1)

    def forward(self, input_ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """(B, length) and the codes of all image tokens (T, WIDTH) to hidden states (B, length, WIDTH)."""
        embeds = self.decoder.model.embed_tokens(input_ids)
        mapped = self.code_map(codes).to(embeds.dtype)
        embeds = embeds.masked_scatter((input_ids == IMAGE_ID)[..., None], mapped)
        return self.decoder.model(inputs_embeds=embeds, use_cache=False).last_hidden_state


def phase_sample(phase: Phase, seed: int, index: int) -> Sample:
    rng = random.Random(f"decoder:{seed}:{index}")
    num_slices = rng.choice(phase.num_slices) if phase.num_slices else None
    document = make_document(seed, index, num_slices=num_slices)
    return make_sample(document, rng, phase.max_questions, phase.read)


def train_decoder(out: Path, seed: int, device: str, phases: tuple[Phase, ...] = PHASES, log_every: int = 20) -> None:
    """Writes `decoder.pt`."""
    torch.manual_seed(seed)
    log = Log(out / "log.jsonl", "decoder")
    reader = SymbolReader().to(device)
    vectors = symbol_vectors()
    optimizers = build_optimizers([reader], muon_rate=3e-3, adam_rate=3e-3, head=reader.decoder.lm_head)
    parameters = list(reader.parameters())
    steps = sum(phase.steps for phase in phases)
    step, first, documents = 0, 0, 0
    right = asked = 0
    losses: list[float] = []
    for phase in phases:
        stream = batches(lambda index, phase=phase: phase_sample(phase, seed, index), phase.batch_size, first)
        for _ in range(phase.steps):
            samples = next(stream)
            rng = random.Random(f"jitter:{seed}:{step}")
            symbols = [sequence_symbols(sample.document, sample.plan, rng) for sample in samples]
            codes = encode_symbols(torch.cat([torch.from_numpy(s) for s in symbols]), vectors).to(device)
            input_ids, labels = (tensor.to(device) for tensor in collate(samples))
            set_rate(optimizers, step, steps, warmup=100)
            with torch.autocast(device, torch.bfloat16):
                hidden = reader(input_ids, codes)
            loss, exact, answers = answer_loss(hidden.float(), labels, reader.decoder.lm_head)
            optimize(loss, optimizers, parameters)
            step, documents = step + 1, documents + len(samples)
            losses.append(loss.item())
            right, asked = right + exact, asked + answers
            if step % log_every == 0:
                log.write(step=step, documents=documents, loss=sum(losses) / len(losses), exact=right / asked)
                losses, right, asked = [], 0, 0
            if step % 200 == 0:
                torch.save(reader.state_dict(), out / "decoder.pt")
        first += 1_000_000
    torch.save(reader.state_dict(), out / "decoder.pt")


def shortened(divisor: int) -> tuple[Phase, ...]:
    """The curriculum in fewer steps."""
    return tuple(replace(phase, steps=max(phase.steps // divisor, 1)) for phase in PHASES)
