"""Loss and measures of one batch, by kind of phase."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from llava_uhd.model.layout import layout_views
from llava_uhd.synthetic.varied.notes import LEADS, NOTED, TRAILS

from ..common.trainer import Measures
from ..tiny_v1.decoder import pointing_loss
from ..tiny_v1.losses import answer_loss
from ..tiny_v1.tokenizer import EOS_ID, byte_id
from .doubt import decline_doubtful
from .locations import FOUND_ID, first_note_id
from .network import Network
from .samples import IGNORED, Sample, collate
from .setting import Phase
from .symbols import DRAFTS, EMPTY, encode_symbols, token_grid

# Weight of the distance to the code beside the cross entropy of the symbols.
DISTANCE = 0.5
# Weights of looking at the position before, and of naming the slices of image tokens.
BEFORE = 0.3
SLICES = 0.2
# Weight of the tokens that say where an answer is found, or that it is not, where it ends or has another word, and
# which of the numbers on the way leads. The many others only repeat what is there.
FINDING = 4.0


@dataclass(frozen=True)
class Score:
    """Losses and counts of a batch.

    Attributes:
        loss: loss to minimize.
        measures: sums and counts by name: means of a stretch of steps are sums over counts.
    """

    loss: torch.Tensor
    measures: Measures


def reading_score(scores: torch.Tensor, symbols: torch.Tensor) -> tuple[torch.Tensor, Measures]:
    """Cross entropy of the symbols, and how many characters, and how many windows with text, are right.

    Args:
        scores: logits of the symbols, (..., S, symbols).
        symbols: target symbols, (..., S).
    """
    entropy = F.cross_entropy(scores.flatten(0, -2).float(), symbols.flatten())
    right = scores.detach().argmax(dim=-1) == symbols
    printed = symbols != EMPTY
    text = printed.any(dim=-1)
    return entropy, {
        "characters": ((right & printed).sum().item(), printed.sum().item()),
        "windows": ((right.all(dim=-1) & text).sum().item(), text.sum().item()),
    }


def tower_score(network: Network, phase: Phase, samples: list[Sample], device: str) -> Score:
    """Naming the characters on each patch, and giving the code of each window, in square views."""
    patches = torch.stack([sample.patches.float() for sample in samples if sample.patches is not None])
    cells = torch.stack([sample.cells for sample in samples if sample.cells is not None]).to(device)
    features = network.patch_features(patches.to(device))
    of_cells = Score(*reading_score(network.cell_scores(features), cells))
    if phase.named == "cells":
        return of_cells
    symbols = torch.stack([sample.symbols for sample in samples]).to(device)
    codes = encode_symbols(symbols, network.readout.vectors, network.readout.locations)
    score = _code_score(network, network.window_tokens(features).float(), symbols, codes)
    return Score(score.loss + of_cells.loss, score.measures)


def vision_score(network: Network, phase: Phase, samples: list[Sample], device: str) -> Score:
    """Naming the characters of each image token."""
    tokens = network.image_tokens(*pixels_of(samples, device)).float()
    symbols = torch.cat([_in_sequence(network, sample) for sample in samples]).to(device)
    return _code_score(network, tokens, symbols, codes_of(network, samples, symbols))


def _code_score(network: Network, tokens: torch.Tensor, symbols: torch.Tensor, codes: torch.Tensor) -> Score:
    entropy, measures = reading_score(network.readout(tokens), symbols)
    return Score(entropy + DISTANCE * F.mse_loss(tokens, codes), measures)


def sequence_score(network: Network, phase: Phase, samples: list[Sample], device: str) -> Score:
    """Answers on pages, drawn or as codes, with the losses of looking and reading beside them."""
    symbols = torch.cat([sample.symbols for sample in samples]).to(device)
    codes = codes_of(network, samples)
    reading = codes.new_zeros(())
    measures: Measures = {}
    drawn = [sample for sample in samples if sample.patches is not None]
    if drawn:
        tokens = network.image_tokens(*pixels_of(drawn, device)).float()
        has_pixels = torch.cat([torch.full((len(s.symbols),), s.patches is not None) for s in samples]).to(device)
        entropy, measures = reading_score(network.readout(tokens), symbols[has_pixels])
        reading = entropy + DISTANCE * F.mse_loss(tokens, codes[has_pixels])
        codes = codes.masked_scatter(has_pixels[:, None], tokens)
    kept = [torch.ones(len(s.symbols), dtype=torch.bool) if s.kept is None else s.kept for s in samples]
    codes = codes[torch.cat(kept).to(device)]
    input_ids, labels, pointers, positions = (tensor.to(device) for tensor in collate(samples))
    outputs = network.hidden_states(input_ids, codes, pointers, positions)
    notes = first_note_id(network.setting.query_grid, network.setting.max_slices)
    weights = finding_weights(labels, notes)
    hidden = outputs.hidden.float()
    decided = labels
    if phase.doubted:
        predicted, setting = _predict(network, hidden.detach(), labels), network.setting
        decided = decline_doubtful(labels, predicted, setting.query_grid, setting.max_slices)
    loss, right, answers = answer_loss(hidden, decided, network.model.lm_head, weights)
    pointing = pointing_loss(outputs.found) if outputs.found.numel() else loss.new_zeros(())
    previous = pointing_loss(outputs.before)
    slices = torch.cat([sample.slices for sample in samples])[torch.cat(kept)].to(device)
    of_slices = F.cross_entropy(outputs.slices.float().flatten(0, 1), slices.flatten())
    total = loss + phase.pointing * pointing + BEFORE * previous + SLICES * of_slices + phase.reading * reading
    padded = input_ids.numel() - sum(sample.length for sample in samples)
    measures |= {
        "answer_loss": (loss.item(), 1),
        "pointing": (pointing.item(), 1),
        "before": (previous.item(), 1),
        "slices": ((outputs.slices.argmax(dim=-1) == slices).all(dim=-1).sum().item(), len(slices)),
        "exact": (right, answers),
        "doubted": (int((decided != labels).sum()), answers),
        "leads": _count_leads(network, outputs.hidden.detach(), labels, notes),
        "padding": (padded, input_ids.numel()),
    }
    return Score(total, measures)


def _predict(network: Network, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Likeliest token at the place of each label, (B, L); `IGNORED` where none is asked for."""
    predicted = labels.clone()
    asked = labels[:, 1:] != IGNORED
    predicted[:, 1:][asked] = network.model.lm_head(hidden[:, :-1][asked]).argmax(dim=-1)
    return predicted


def finding_weights(labels: torch.Tensor, notes: int) -> torch.Tensor:
    """Weights of labels, (B, L): `FINDING` for what an answer depends on.

    These are its first token, places up to a character, its end and the spaces, where it could have ended, and of
    notes the first sign and what they decide.

    Args:
        labels: (B, L), `IGNORED` outside of answers.
        notes: token of the first sign of notes.
    """
    asked = labels != IGNORED
    is_place = (labels >= FOUND_ID) & (labels < notes)
    finds = asked & ~_of_token_before(asked)
    finds |= is_place & _of_token_before(labels >= FOUND_ID)
    follows = _of_token_before(is_place) & (labels >= notes)  # a length, or the number of what is counted
    finds |= follows | _is_comparison(labels, notes)
    finds |= (labels == EOS_ID) | (labels == byte_id(" "))
    return torch.where(finds, FINDING, 1.0)


def _of_token_before(mask: torch.Tensor) -> torch.Tensor:
    """A mask of tokens, (B, L), moved to the tokens after them."""
    return F.pad(mask, (1, 0))[:, :-1]


def _is_comparison(labels: torch.Tensor, notes: int) -> torch.Tensor:
    return (labels == notes + NOTED.index(LEADS)) | (labels == notes + NOTED.index(TRAILS))


def _count_leads(network: Network, hidden: torch.Tensor, labels: torch.Tensor, notes: int) -> tuple[int, int]:
    """Counts of rightly predicted signs of comparisons and of all of them, without those that say equal.

    Signs behind a place say whether a row follows, and compare nothing.
    """
    targets = labels[:, 1:]
    asked = _is_comparison(targets, notes) & (labels[:, :-1] >= notes)
    predicted = network.model.lm_head(hidden[:, :-1][asked]).argmax(dim=-1)
    return int((predicted == targets[asked]).sum()), int(asked.sum())


def pixels_of(samples: list[Sample], device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches, view shapes, views and grids of the images of samples, as the model takes them."""
    patches = torch.cat([sample.patches.float() for sample in samples if sample.patches is not None])
    shapes = torch.cat([sample.view_shapes for sample in samples if sample.view_shapes is not None])
    num_views = torch.tensor([len(sample.view_shapes) for sample in samples if sample.view_shapes is not None])
    return patches.to(device), shapes, num_views, torch.tensor([sample.grid for sample in samples])


def codes_of(network: Network, samples: list[Sample], symbols: torch.Tensor | None = None) -> torch.Tensor:
    """Codes of all image tokens of a batch, (T, E), of their drafts, or of these symbols, (T, S)."""
    vectors = network.readout.vectors
    windows = torch.cat([sample.windows for sample in samples]).to(vectors.device)
    if symbols is not None:
        return encode_symbols(symbols, vectors, network.readout.locations[windows])
    drafts = [s.symbols.expand(DRAFTS, -1, -1) if s.drafts is None else s.drafts for s in samples]
    symbols = torch.cat(drafts, dim=1).to(vectors.device)
    return encode_symbols(symbols, vectors, network.readout.locations[windows].expand(DRAFTS, -1, -1, -1)).mean(dim=0)


def _in_sequence(network: Network, sample: Sample) -> torch.Tensor:
    """Symbols in the order of the image's tokens, (T, S), of symbols in the order of the views."""
    assert sample.view_shapes is not None
    first, last = ((int(rows), int(columns)) for rows, columns in sample.view_shapes[[0, -1]].tolist())
    grid = token_grid(network.setting)
    order = layout_views(sample.grid if sample.grid[0] else None, first, last, grid, "stitched").order
    return sample.symbols[list(order)]


SCORES = {
    "tower": tower_score,
    "vision": vision_score,
    "reader": sequence_score,
    "frozen": sequence_score,
    "joint": sequence_score,
}
