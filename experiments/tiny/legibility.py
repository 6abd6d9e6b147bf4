"""Characters of drawn pages that the vision half names, by size of print.

A character counts as named if it is held more probable than not in its slot or in one beside it, as one that begins a
word or is continued or not, and as placed if the probabilities that its middle is in one of these slots add up to more
than a half: a character between two slots is in part in both, which a language model can follow.
"""

import random
from collections import defaultdict
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from llava_uhd.synthetic.varied import SCRIBBLE

from .crops import cut_crops
from .locations import HALVES
from .network import Network
from .samples import draw_document
from .setting import Phase
from .symbols import CONTINUED, FIRST, without_continued

# Whether the characters are random, and from which to which size the page's print is, in pixels.
Group = tuple[bool, int, int]
SIZES = (0, 10, 12, 15, 20, 99)
CROPS = 4


def on_grid(probabilities: torch.Tensor, grid: int) -> torch.Tensor:
    """Probabilities by place: (G², S, symbols) to (symbols, 2 · G, G · S / 2)."""
    halves = probabilities.unflatten(0, (grid, grid)).unflatten(2, (HALVES, -1))  # row, column, half, slot, symbol
    return halves.transpose(1, 2).flatten(0, 1).flatten(1, 2).permute(2, 0, 1)


def count_named(probabilities: torch.Tensor, symbols: torch.Tensor, grid: int) -> tuple[int, int, int]:
    """Count characters of a view that are named, that are placed, and all, of (G², S, symbols) and (G², S)."""
    plain, begins, continued = on_grid(probabilities, grid)[FIRST:].unflatten(0, (3, -1))
    here = plain + begins
    named = F.max_pool2d((here + continued)[None], 3, stride=1, padding=1)[0] > 0.5
    placed = 9 * F.avg_pool2d(here[None], 3, stride=1, padding=1)[0] > 0.5
    middles = F.one_hot(without_continued(symbols), probabilities.shape[-1])
    true = on_grid(middles, grid)[FIRST : FIRST + CONTINUED].unflatten(0, (2, -1)).sum(dim=0) > 0
    return int((named & true).sum()), int((placed & true).sum()), int(true.sum())


@torch.no_grad()
def measure_legibility(network: Network, phase: Phase, pages: int, seed: int) -> dict[Group, tuple[int, int, int]]:
    """Count characters that are named, that are placed, and all, by kind of page and size of its print.

    Args:
        network: the network, whose projector is not used.
        phase: phase whose pages are drawn.
        pages: number of pages.
        seed: seed of the pages.
    """
    counts: dict[Group, np.ndarray] = defaultdict(lambda: np.zeros(3, int))
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
    return {group: (int(named), int(placed), int(total)) for group, (named, placed, total) in sorted(counts.items())}
