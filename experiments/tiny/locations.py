"""Tokens that name the quarter of a window in which the next characters of an answer are printed.

An answer that is printed names, before the characters of each quarter, its row and column in its view, and before that
the slice, where it is another one than before. To go from one character to the next is then to look at a place that
was just written down, instead of to find the last characters again among all that resemble them. They are special
tokens, which decoding leaves out.

Behind a place can stand what is noted of the text there (`llava_uhd.synthetic.varied.notes`), in tokens that decoding
leaves out, too: numbers are compared, and names counted, by what was just written down.

A further one, `FOUND_ID`, comes before the first place. Where the model is unsure of the place, its probability is
spread over many tokens, each of them less probable than the one that begins "not in the document"; whether the page
says anything is thus one decision of its own. Another one stands in its place where the page says it and the model
would not read it rightly; see `doubt.py`.

A model names one place in five or ten a quarter beside the right one. If it had learned from right places alone, it
would then write a letter twice or lose it, so some places of a training sequence are moved (`move_locations`).
"""

import random

from llava_uhd.synthetic.varied.notes import NOTED

from ..tiny_v1.tokenizer import byte_id

# After the last byte.
FOUND_ID = byte_id("\0") + 256
LOCATION_ID = FOUND_ID + 1
# Parts of a window along a column and along a row.
HALVES = 2
SIDES = 2
# Of four places that are moved, three are moved along the row, as in four of five errors of a model.
ALONG_ROW = 0.75


def location_tokens(grid: int, max_slices: int) -> list[str]:
    """The token that says that there is a place, those of a view's quarters and slices, of notes, and that of doubt.

    Args:
        grid: rows and columns of windows of a view.
        max_slices: most slices of an image, and so of their rows and columns.
    """
    rows, columns = range(HALVES * grid), range(SIDES * grid)
    quarters = [f"<|{row / HALVES:g},{column / SIDES:g}|>" for row in rows for column in columns]
    slices = [f"<|slice {row},{column}|>" for row in range(max_slices) for column in range(max_slices)]
    return ["<|found|>", *quarters, *slices, *[f"<|note {sign}|>" for sign in NOTED], "<|doubtful|>"]


def first_slice_id(grid: int) -> int:
    """Token of the first slice, which follows those of the quarters."""
    return LOCATION_ID + HALVES * SIDES * grid**2


def first_note_id(grid: int, max_slices: int) -> int:
    """Token of the first sign of notes, which follow the slices."""
    return first_slice_id(grid) + max_slices**2


def doubtful_id(grid: int, max_slices: int) -> int:
    """Token that begins an answer which declines for doubt, after all others."""
    return first_note_id(grid, max_slices) + len(NOTED)


def is_quarter(token: int, grid: int) -> bool:
    """Return whether a token names a quarter of a window."""
    return LOCATION_ID <= token < first_slice_id(grid)


def slice_id(position: int, stride: int, grid: int, max_slices: int) -> int:
    """Token of the slice that has the window at a position of a cut image's sequence; see `location_id`."""
    row, column = divmod(position, stride)
    return first_slice_id(grid) + row // grid * max_slices + column // grid


def location_id(position: int, quarter: int, stride: int, grid: int) -> int:
    """Token of a quarter of the window at a position of an image's sequence.

    Args:
        position: position from the image's first token on.
        quarter: number of the quarter, row by row.
        stride: tokens of a row of windows in the sequence, over all slices.
        grid: rows and columns of windows of a view.
    """
    row, column = divmod(position, stride)
    half, side = divmod(quarter, SIDES)
    return _quarter_id(row % grid * HALVES + half, column % grid * SIDES + side, grid)


def _quarter_id(row: int, column: int, grid: int) -> int:
    """Token of a row and column of quarters; the inverse of `row_and_column`."""
    return LOCATION_ID + row * SIDES * grid + column


def row_and_column(token: int, grid: int) -> tuple[int, int]:
    """Row and column of a location token among the quarters of its view, whose side is so many windows."""
    return divmod(token - LOCATION_ID, SIDES * grid)


def move_locations(ids: list[int], labels: list[int], part: float, grid: int, rng: random.Random) -> list[int]:
    """Move some places of the answers by a quarter of a window; the labels keep the right ones.

    Args:
        ids: tokens of a sequence.
        labels: tokens to predict, which are those of the sequence in its answers.
        part: part of the places that are moved.
        grid: rows and columns of windows of a view.
        rng: generator of the sample.
    """
    moved = list(ids)
    for place, label in enumerate(labels):
        if is_quarter(label, grid) and rng.random() < part:
            row, column = row_and_column(label, grid)
            step = rng.choice((-1, 1))
            if rng.random() < ALONG_ROW:
                column = (column + step) % (SIDES * grid)  # beyond the edge, in the view beside
            else:
                row = (row + step) % (HALVES * grid)
            moved[place] = _quarter_id(row, column, grid)
    return moved
