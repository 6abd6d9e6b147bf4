"""Growth of the vision path's time and memory with the views, the image and the batch.

Needs matplotlib for the figure (`pip install llava-uhd[plot]`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from .compare import Setting, hiwin_of, random_views
from .inputs import image_features, prepare
from .measure import Run, alternate
from .sizes import Sizes, build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "views": "views of one shape, pyramid and projector",
    "image": "views of one image, whole vision path",
    "batch": "views of a batch of images, whole vision path",
}


@dataclass(frozen=True)
class GrowthRow:
    """One point of a curve.

    Attributes:
        name: name of the point.
        axis: a key of `AXES`.
        views: number of all views.
        ours_s: median seconds.
        s_per_view: seconds per view.
        ours_peak_bytes: median peak in bytes, above the weights and the folded weights.
    """

    name: str
    axis: str
    views: int
    ours_s: float
    s_per_view: float
    ours_peak_bytes: int | None


def _row(name: str, axis: str, views: int, run: Run, setting: Setting) -> GrowthRow:
    run()
    taken = alternate({"fused": run}, setting.runs, setting.device)["fused"]
    return GrowthRow(name, axis, views, taken.seconds, taken.seconds / views, taken.peak_bytes)


@torch.no_grad()
def growth(
    sizes: Sizes, views: Sequence[int], sides: Sequence[int], batches: Sequence[int], max_slices: int, setting: Setting
) -> list[GrowthRow]:
    """Measure all three curves.

    Args:
        sizes: sizes of the model.
        views: numbers of square views that go through the projector together.
        sides: sides of square images, in pixels.
        batches: numbers of images of two by two views.
        max_slices: maximum number of slices of an image.
        setting: device and number of runs.
    """
    model = build(sizes, setting.device, setting.dtype)
    projector, rows = hiwin_of(model), []
    for count in views:
        features, pixels = random_views(sizes, count, setting)
        rows.append(_row(f"{count} views", "views", count, partial(projector, features, pixels), setting))
    for side in sides:
        images = prepare(sizes, model, [(side, side)], max_slices, setting.device, setting.dtype)
        run = partial(image_features, model, images)
        rows.append(_row(f"image of {side}x{side}", "image", len(images.shapes), run, setting))
    for count in batches:
        size = (2 * sizes.view_size, 2 * sizes.view_size)
        images = prepare(sizes, model, [size] * count, max_slices, setting.device, setting.dtype)
        run = partial(image_features, model, images)
        rows.append(_row(f"{count} images of {size[0]}x{size[1]}", "batch", len(images.shapes), run, setting))
    return rows


def growth_figure(rows: list[GrowthRow]) -> "Figure":
    """Draw seconds and peak memory over the number of views, a curve for each axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    times, peaks = figure.subplots(1, 2)
    for axis, label in AXES.items():
        points = [row for row in rows if row.axis == axis]
        times.plot([row.views for row in points], [row.ours_s for row in points], marker="o", label=label)
        measured = [(row.views, row.ours_peak_bytes / 2**20) for row in points if row.ours_peak_bytes is not None]
        if measured:
            peaks.plot(*zip(*measured, strict=True), marker="o", label=label)
    times.set_ylabel("seconds")
    peaks.set_ylabel("peak memory above the weights, MiB")
    for plot in (times, peaks):
        plot.set_xlabel("views")
        plot.set_xlim(left=0)
        plot.set_ylim(bottom=0)
        plot.grid(alpha=0.3)
    times.legend(fontsize="small")
    return figure
