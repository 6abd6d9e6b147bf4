"""Tell when an image is seen so much smaller than it is that small print is lost.

The measure is the height at which the model sees common print: 11 points at 300 dots per inch are 46 pixels of a scan,
and of a PDF page the size of a point is known. Below `LEGIBLE_PRINT` pixels the note is due: there the built-in
model answers hardly any question, and from 12 pixels on most (`benchmarks/legibility.py`).
"""

import math

from ..planning import ImagePlanner

LEGIBLE_PRINT = 10  # pixels
PRINT_POINTS = 11
SCAN_DPI = 300
POINTS_PER_INCH = 72


def seen_size(planner: ImagePlanner, width: int, height: int, max_slices: int | None = None) -> tuple[int, int]:
    """Return the (width, height) in pixels at which all slices together, or the overview alone, show an image."""
    plan = planner.plan(width, height, max_slices)
    return plan.resized_size or plan.overview_size


def legibility_note(
    planner: ImagePlanner, width: int, height: int, max_slices: int | None = None, dpi: float | None = None
) -> str | None:
    """Return the sentence that an image is seen too small for small print, or None.

    Args:
        planner: of the model.
        width: image width in pixels.
        height: image height in pixels.
        max_slices: most slices; None as trained.
        dpi: dots per inch of a PDF page; None for an image, which is taken as a scan.
    """
    seen_width, seen_height = seen_size(planner, width, height, max_slices)
    scale = math.sqrt(seen_width * seen_height / (width * height))
    if PRINT_POINTS / POINTS_PER_INCH * (dpi or SCAN_DPI) * scale >= LEGIBLE_PRINT:
        return None
    slices = planner.max_slices if max_slices is None else max_slices
    size = f"{width} x {height}" if dpi is None else _millimeters(width, height, dpi)
    return (
        f"{size} seen at {seen_width} x {seen_height}: small print will not be legible; "
        f"this model takes at most {slices} slice{'s' if slices != 1 else ''}"
    )


def _millimeters(width: int, height: int, dpi: float) -> str:
    return f"a page of {width / dpi * 25.4:.0f} x {height / dpi * 25.4:.0f} mm"
