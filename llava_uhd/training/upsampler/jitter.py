"""Small random moves of an image, and of the maps that belong to it: shift, zoom, mirror."""

import random
from dataclasses import dataclass

import torch
from torch.nn import functional as F

ZOOM_SHARE = FLIP_SHARE = 0.5


@dataclass(frozen=True)
class Move:
    """A move.

    Attributes:
        zoom: zoom factor, at least 1.
        top, left: offset of the moved image in the padded and zoomed one, in pixels.
        flip: mirrored left to right.
    """

    zoom: float
    top: int
    left: int
    flip: bool


def draw_move(size: tuple[int, int], max_pad: int, max_zoom: float, rng: random.Random) -> Move:
    """A random move of images of (height, width): half of them zoom, half mirror."""
    flip = rng.random() > FLIP_SHARE
    zoom = rng.uniform(1.0, max_zoom) if rng.random() > ZOOM_SHARE else 1.0
    # As `move` rounds, so that what is cut out lies within the image.
    room = [int((side + 2 * max_pad) * zoom) - side for side in size]
    return Move(zoom, rng.randint(0, room[0]), rng.randint(0, room[1]), flip)


def move(x: torch.Tensor, by: Move, max_pad: int) -> torch.Tensor:
    """Moves images or maps (N, C, H, W): padded by reflection, zoomed bilinearly, cut to the old size.

    Raises:
        ValueError: the padding does not fit a side, or the cut lies outside.
    """
    height, width = x.shape[2:]
    if max_pad >= min(height, width):
        raise ValueError(f"max_pad {max_pad} must be below the sides of {height} x {width} to reflect")
    padded = F.pad(x, (max_pad,) * 4, mode="reflect")
    if by.zoom > 1:
        padded = F.interpolate(padded, scale_factor=by.zoom, mode="bilinear")
    cut = padded[:, :, by.top : by.top + height, by.left : by.left + width]
    if cut.shape != x.shape:
        raise ValueError(f"{by} leads out of an image of {height} x {width}")
    return cut.flip(3) if by.flip else cut
