"""The code between the two halves: which characters stand in the window of each image token.

A window holds up to four characters, in reading order; the overview's are too small to read. Each (place, symbol) has
a fixed random vector, and a window's code is the four vectors side by side. The vision half learns to give it, the
decoder to read it.

Shapes: T image tokens of a document in the order of the sequence, S = 4 places.
"""

import random

import numpy as np
import torch

from llava_uhd.model.layout import TokenGrid, plan_layout
from llava_uhd.model.slicing import SlicePlan, plan_slices
from llava_uhd.synthetic import Document, Text

from .setting import MAX_SLICES, PATCH_SIZE, QUERY_GRID, VIEW_SIZE, WIDTH

PLACES = 4
EMPTY, SMALL = 0, 1
FIRST_CHARACTER = 2
NUM_SYMBOLS = FIRST_CHARACTER + 95
TOKEN_GRID = TokenGrid(query_grid=QUERY_GRID)
# Standard deviation, in windows, of a character's and a line's place: at the edge of a window no reader can be sure.
JITTER = 0.04


def symbol_vectors() -> torch.Tensor:
    """(S, symbols, WIDTH / S), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PLACES, NUM_SYMBOLS, WIDTH // PLACES, generator=generator)


def encode_symbols(symbols: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(..., S) symbols to (..., WIDTH) codes."""
    return torch.cat([vectors[place][symbols[..., place]] for place in range(PLACES)], dim=-1)


def plan_of(document: Document) -> SlicePlan:
    width, height = document.page.size
    return plan_slices(width, height, max_slices=MAX_SLICES, view_size=VIEW_SIZE, patch_size=PATCH_SIZE)


def view_symbols(document: Document, plan: SlicePlan, rng: random.Random | None = None) -> list[np.ndarray]:
    """The symbols of every view, slices row by row, then the overview: (G², S) each.

    The window of a token is here the patch of the same row and column: RoI-Align, as published, samples half a pixel
    late, so that on a map of about G x G window i sees mostly pixel i. A last row or column of windows without patches
    is empty.

    Args:
        document: document whose characters are located.
        plan: slices of the document.
        rng: moves the characters a little, for a decoder that must live with a reader in doubt.
    """
    columns, rows = plan.grid or (1, 1)
    height, width = plan.view_shapes[0]
    windows = _windows(document, columns * width, rows * height, rng)
    views = np.full((rows, columns, QUERY_GRID, QUERY_GRID, PLACES), EMPTY)
    for (row, column), inside in windows.items():
        (slice_row, i), (slice_column, j) = divmod(row, height), divmod(column, width)
        if i < QUERY_GRID and j < QUERY_GRID:
            for place, (_, character) in enumerate(sorted(inside)[:PLACES]):
                views[slice_row, slice_column, i, j, place] = ord(character) - 32 + FIRST_CHARACTER
    symbols = list(views.reshape(rows * columns, QUERY_GRID**2, PLACES))
    if plan.grid is not None:
        overview = np.full((QUERY_GRID, QUERY_GRID, PLACES), EMPTY)
        for row, column in _windows(document, QUERY_GRID, QUERY_GRID, rng):
            overview[row, column, 0] = SMALL
        symbols.append(overview.reshape(QUERY_GRID**2, PLACES))
    return symbols


def _windows(
    document: Document, columns: int, rows: int, rng: random.Random | None
) -> dict[tuple[int, int], list[tuple[float, str]]]:
    """The characters in each (row, column) of a page cut into so many windows, with their x."""
    width, height = document.page.size
    windows: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for character, x, y in document.page.characters():
        column, row = x * columns / width, y * rows / height
        if rng is not None:
            column, row = rng.gauss(column, JITTER), rng.gauss(row, JITTER)
        if 0 <= column < columns and 0 <= row < rows:
            windows.setdefault((int(row), int(column)), []).append((x, character))
    return windows


def sequence_symbols(document: Document, plan: SlicePlan, rng: random.Random | None = None) -> np.ndarray:
    """The symbols in the order of the image tokens: (T, S)."""
    order = plan_layout(plan, TOKEN_GRID, "stitched").order
    return np.concatenate(view_symbols(document, plan, rng))[list(order)]


def character_positions(document: Document, plan: SlicePlan, text: Text) -> list[int]:
    """Return the position of each character's window in the sequence of its image."""
    width, height = document.page.size
    (columns, rows), (patch_rows, patch_columns) = plan.grid or (1, 1), plan.view_shapes[0]
    stride = columns * QUERY_GRID + (plan.grid is not None)  # a row separator ends each row of the raster
    positions = []
    for _, x, y in text.characters():
        x, y = document.page.turn(x, y)
        column = _window_along(int(x * columns * patch_columns / width), columns, patch_columns)
        row = _window_along(int(y * rows * patch_rows / height), rows, patch_rows)
        positions.append(row * stride + column)
    return positions


def _window_along(patch: int, slices: int, patches: int) -> int:
    """The place of a patch's window along one side of the raster of all slices' windows."""
    index, inside = divmod(min(max(patch, 0), slices * patches - 1), patches)
    return index * QUERY_GRID + min(inside, QUERY_GRID - 1)
