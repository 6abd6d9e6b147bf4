"""Tokens that name the half window in which the next characters of an answer are printed.

An answer that is printed names, before the characters of each half window, its row and column in its view. To go
from one character to the next is then to look at a place that was just written down, instead of to find the last
characters again among all that resemble them. They are special tokens, which decoding leaves out.
"""

from ..tiny_v1.tokenizer import byte_id
from .symbols import HALVES

# After the last byte.
LOCATION_ID = byte_id("\0") + 256


def location_tokens(grid: int) -> list[str]:
    """The tokens of a view of so many rows and columns of windows, half row by half row."""
    return [f"<|{half / HALVES:g},{column}|>" for half in range(HALVES * grid) for column in range(grid)]


def location_id(position: int, half: int, stride: int, grid: int) -> int:
    """Token of a half of the window at a position of an image's sequence.

    Args:
        position: position from the image's first token on.
        half: 0 for the upper, 1 for the lower half.
        stride: tokens of a row of windows in the sequence, over all slices.
        grid: rows and columns of windows of a view.
    """
    row, column = divmod(position, stride)
    return LOCATION_ID + (row % grid * HALVES + half) * grid + column % grid


def half_and_column(token: int, grid: int) -> tuple[int, int]:
    """Half row and column, in its view, of a location token."""
    return divmod(token - LOCATION_ID, grid)
