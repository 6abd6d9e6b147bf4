"""First half: the language model answers questions on documents given as symbols.

The image's tokens stand where they will stand later, each the code of its window times a matrix that is learned. Pages
begin small: on short sequences the decoder finds sooner how to look (a sudden rise), and large pages are then easy.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava_uhd.synthetic import make_document

from ..common.muon import parameter_groups
from ..common.trainer import EvaluationMode, Job, Measures, cosine, mixed_precision, skipping, train
from .losses import answer_loss
from .samples import Sample, batches, collate, make_sample
from .setting import WIDTH, build_config
from .symbols import encode_symbols, sequence_symbols, symbol_vectors
from .tokenizer import IMAGE_ID

# (layer, head): heads that are taught to look at the window of the next character of an answer. One head of the last
# layer but one finds the window; together with those of the last layer, a window's whole code fits through.
FINDING = ((3, 0),)
READING = ((3, 0), (4, 0), (4, 1), (4, 2))


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
        num_slices: pages of about so many slices, drawn from these; None for pages as they come.
        read: probability that a page with little text is also read out.
        draws: a window's code is the mean of so many draws of the characters' places: a reader in doubt on which side
            of a window's edge a character lies says a little of both.
        pointing: weight of `pointing_loss`.
        heads: that the loss is about.
        rate: learning rate of the optimizers at their peak.
        cosine: the part of the rate's cosine, from 0 to 1, that this phase goes along.
    """

    steps: int
    batch_size: int
    num_slices: tuple[int, ...] | None
    max_questions: int = 10
    read: float = 0.0
    draws: int = 1
    pointing: float = 0.0
    heads: tuple[tuple[int, int], ...] = FINDING
    rate: float = 3e-3
    cosine: tuple[float, float] = (0.0, 1.0)


PHASES = {
    "small": Phase(500, 32, (1, 1, 2), read=0.3, cosine=(0.0, 0.43 * 500 / 600)),
    "medium": Phase(280, 24, (1, 2, 3, 4), draws=3, pointing=0.3, cosine=(0.36, 0.65)),
    "large": Phase(300, 16, None, draws=3, pointing=0.3, heads=READING, cosine=(0.65, 1.0)),
    "sharp": Phase(240, 16, None, draws=3, pointing=0.3, heads=READING, rate=2e-3),
    "fine": Phase(360, 16, None, draws=3, pointing=0.3, heads=READING, rate=1.5e-3),
}
# Steps before the rate of a phase's fresh optimizers is reached.
FIRST_WARMUP, WARMUP = 100, 20


class SymbolReader(EvaluationMode):
    """The decoder with the matrix that takes a window's code into its embeddings."""

    def __init__(self):
        super().__init__()
        self.decoder = LlamaForCausalLM(build_config().text_config)
        self.code_map = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.orthogonal_(self.code_map.weight, gain=0.1)
        nn.init.normal_(self.decoder.model.embed_tokens.weight, std=0.1)

    def forward(
        self,
        input_ids: torch.Tensor,
        codes: torch.Tensor,
        pointers: torch.Tensor,
        heads: Sequence[tuple[int, int]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states, and how much some heads look where they should.

        Args:
            input_ids: (B, length).
            codes: features of all image tokens, (T, WIDTH).
            pointers: (B, length), where a position should look, -1 where there is nothing to look at.
            heads: (layer, head) of the heads.

        Returns:
            (B, length, WIDTH), and the attention of the heads to the places pointed at, (heads, points).
        """
        embeds = self.decoder.model.embed_tokens(input_ids)
        mapped = self.code_map(codes).to(embeds.dtype)
        embeds = embeds.masked_scatter((input_ids == IMAGE_ID)[..., None], mapped)
        outputs = self.decoder.model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        found = [self.attention_at(outputs.hidden_states[layer], pointers, layer, head) for layer, head in heads]
        return outputs.last_hidden_state, torch.stack(found)

    def attention_at(self, hidden: torch.Tensor, pointers: torch.Tensor, layer: int, head: int) -> torch.Tensor:
        """Attention of a head to the places pointed at, (points,), computed again from its layer's input.

        The layer itself need not return its attention, so that the decoder can use a fused kernel.
        """
        block = self.decoder.model.layers[layer]
        channels = block.self_attn.head_dim
        rows = slice(head * channels, (head + 1) * channels)
        normed = block.input_layernorm(hidden)
        queries = F.linear(normed, block.self_attn.q_proj.weight[rows])
        keys = F.linear(normed, block.self_attn.k_proj.weight[rows])
        length = torch.arange(hidden.shape[1], device=hidden.device)
        cos, sin = self.decoder.model.rotary_emb(normed, length[None])
        queries, keys = apply_rotary_pos_emb(queries, keys, cos[0], sin[0], unsqueeze_dim=0)
        found = []
        for query, key, pointer in zip(queries, keys, pointers, strict=True):
            points = (pointer >= 0).nonzero().flatten()
            scores = (query[points] @ key.T).float() * block.self_attn.scaling
            scores = scores.masked_fill(length > points[:, None], -torch.inf)
            found.append(scores.softmax(dim=-1).gather(1, pointer[points, None]).squeeze(1))
        return torch.cat(found)


def pointing_loss(attention: torch.Tensor) -> torch.Tensor:
    """Return the mean pointer loss over attention weights of any shape."""
    return -(attention + 1e-4).log().mean()


def phase_sample(phase: Phase, seed: int, index: int) -> Sample:
    rng = random.Random(f"decoder:{seed}:{index}")
    num_slices = rng.choice(phase.num_slices) if phase.num_slices else None
    document = make_document(seed, index, num_slices=num_slices)
    return make_sample(document, rng, phase.max_questions, phase.read)


def draw_codes(samples: list[Sample], rng: random.Random, draws: int, vectors: torch.Tensor) -> torch.Tensor:
    """Codes of the image tokens of a batch, (T, WIDTH)."""
    codes = [
        encode_symbols(
            torch.cat([torch.from_numpy(sequence_symbols(sample.document, sample.plan, rng)) for sample in samples]),
            vectors,
        )
        for _ in range(draws)
    ]
    return torch.stack(codes).mean(dim=0)


def train_decoder(out: Path, seed: int, device: str, name: str, shorten: int = 1, log_every: int = 20) -> None:
    """One phase: reads `decoder.pt` of the phase before, writes it anew."""
    torch.manual_seed(seed)
    place, phase = list(PHASES).index(name), PHASES[name]
    reader = SymbolReader()
    if place > 0:
        reader.load_state_dict(torch.load(out / "decoder.pt", weights_only=True))
    vectors = symbol_vectors()
    last, (start, end) = max(phase.steps // shorten, 1), phase.cosine

    def loss(samples: list[Sample], step: int) -> tuple[torch.Tensor, Measures]:
        rng = random.Random(f"jitter:{seed}:{name}:{step}")
        codes = draw_codes(samples, rng, phase.draws, vectors).to(device)
        input_ids, labels, pointers = (tensor.to(device) for tensor in collate(samples))
        with mixed_precision(device):
            hidden, attention = reader(input_ids, codes, pointers, phase.heads)
        of_answers, exact, answers = answer_loss(hidden.float(), labels, reader.decoder.lm_head)
        pointing = pointing_loss(attention)
        measures = {
            "answer_loss": (of_answers.item(), 1.0),
            "pointing": (pointing.item(), 1.0),
            "exact": (exact, answers),
        }
        return of_answers + phase.pointing * pointing, measures

    def rate(done: int) -> float:
        warmed_up = (done + 1) / (WARMUP if place else FIRST_WARMUP)
        return cosine(start + (end - start) * (done + 1) / last, warmed_up)

    train(
        Job(
            out / f"decoder-{name}",
            reader,
            loss,
            skipping(
                lambda: batches(
                    lambda index: phase_sample(phase, seed, index), phase.batch_size, first=1_000_000 * place
                )
            ),
            last,
            parameter_groups([reader], muon_rate=phase.rate, adam_rate=phase.rate, head=reader.decoder.lm_head),
            rate,
            device=device,
            seed=seed,
            log_every=log_every,
        )
    )
    torch.save(reader.state_dict(), out / "decoder.pt")
