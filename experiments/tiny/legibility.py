"""Characters of drawn pages that the vision half names, by size of print.

A character between two slots, or a line between two halves of a window, is named in part in both, which a language
model can follow. So a character counts as named if its probability in its slot and those around it adds up to more
than a half, with or without a word's beginning.
"""

import random
from collections import defaultdict
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from llava_uhd.synthetic.varied import SCRIBBLE

from .crops import cut_crops
from .network import Network
from .samples import draw_document
from .setting import Phase
from .symbols import BEGINS, FIRST, HALVES, NUM_PLAIN

# Whether the characters are random, and from which to which size the page's print is, in pixels.
Group = tuple[bool, int, int]
SIZES = (0, 10, 12, 15, 20, 99)
CROPS = 4


def on_grid(probabilities: torch.Tensor, grid: int) -> torch.Tensor:
    """Probabilities of plain symbols by place: (G², S, symbols) to (plain symbols, 2 · G, G · S / 2)."""
    plain = probabilities[..., :NUM_PLAIN].clone()
    plain[..., FIRST:] += probabilities[..., FIRST + BEGINS :]
    halves = plain.unflatten(0, (grid, grid)).unflatten(2, (HALVES, -1))  # row, column, half, slot, symbol
    return halves.transpose(1, 2).flatten(0, 1).flatten(1, 2).permute(2, 0, 1)


def count_named(probabilities: torch.Tensor, symbols: torch.Tensor, grid: int) -> tuple[int, int]:
    """Count characters of a view that are named, and all of them, of (G², S, symbols) and (G², S)."""
    around = 9 * F.avg_pool2d(on_grid(probabilities, grid)[None], 3, stride=1, padding=1)[0]
    true = on_grid(F.one_hot(symbols, probabilities.shape[-1]).float(), grid)
    true[:FIRST] = 0
    return int(((around > 0.5) & (true > 0)).sum()), int(true.sum())


@torch.no_grad()
def measure_legibility(network: Network, phase: Phase, pages: int, seed: int) -> dict[Group, tuple[int, int]]:
    """Count characters that are named, and all, by kind of page and size of its print.

    Args:
        network: the network, whose projector is not used.
        phase: phase whose pages are drawn.
        pages: number of pages.
        seed: seed of the pages.
    """
    counts: dict[Group, np.ndarray] = defaultdict(lambda: np.zeros(2, int))
    for index in range(pages):
        document = draw_document(network.setting, phase, seed, index)
        if not len(document.glyphs.sizes):
            continue
        scale = document.scale(phase.views * network.setting.view_size**2)
        size = float(np.median(document.glyphs.sizes)) * scale
        least, end = next(sizes for sizes in pairwise(SIZES) if size < sizes[1])
        for patches, _, symbols in cut_crops(document, network.setting, phase.views, CROPS, random.Random(index)):
            tokens = network.window_tokens(network.patch_features(patches.float()[None]))
            probabilities = network.readout(tokens)[0].softmax(dim=-1)
            counts[document.kind == SCRIBBLE, least, end] += count_named(
                probabilities, symbols, network.setting.query_grid
            )
    return {group: (int(named), int(total)) for group, (named, total) in sorted(counts.items())}
