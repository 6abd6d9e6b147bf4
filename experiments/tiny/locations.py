"""Tokens that name the window in which the next characters of an answer are printed.

An answer that is printed names, before the characters of each window, the window's row and column in its view. To go
from one character to the next is then to look at a place that was just written down, instead of to find the last
characters again among all that resemble them. They are special tokens, which decoding leaves out.
"""

from ..tiny_v1.tokenizer import byte_id

# After the last byte.
LOCATION_ID = byte_id("\0") + 256


def location_tokens(grid: int) -> list[str]:
    """The tokens of a view of so many rows and columns of windows, row by row."""
    return [f"<|{row},{column}|>" for row in range(grid) for column in range(grid)]


def location_id(position: int, stride: int, grid: int) -> int:
    """Token of the window at a position of an image's sequence.

    Args:
        position: position from the image's first token on.
        stride: tokens of a row of windows in the sequence, over all slices.
        grid: rows and columns of windows of a view.
    """
    row, column = divmod(position, stride)
    return LOCATION_ID + row % grid * grid + column % grid
