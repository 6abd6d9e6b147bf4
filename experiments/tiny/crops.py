"""Training views of the tower's own phases: crops of a page at any offset, and the characters on each patch.

Which character covers a point is a question that a patch can answer from its own pixels; which characters have their
middles in a patch, in reading order, is learned much more slowly, and is asked in the phase after it. Many crops of a
page overlap at other offsets to the grid of patches, so that a page is rendered once for some thirty views.

Shapes: H W patches of a view, p patch side in pixels, R C rows and columns of cells of a patch.
"""

import random

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor

from .earlier import AnyDocument
from .setting import Setting
from .symbols import EMPTY, HALF_HEIGHT, LEGIBLE, SMALL, SYMBOL_OF, crop_symbols

ZOOM = (0.85, 1.15)
CHOICES = 3


def label_map(document: AnyDocument, scale: float) -> np.ndarray:
    """Return the symbol that covers each pixel of a page enlarged by `scale`, (height, width)."""
    width, height = (round(scale * side) for side in document.size)
    found = np.full((height, width), EMPTY, np.uint8)
    glyphs = document.glyphs
    for character, (_, y), size, (left, right) in zip(
        glyphs.text, scale * glyphs.points, scale * glyphs.sizes, scale * glyphs.edges, strict=True
    ):
        top, bottom = round(y - HALF_HEIGHT * size), round(y + HALF_HEIGHT * size)
        symbol = SYMBOL_OF[character] if size >= LEGIBLE else SMALL
        found[max(top, 0) : max(bottom, 0), max(round(left), 0) : max(round(right), 0)] = symbol
    return found


def cell_symbols(labels: np.ndarray, shape: tuple[int, int], patch_size: int, cells: tuple[int, int]) -> np.ndarray:
    """Return the symbols at the middles of the cells of each patch: (H·p, W·p) to (H·W, R·C)."""
    height, width = shape
    rows, columns = cells
    y = ((np.arange(height * rows) + 0.5) * patch_size / rows).astype(int)
    x = ((np.arange(width * columns) + 0.5) * patch_size / columns).astype(int)
    found = labels[np.ix_(y, x)].reshape(height, rows, width, columns)
    return found.swapaxes(1, 2).reshape(height * width, rows * columns)


def cut_crops(
    document: AnyDocument, setting: Setting, views: int, count: int, rng: random.Random
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return views at random places of a page, about so large as its slices show it before its letters are fitted.

    Of `CHOICES` places the one with most text is taken: two in three patches of all places are blank.

    Args:
        document: page or image.
        setting: sizes of the model.
        views: number of views that show the whole page.
        count: number of crops.
        rng: generator of the sample.

    Returns:
        (H·W, 3·p·p) patches of each crop, float16, (H·W, R·C) symbols of their cells, and (G², S) of the slots of the
        windows.
    """
    side, p = setting.view_size, setting.patch_size
    patches = side // p
    scale = document.scale(views * side**2) * rng.uniform(*ZOOM)
    labels = label_map(document, scale)
    image = document.render().resize(labels.shape[::-1], Image.Resampling.BICUBIC)
    # A page smaller than a view is continued by its own border, where there is no text.
    missing = [max(side - extent, 0) for extent in labels.shape]
    pixels = np.pad(np.asarray(image), [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
    labels = np.pad(labels, [(0, missing[0]), (0, missing[1])], constant_values=EMPTY)
    normalize = LlavaUhdImageProcessor()
    mean, std = (np.array(each, np.float32) for each in (normalize.image_mean, normalize.image_std))
    crops = []
    for _ in range(count):
        corners = [
            (rng.randint(0, labels.shape[0] - side), rng.randint(0, labels.shape[1] - side)) for _ in range(CHOICES)
        ]
        top, left = max(corners, key=lambda corner: _count_text(labels, corner, side))
        view = (pixels[top : top + side, left : left + side].astype(np.float32) / 255 - mean) / std
        cut = F.unfold(torch.from_numpy(view).permute(2, 0, 1)[None], p, stride=p)[0].T
        cells = cell_symbols(labels[top : top + side, left : left + side], (patches, patches), p, setting.cells)
        slots = crop_symbols(document, scale, left, top, setting)
        crops.append((cut.half(), torch.from_numpy(cells.astype(np.int64)), torch.from_numpy(slots)))
    return crops


def _count_text(labels: np.ndarray, corner: tuple[int, int], side: int) -> int:
    top, left = corner
    return int(np.count_nonzero(labels[top : top + side : 4, left : left + side : 4]))
