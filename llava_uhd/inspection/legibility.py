"""Estimate whether small print stays legible at the resolution at which the model sees an image.

The measure is the height of common print after resizing: 11 points at 300 dots per inch are 46 pixels of a scan; a PDF
page has its own resolution. Where a model measures the letters of images, their height counts. The note appears below
`LEGIBLE_PRINT` pixels: there the built-in models answer hardly any question. `tiny` answers most from 12 pixels on
(`benchmarks/legibility.py`), `small` more the larger the print is (its model card).
"""

import math
from typing import TYPE_CHECKING

from ..model.letter_height import LETTER, measure_letters
from ..model.slicing import enlarged_size
from ..planning import ImagePlanner

if TYPE_CHECKING:
    from PIL import Image

LEGIBLE_PRINT = 10  # pixels
PRINT_POINTS = 11
SCAN_DPI = 300
POINTS_PER_INCH = 72


def seen_size(planner: ImagePlanner, width: int, height: int, max_slices: int | None = None) -> tuple[int, int]:
    """Return the (width, height) in pixels at which all slices together, or the overview alone, show an image.

    Args:
        planner: image planner with the model's settings.
        width: width of the image that is planned (`ImagePlanner.fit_letters`).
        height: its height.
        max_slices: maximum number of slices; None for the model's own.
    """
    plan = planner.plan(width, height, max_slices)
    if planner.max_side is not None and planner.used_height(max_slices) is None:
        width, height = enlarged_size(width, height, planner.max_side)
    shown = plan.resized_size or plan.overview_size
    if plan.padded_size is None:
        return shown
    return shown[0] * width // plan.padded_size[0], shown[1] * height // plan.padded_size[1]


def legibility_note(
    planner: ImagePlanner, image: "Image.Image", max_slices: int | None = None, dpi: float | None = None
) -> str | None:
    """Return a note if small print will not be legible, else None.

    Args:
        planner: image planner with the model's settings.
        image: decoded image.
        max_slices: maximum number of slices; None for the model's own.
        dpi: dots per inch of a PDF page; None for an image, which counts as a scan at 300 dpi.
    """
    width, height = image.size
    seen_width, seen_height = seen_size(planner, *planner.fit_letters(image, max_slices).size, max_slices)
    scale = math.sqrt(seen_width * seen_height / (width * height))
    if _common_print(planner, image, max_slices, dpi) * scale >= LEGIBLE_PRINT:
        return None
    slices = planner.max_slices if max_slices is None else max_slices
    size = f"{width} x {height}" if dpi is None else _millimeters(width, height, dpi)
    return (
        f"{size} seen at {seen_width} x {seen_height}: small print will not be legible; "
        f"this model takes at most {slices} slice{'s' if slices != 1 else ''}"
    )


def _common_print(planner: ImagePlanner, image: "Image.Image", max_slices: int | None, dpi: float | None) -> float:
    """Size of an image's common print in its pixels."""
    measures = planner.used_height(max_slices) is not None
    if measures and (letters := measure_letters(image, planner.num_pixels(max_slices))) is not None:
        return letters / LETTER
    return PRINT_POINTS / POINTS_PER_INCH * (dpi or SCAN_DPI)


def _millimeters(width: int, height: int, dpi: float) -> str:
    return f"a page of {width / dpi * 25.4:.0f} x {height / dpi * 25.4:.0f} mm"
