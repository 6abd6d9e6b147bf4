"""Errors of the vision half on the characters of drawn pages, by size of print.

A character between two slots may be named in the neighboring one, which a language model can follow. So not slots are
compared but lines: the symbols of a row of half windows from left to right, without empty slots. An error is an
insertion, a deletion or a substitution; a character with and without a word's beginning are two.
"""

import random
from collections import defaultdict
from itertools import pairwise

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from llava_uhd.synthetic.varied import SCRIBBLE

from .crops import cut_crops
from .network import Network
from .samples import draw_document
from .setting import Phase
from .symbols import EMPTY, HALVES

# Whether the characters are random, and from which to which size the page's print is, in pixels.
Group = tuple[bool, int, int]
SIZES = (0, 10, 12, 15, 20, 99)
CROPS = 4


def lines_of(symbols: torch.Tensor, grid: int) -> list[list[int]]:
    """The symbols of each row of half windows of a view: (G², S) to 2 · G lists."""
    rows = symbols.unflatten(0, (grid, grid)).unflatten(-1, (HALVES, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
    return [[symbol for symbol in row if symbol != EMPTY] for row in rows.tolist()]


@torch.no_grad()
def measure_legibility(network: Network, phase: Phase, pages: int, seed: int) -> dict[Group, tuple[int, int]]:
    """Count errors and characters by kind of page and size of its print.

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
        group = document.kind == SCRIBBLE, least, end
        for patches, _, symbols in cut_crops(document, network.setting, phase.views, CROPS, random.Random(index)):
            tokens = network.window_tokens(network.patch_features(patches.float()[None]))
            named = network.readout(tokens)[0].argmax(dim=-1)
            grid = network.setting.query_grid
            for found, printed in zip(lines_of(named, grid), lines_of(symbols, grid), strict=True):
                counts[group] += [Levenshtein.distance(found, printed), len(printed)]
    return {group: (int(errors), int(total)) for group, (errors, total) in sorted(counts.items())}
