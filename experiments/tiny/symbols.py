"""The code between tower and language model: which characters stand in the window of each image token.

A window has an upper and a lower half with half of its slots each: windows are higher than lines, and in one row of
slots the characters of two lines would be mixed. A character stands in the slot in whose part of the half its middle
lies. In reading order without gaps, a character at the edge of a window would move all others by a slot. The other
slots whose middles it covers name it, too, as one that is continued: what covers a point is easier to see than where
its middle is, so that a character is named even where its place is uncertain. Each symbol has a fixed random vector,
the same in all slots; the code of a window is these vectors side by side, whose first channels say where in its view
the window lies. The vision half learns to give it, the language model to read it. A character that begins a word is a
symbol of its own: a space is in no window, and without it the language model would have to guess.

Shapes: G query grid, S slots, T image tokens of a page in the order of the sequence.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from llava_uhd.model.layout import TokenGrid, plan_layout
from llava_uhd.model.slicing import SlicePlan, plan_slices
from llava_uhd.synthetic.varied import Glyphs
from llava_uhd.synthetic.varied.fonts import CHARACTERS

from .fitting import AnyPage
from .locations import HALVES, SIDES
from .setting import Setting

EMPTY, SMALL, FIRST = 0, 1, 2
SYMBOL_OF = {character: FIRST + place for place, character in enumerate(CHARACTERS)}
# Plain symbols; a character that begins a word is its symbol plus `BEGINS`, one that is continued plus `CONTINUED`.
NUM_PLAIN = FIRST + len(CHARACTERS)
BEGINS, CONTINUED = len(CHARACTERS), 2 * len(CHARACTERS)
NUM_SYMBOLS = NUM_PLAIN + CONTINUED
# Channels of a slot for the window's location, one that tells whether a word begins and one whether a character's
# middle is here, with the size of these two, and the size of the others where a character is continued.
LOCATION, BEGINNING, MIDDLE = 2, 2, 3
FLAG_SIZE, CONTINUED_SIZE = 2.0, 0.5
# Half the height of the area that a character covers, in font sizes.
HALF_HEIGHT = 0.45
# Letters below this size in a view, in pixels, are too small to read.
LEGIBLE = 5.0
# Standard deviation, in windows, of a character's place where the language model learns from codes: at the edge of a
# slot no reader can be sure. The vision half gives a mean of the codes that it holds possible, with such a character
# partly in both slots, so the language model gets the mean of `DRAFTS` codes. With 0.1 a mean holds 60 % of the
# symbols exactly, as the vision half does on drawn pages (59 %); with 0.05 it would be 79 %.
JITTER = 0.1
DRAFTS = 4


class Areas(NamedTuple):
    """Middles and sizes of characters, from left to right in windows and from top to bottom in half windows."""

    column: np.ndarray
    width: np.ndarray
    half: np.ndarray
    height: np.ndarray


@lru_cache(maxsize=4)
def symbol_vectors(setting: Setting) -> torch.Tensor:
    """(symbols, width / S), the same in every run.

    The vector of an empty slot is zero, and the first channels of all, which are left to the window's location. The
    symbols of a character differ in two channels, and in size where it is continued.
    """
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(NUM_PLAIN, setting.width // setting.slots, generator=generator)
    plain[:, :LOCATION] = 0
    plain[:, BEGINNING], plain[:, MIDDLE] = -FLAG_SIZE, FLAG_SIZE
    plain[EMPTY] = 0
    begins = plain[FIRST:].clone()
    begins[:, BEGINNING] = FLAG_SIZE
    continued = CONTINUED_SIZE * plain[FIRST:]
    continued[:, BEGINNING], continued[:, MIDDLE] = 0, -FLAG_SIZE
    return torch.cat([plain, begins, continued])


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
    """Codes of windows: (..., S) symbols, and (..., S, 2) of `window_locations`, to (..., width)."""
    codes = vectors[symbols]
    if locations is not None:
        codes[..., :LOCATION] = locations
    return codes.flatten(-2)


def plan_of(document: AnyPage, setting: Setting, max_slices: int) -> SlicePlan:
    """Views of a document as the image processor cuts them."""
    return plan_slices(
        *document.size,
        max_slices=max_slices,
        view_size=setting.view_size,
        patch_size=setting.patch_size,
        pad_to_grid=True,
    )


def token_grid(setting: Setting) -> TokenGrid:
    return TokenGrid(query_grid=setting.query_grid)


def window_symbols(
    document: AnyPage,
    shape: tuple[int, int],
    slots: int,
    rng: np.random.Generator | None = None,
    padded_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Characters in each window of an image that is cut into so many.

    Args:
        document: page or image.
        shape: (rows, columns) of windows over the whole image.
        slots: most characters of a window.
        rng: moves the characters a little.
        padded_size: size to which the image is padded before it is cut, in pixels; None for its own.

    Returns:
        (rows, columns, S) symbols.
    """
    return _place(document.glyphs, _areas(document, shape, rng, padded_size), shape, slots)


def crop_symbols(document: AnyPage, scale: float, left: int, top: int, setting: Setting) -> np.ndarray:
    """Characters in each window of a view at any place of a page enlarged by `scale`: (G², S)."""
    glyphs, grid = document.glyphs, setting.query_grid
    side = setting.view_size / grid
    column, half = ((scale * glyphs.points - (left, top)) / (side, side / HALVES)).T
    width = scale * (glyphs.edges[:, 1] - glyphs.edges[:, 0]) / side
    height = scale * 2 * HALF_HEIGHT * glyphs.sizes / (side / HALVES)
    areas = Areas(column, width, half, height)
    symbols = _place(glyphs, areas, (grid, grid), setting.slots).reshape(-1, setting.slots)
    if len(glyphs.sizes) and np.median(glyphs.sizes) * scale < LEGIBLE:
        return _without_names(symbols)
    return symbols


def _place(glyphs: Glyphs, areas: Areas, shape: tuple[int, int], slots: int) -> np.ndarray:
    """Put characters into slots: by their middles, and as continued ones where they cover the middle of a free slot.

    Of two characters in one slot the right one moves on to the next, and where there is none, the left one back.
    """
    rows, columns, most = HALVES * shape[0], shape[1], slots // HALVES
    names = np.array([SYMBOL_OF[character] for character in glyphs.text], np.int64)
    symbols = _cover(names, areas, rows, columns * most, most).reshape(rows, columns, most)
    column, half = areas.column, areas.half
    inside = (half >= 0) & (half < rows) & (column >= 0) & (column < columns)
    if not inside.any():
        return _join(symbols)
    window = np.floor(half).astype(int) * columns + np.floor(column).astype(int)
    # Lines of small print from top to bottom, each from left to right; a run is a part of one line.
    order = np.lexsort((glyphs.points[:, 0], _lines(glyphs), window))
    order = order[inside[order]]
    window, slot = window[order], np.floor(column[order] % 1 * most).astype(int)
    starts = np.flatnonzero(np.r_[True, window[1:] != window[:-1]])
    counts = np.diff(np.r_[starts, len(window)])
    index = np.arange(len(window)) - np.repeat(starts, counts)
    # Slots that rise in each half window: slots less indices must not fall. The half windows are set apart, so that
    # one running maximum serves all of them.
    apart = np.repeat(np.arange(len(starts)), counts) * 2 * (most + len(window))
    slot = np.maximum.accumulate(slot - index + apart) - apart + index
    slot = np.minimum(slot, most - np.repeat(np.minimum(counts, most), counts) + index)
    kept = index < most
    placed = (names + BEGINS * glyphs.begins)[order][kept]
    symbols.reshape(rows * columns, most)[window[kept], slot[kept]] = placed
    return _join(symbols)


def _cover(names: np.ndarray, areas: Areas, rows: int, columns: int, most: int) -> np.ndarray:
    """Continued characters in the slots whose middles they cover: (rows, columns) of slots, `most` of a window."""
    symbols = np.full((rows, columns), EMPTY, np.int64)

    def from_to(middle: np.ndarray, size: np.ndarray) -> tuple[list[int], list[int]]:
        first, end = (np.ceil(middle + sign * size / 2 - 0.5).clip(0).astype(int) for sign in (-1, 1))
        return first.tolist(), end.tolist()

    left, right = from_to(areas.column * most, areas.width * most)
    top, bottom = from_to(areas.half, areas.height)
    for name, first, end, start, stop in zip(names.tolist(), top, bottom, left, right, strict=True):
        symbols[first:end, start:stop] = name + CONTINUED
    return symbols


def without_continued(symbols: torch.Tensor) -> torch.Tensor:
    """Symbols of which each character is in one slot alone, that of its middle."""
    return symbols.masked_fill(symbols >= FIRST + CONTINUED, EMPTY)


def _join(symbols: np.ndarray) -> np.ndarray:
    """Symbols of half windows to those of windows: (2 · rows, columns, S / 2) to (rows, columns, S)."""
    halves, columns, slots = symbols.shape
    return symbols.reshape(-1, HALVES, columns, slots).swapaxes(1, 2).reshape(-1, columns, HALVES * slots)


def _areas(
    document: AnyPage,
    shape: tuple[int, int],
    rng: np.random.Generator | None,
    padded_size: tuple[int, int] | None,
) -> Areas:
    """Areas of the characters of an image that is cut into (rows, columns) of windows."""
    glyphs, size = document.glyphs, padded_size or document.size
    # The image is in the middle of the padding.
    left, top = ((whole - side) // 2 for whole, side in zip(size, document.size, strict=True))
    column, row = (glyphs.points[:, 0] + left) * shape[1] / size[0], (glyphs.points[:, 1] + top) * shape[0] / size[1]
    if rng is not None:
        # A line is moved up or down as a whole: that it stands between two halves is true of all its characters.
        moved = rng.normal(0, JITTER, glyphs.runs.max(initial=0) + 1)
        column, row = rng.normal(column, JITTER), row + moved[glyphs.runs]
    width = (glyphs.edges[:, 1] - glyphs.edges[:, 0]) * shape[1] / size[0]
    height = 2 * HALF_HEIGHT * glyphs.sizes * HALVES * shape[0] / size[1]
    return Areas(column, width, HALVES * row, height)


def _lines(glyphs: Glyphs) -> np.ndarray:
    """A number for the line of each character: that of its run's middle, in half font sizes from the top."""
    counts = np.bincount(glyphs.runs)
    means = np.bincount(glyphs.runs, glyphs.points[:, 1]) / np.maximum(counts, 1)
    return np.round(means[glyphs.runs] / (0.5 * glyphs.sizes))


def view_symbols(
    document: AnyPage, plan: SlicePlan, setting: Setting, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Symbols of all views, slices row by row, then the overview: (views, G², S).

    Of an overview beside slices the code says only where there is text: the slices show it larger, and the windows of
    an overview that is no square lie across its patches.
    """
    grid, slots = setting.query_grid, setting.slots
    columns, rows = plan.grid or (1, 1)
    whole = window_symbols(document, (rows * grid, columns * grid), slots, rng, plan.padded_size)
    views = whole.reshape(rows, grid, columns, grid, slots).swapaxes(1, 2).reshape(-1, grid * grid, slots)
    if plan.grid is None:
        return views
    overview = window_symbols(document, (grid, grid), slots, rng, plan.padded_size).reshape(-1, slots)
    return np.concatenate([views, _without_names(overview)[None]])


def _without_names(symbols: np.ndarray) -> np.ndarray:
    """Symbols, (..., S), that say only where there is text."""
    text = (symbols != EMPTY).any(axis=-1)
    found = np.full_like(symbols, EMPTY)
    found[text, 0] = SMALL
    return found


def sequence_symbols(
    document: AnyPage, plan: SlicePlan, setting: Setting, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Symbols in the order of the image tokens: (T, S)."""
    order = plan_layout(plan, token_grid(setting), "stitched").order
    return view_symbols(document, plan, setting, rng).reshape(-1, setting.slots)[list(order)]


def row_stride(plan: SlicePlan, setting: Setting) -> int:
    """Tokens of a row of windows in the sequence: a row separator ends each of a raster of slices, none of a view."""
    return (plan.grid or (1, 1))[0] * setting.query_grid + (plan.grid is not None)


def run_positions(document: AnyPage, plan: SlicePlan, setting: Setting) -> list[np.ndarray]:
    """Return for each run of a page where each visible character stands, (N, 2).

    That is the position of its token in the sequence of the image, and the number of its quarter of the window.
    """
    grid, glyphs = setting.query_grid, document.glyphs
    columns, rows = plan.grid or (1, 1)
    areas = _areas(document, (rows * grid, columns * grid), None, plan.padded_size)
    half = np.clip(np.floor(areas.half).astype(int), 0, HALVES * rows * grid - 1)
    side = np.clip(np.floor(SIDES * areas.column).astype(int), 0, SIDES * columns * grid - 1)
    stride = row_stride(plan, setting)
    ends = np.bincount(glyphs.runs, minlength=len(document.sheet.texts) if document.sheet else 0).cumsum()
    position = half // HALVES * stride + side // SIDES
    return np.split(np.column_stack([position, half % HALVES * SIDES + side % SIDES]), ends[:-1])
