"""The code between tower and language model: which characters stand in the window of each image token.

A window has an upper and a lower half with half of its slots each, which hold the characters of the half in reading
order: windows are higher than lines, and in one row of slots the characters of two lines would be mixed. Each
symbol has a fixed random vector, the same in all slots; the code of a window is these vectors side by side, whose
first channels say where in its view the window lies. The vision half learns to give it, the language model to read it.
A character that begins a word is a symbol of its own: a space is in no window, and without it the language model would
have to guess.

Shapes: G query grid, S slots, T image tokens of a page in the order of the sequence.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from llava_uhd.model.layout import TokenGrid, plan_layout
from llava_uhd.model.slicing import SlicePlan, plan_slices
from llava_uhd.synthetic.varied import Glyphs, VariedDocument
from llava_uhd.synthetic.varied.fonts import CHARACTERS

from .setting import Setting

EMPTY, SMALL, FIRST = 0, 1, 2
SYMBOL_OF = {character: FIRST + place for place, character in enumerate(CHARACTERS)}
# Symbols without a word's beginning; a character that begins a word is its symbol plus `BEGINS`.
NUM_PLAIN = FIRST + len(CHARACTERS)
BEGINS = len(CHARACTERS)
NUM_SYMBOLS = NUM_PLAIN + BEGINS
# Channels of a slot for the window's location, and the one that tells whether a word begins, with its size.
LOCATION, BEGINNING = 2, 2
BEGINNING_SIZE = 2.0
# Letters below this size in a view, in pixels, are too small to read.
LEGIBLE = 5.0
HALVES = 2
# Standard deviation, in windows, of a character's place where the language model learns from codes: at the edge of a
# window no reader can be sure.
JITTER = 0.04


@lru_cache(maxsize=4)
def symbol_vectors(setting: Setting) -> torch.Tensor:
    """(symbols, width / S), the same in every run.

    The vector of an empty slot is zero, and the first channels of all, which are left to the window's location. A
    character that begins a word differs from the same inside of one in one channel.
    """
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(NUM_PLAIN, setting.width // setting.slots, generator=generator)
    plain[:, :LOCATION] = 0
    plain[:, BEGINNING] = -BEGINNING_SIZE
    plain[EMPTY] = 0
    begins = plain[FIRST:].clone()
    begins[:, BEGINNING] = BEGINNING_SIZE
    return torch.cat([plain, begins])


@lru_cache(maxsize=4)
def window_locations(setting: Setting) -> torch.Tensor:
    """(G², S, 2), sines and cosines of the row and column of each window of a view.

    The language model can follow a line by them, window by window, without comparing letters again. Of the slices it
    knows the order from the positions of the sequence.
    """
    grid, count = setting.query_grid, LOCATION * setting.slots // 4
    angles = torch.arange(grid)[:, None] * math.pi / grid * 2.0 ** torch.arange(count)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # G, 2 · count
    both = torch.cat([waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)], dim=-1).flatten(0, 1)
    return F.pad(both, (0, LOCATION * setting.slots - both.shape[1])).unflatten(1, (-1, LOCATION))


def encode_symbols(
    symbols: torch.Tensor, vectors: torch.Tensor, locations: torch.Tensor | None = None
) -> torch.Tensor:
    """Codes of windows: (..., S), and (..., S, 2) of `window_locations`, to (..., width)."""
    codes = vectors[symbols]
    if locations is not None:
        codes[..., :LOCATION] = locations
    return codes.flatten(-2)


def plan_of(document: VariedDocument, setting: Setting, max_slices: int) -> SlicePlan:
    """Views of a document as the image processor cuts them."""
    return plan_slices(
        *document.size, max_slices=max_slices, view_size=setting.view_size, patch_size=setting.patch_size
    )


def token_grid(setting: Setting) -> TokenGrid:
    return TokenGrid(query_grid=setting.query_grid)


def window_symbols(
    document: VariedDocument, shape: tuple[int, int], slots: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Characters in each window of an image that is cut into so many.

    Args:
        document: page or image.
        shape: (rows, columns) of windows over the whole image.
        slots: most characters of a window.
        rng: moves the characters a little.

    Returns:
        (rows, columns, S) symbols.
    """
    glyphs = document.glyphs
    return _place(glyphs, *_halves(document, glyphs, shape, rng), shape, slots)


def crop_symbols(document: VariedDocument, scale: float, left: int, top: int, setting: Setting) -> np.ndarray:
    """Characters in each window of a view at any place of a page enlarged by `scale`: (G², S)."""
    glyphs, grid = document.glyphs, setting.query_grid
    side = setting.view_size / grid
    column, half = np.floor((scale * glyphs.points - (left, top)) / (side, side / HALVES)).astype(int).T
    symbols = _place(glyphs, half, column, (grid, grid), setting.slots).reshape(-1, setting.slots)
    return _without_small(symbols, glyphs, scale)


def _place(glyphs: Glyphs, row: np.ndarray, column: np.ndarray, shape: tuple[int, int], slots: int) -> np.ndarray:
    """Put characters into the slots of the half windows of these rows and columns, in reading order."""
    rows, columns, most = HALVES * shape[0], shape[1], slots // HALVES
    symbols = np.full((rows, columns, most), EMPTY, np.int64)
    if not glyphs.text:
        return _join(symbols)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    names = np.array([SYMBOL_OF[character] for character in glyphs.text]) + BEGINS * glyphs.begins
    # Lines of small print from top to bottom, each from left to right; a run is a part of one line.
    line = _lines(glyphs)
    order = np.lexsort((glyphs.points[:, 0], line, column, row))
    order = order[inside[order]]
    window = row[order] * columns + column[order]
    starts = np.flatnonzero(np.r_[True, window[1:] != window[:-1]]) if len(window) else np.zeros(0, int)
    place = np.arange(len(window)) - np.repeat(starts, np.diff(np.r_[starts, len(window)]))
    kept = place < most
    symbols.reshape(rows * columns, most)[window[kept], place[kept]] = names[order][kept]
    return _join(symbols)


def _join(symbols: np.ndarray) -> np.ndarray:
    """Symbols of half windows to those of windows: (2 · rows, columns, S / 2) to (rows, columns, S)."""
    halves, columns, slots = symbols.shape
    return symbols.reshape(-1, HALVES, columns, slots).swapaxes(1, 2).reshape(-1, columns, HALVES * slots)


def _halves(
    document: VariedDocument, glyphs: Glyphs, shape: tuple[int, int], rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Row, in halves of a window, and column of the half window in which the middle of each character lies."""
    width, height = document.size
    column, row = glyphs.points[:, 0] * shape[1] / width, glyphs.points[:, 1] * shape[0] / height
    if rng is not None:
        # A line is moved up or down as a whole: that it stands between two halves is true of all its characters.
        moved = rng.normal(0, JITTER, glyphs.runs.max(initial=0) + 1)
        column, row = rng.normal(column, JITTER), row + moved[glyphs.runs]
    return np.floor(HALVES * row).astype(int), np.floor(column).astype(int)


def _lines(glyphs: Glyphs) -> np.ndarray:
    """A number for the line of each character: that of its run's middle, in half font sizes from the top."""
    counts = np.bincount(glyphs.runs)
    means = np.bincount(glyphs.runs, glyphs.points[:, 1]) / np.maximum(counts, 1)
    return np.round(means[glyphs.runs] / (0.5 * glyphs.sizes))


def view_symbols(
    document: VariedDocument, plan: SlicePlan, setting: Setting, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Symbols of all views, slices row by row, then the overview: (views, G², S)."""
    grid, slots = setting.query_grid, setting.slots
    columns, rows = plan.grid or (1, 1)
    whole = window_symbols(document, (rows * grid, columns * grid), slots, rng)
    views = whole.reshape(rows, grid, columns, grid, slots).swapaxes(1, 2).reshape(-1, grid * grid, slots)
    if plan.grid is None:
        return views
    return np.concatenate([views, _overview(document, plan, (grid, grid), slots, rng)[None]])


def _overview(
    document: VariedDocument, plan: SlicePlan, shape: tuple[int, int], slots: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Symbols of the overview, (rows · columns, S): characters if large enough, else that there is text."""
    symbols = window_symbols(document, shape, slots, rng).reshape(-1, slots)
    return _without_small(symbols, document.glyphs, plan.overview_size[0] / document.size[0])


def _without_small(symbols: np.ndarray, glyphs: Glyphs, scale: float) -> np.ndarray:
    """Symbols, (..., S), of a page whose print is too small at this scale: that there is text, alone."""
    if len(glyphs.sizes) and np.median(glyphs.sizes) * scale < LEGIBLE:
        text = (symbols != EMPTY).any(axis=1)
        symbols[:] = EMPTY
        symbols[text, 0] = SMALL
    return symbols


def sequence_symbols(
    document: VariedDocument, plan: SlicePlan, setting: Setting, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Symbols in the order of the image tokens: (T, S)."""
    order = plan_layout(plan, token_grid(setting), "stitched").order
    return view_symbols(document, plan, setting, rng).reshape(-1, setting.slots)[list(order)]


def row_stride(plan: SlicePlan, setting: Setting) -> int:
    """Tokens of a row of windows in the sequence: a row separator ends each of a raster of slices, none of a view."""
    return (plan.grid or (1, 1))[0] * setting.query_grid + (plan.grid is not None)


def run_positions(document: VariedDocument, plan: SlicePlan, setting: Setting) -> list[np.ndarray]:
    """Return for each run of a page where each visible character stands, (N, 2).

    That is the position of its token in the sequence of the image, and 1 if it stands in the lower half of its window.
    """
    grid, glyphs = setting.query_grid, document.glyphs
    columns, rows = plan.grid or (1, 1)
    half, column = _halves(document, glyphs, (rows * grid, columns * grid), None)
    half, column = np.clip(half, 0, HALVES * rows * grid - 1), np.clip(column, 0, columns * grid - 1)
    stride = row_stride(plan, setting)
    ends = np.bincount(glyphs.runs, minlength=len(document.sheet.texts) if document.sheet else 0).cumsum()
    return np.split(np.column_stack([half // HALVES * stride + column, half % HALVES]), ends[:-1])
