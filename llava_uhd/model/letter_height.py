"""Height of the letters in an image, so that a page is shown as large as reading it takes, and no larger.

A page's own resolution says how it was scanned or drawn, not how large its letters are. Twelve slices of a page whose
letters are 40 pixels high cost several times as much as those of the same page reduced, and a small tower that sees a
part of a letter at a time reads them worse.

A letter is a connected mark, darker or lighter than its surroundings, of the proportions that letters have. Of all
marks the lower quartile of the heights counts: about 0.6 font sizes where letters stand apart, whether the page has
titles and logos or not. Letters so small that they touch count as higher than they are; these are too small to
read in any case. Marks in the texture of a photograph count, too, so that most photographs are enlarged: that costs
time, and they are no document at any size.
"""

import math

import numpy as np
from PIL import Image, ImageFilter

from .slicing import enlarged_size

SURROUNDINGS = 12  # pixels on each side
CONTRAST = 18  # of 255, between a mark and the mean of its surroundings
HEIGHTS = (4, 90)  # pixels: dust and the dots of an i are lower, frames and photographs higher
WIDEST, NARROWEST = 4, 1 / 6  # of its height
FILLED = (0.12, 0.9)  # part of the box that a letter covers; a rule or a bar covers all of it
FEWEST = 8
QUARTILE = 25
LETTER = 0.6  # such a height in font sizes: the median over pages of many fonts
# A page is not resampled for less, and not enlarged by more: what is blurred is no easier to read.
LEAST_CHANGE, MOST_ENLARGED = 1.1, 1.6


def measure_letters(image: Image.Image, num_pixels: int) -> float | None:
    """Return the height of an image's letters in its pixels; None if it has fewer than `FEWEST` marks like letters.

    Args:
        image: image of any mode.
        num_pixels: pixels at which the model sees it at most; a larger image is measured at that size.
    """
    gray = image.convert("L")
    scale = min(math.sqrt(num_pixels / (gray.width * gray.height)), 1.0)
    if scale < 1:
        size = (max(round(scale * gray.width), 1), max(round(scale * gray.height), 1))
        gray = gray.resize(size, Image.Resampling.BOX)
    surroundings = np.asarray(gray.filter(ImageFilter.BoxBlur(SURROUNDINGS)), np.float32)
    darker = surroundings - np.asarray(gray, np.float32)
    # Letters cover less than the paper around them, and differ more from the mean: the skewness has their sign.
    ink = darker if (darker**3).mean() > 0 else -darker
    heights = _letter_heights(ink > CONTRAST)
    return float(np.percentile(heights, QUARTILE)) / scale if len(heights) >= FEWEST else None


def _letter_heights(ink: np.ndarray) -> np.ndarray:
    """Return the heights of the connected marks of an image, (height, width) of booleans, that may be letters."""
    # Imported here, where it may be absent: most models show every image at its own resolution, and load from a hub
    # without scipy. transformers asks for all that remote code imports outside of `try`.
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("letter_height measures the letters of images with scipy: pip install scipy") from error

    labels, count = ndimage.label(ink, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    height, width = np.array([[side.stop - side.start for side in box] for box in boxes], int).reshape(-1, 2).T
    filled = np.bincount(labels.ravel(), minlength=count + 1)[1:] / np.maximum(height * width, 1)
    is_letter = (height >= HEIGHTS[0]) & (height <= HEIGHTS[1]) & (filled > FILLED[0]) & (filled < FILLED[1])
    is_letter &= (width <= WIDEST * height) & (width >= NARROWEST * height)
    return np.asarray(height[is_letter])


def fitted_size(
    size: tuple[int, int], measured: float | None, letter_height: float, num_pixels: int
) -> tuple[int, int]:
    """Size at which an image's letters are `letter_height` pixels high, or as near to it as the slices show them.

    Args:
        size: (width, height) of the image in pixels.
        measured: height of its letters in its pixels; None for an image that keeps its size.
        letter_height: height in pixels.
        num_pixels: pixels at which the model sees it at most: it is not enlarged beyond them, nor by more than
            `MOST_ENLARGED`.
    """
    if not measured:
        return size
    width, height = size
    most = math.sqrt(num_pixels / (width * height))
    scale = min(letter_height / measured, MOST_ENLARGED, most)
    # The slices show a large image at `most` in any case: what they reduce as far needs no resampling before.
    if 1 / LEAST_CHANGE < scale / min(most, 1.0) < LEAST_CHANGE:
        return size
    return max(round(scale * width), 1), max(round(scale * height), 1)


def used_height(letter_height: int | None, max_slices: int, slice_grid: object) -> int | None:
    """Height to which letters are brought; None where views show every image at one size, whatever its own is.

    Args:
        letter_height: height in pixels, or None.
        max_slices: most slices of an image; one is an overview alone.
        slice_grid: grid that every image is cut into, or None.
    """
    return letter_height if max_slices > 1 and slice_grid is None else None


def fit_letters(
    image: Image.Image,
    letter_height: float | None,
    num_pixels: int,
    max_side: int | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Return an image at its `fitted_size`; unchanged if no height is given.

    Args:
        image: image of any mode.
        letter_height: height in pixels, or None.
        num_pixels: pixels at which the model sees it at most.
        max_side: long side that a smaller image is enlarged to before its letters are measured, or None.
        resample: PIL's filter.
    """
    if letter_height is None:
        return image
    if max_side is not None and (enlarged := enlarged_size(*image.size, max_side)) != image.size:
        image = image.resize(enlarged, resample)
    size = fitted_size(image.size, measure_letters(image, num_pixels), letter_height, num_pixels)
    return image if size == image.size else image.resize(size, resample)
