"""Slicing: the views of an image and their sizes. Pure arithmetic, without pixels or tensors.

An image larger than one view is resized to a grid of equal slices whose number and arrangement follow its area and its
aspect ratio, so that little is distorted and nothing padded; the whole image, downsized to one view, is the overview.

Follows the adaptive slicing of the papers as published in `slice_image_minicpm`: where it truncates and in which order
is part of the checkpoints' training and is kept to the pixel.

Sizes are (width, height) in pixels, grids (columns, rows), shapes of feature maps (rows, columns).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

MAX_SLICES = 1024  # that any option of this name may ask for

Size = tuple[int, int]

VIEW_SIZE = 336  # pixels, as published
PATCH_SIZE = 14
LARGEST_VIEW = 2  # square views; most views have the patches of one at most
LEAST_LIMIT = 1152  # patches
MAX_PADDED = 2**28  # pixels of an image padded to a square


@dataclass(frozen=True)
class SlicePlan:
    """The views of one image: equal slices, row by row, and then the overview.

    Attributes:
        grid: (columns, rows) of the slices, or None where the overview alone shows the image.
        overview_size: size of the resized whole image; each side is a multiple of the patch.
        slice_size: size of every slice, None without slices; each side is a multiple of the patch.
        patch_size: side of the encoder's patches.
        padded_size: size that the image is padded to before anything else, or None without padding.
    """

    grid: tuple[int, int] | None
    overview_size: Size
    slice_size: Size | None
    patch_size: int = PATCH_SIZE
    padded_size: Size | None = None

    @property
    def num_slices(self) -> int:
        return self.grid[0] * self.grid[1] if self.grid else 0

    @property
    def num_views(self) -> int:
        return self.num_slices + 1

    @property
    def resized_size(self) -> Size | None:
        """Size the image is resized to before it is cut into slices, or None without slices."""
        if self.grid is None or self.slice_size is None:
            return None
        return self.grid[0] * self.slice_size[0], self.grid[1] * self.slice_size[1]

    @property
    def view_sizes(self) -> list[Size]:
        """Size of every view: slices row by row, then the overview."""
        slices = [self.slice_size] * self.num_slices if self.slice_size else []
        return [*slices, self.overview_size]

    @property
    def view_shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) in patches of every view."""
        return [(height // self.patch_size, width // self.patch_size) for width, height in self.view_sizes]

    @property
    def num_patches(self) -> int:
        """Patches of all views together: the image's rows in `pixel_values`."""
        return sum(rows * columns for rows, columns in self.view_shapes)

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """(left, top, right, bottom) of every slice in the image of `resized_size`, row by row."""
        if self.grid is None or self.slice_size is None:
            return []
        columns, rows = self.grid
        width, height = self.slice_size
        return [
            (column * width, row * height, (column + 1) * width, (row + 1) * height)
            for row in range(rows)
            for column in range(columns)
        ]


class SlicingOptions(TypedDict, total=False):
    """Options of `plan_slices`, which has their meaning and defaults, for functions that pass them on."""

    max_slices: int
    view_size: int
    patch_size: int
    slice_grid: Sequence[int] | None
    pad_to_square: bool
    pad_to_grid: bool


def plan_slices(
    width: int,
    height: int,
    *,
    max_slices: int = 7,
    view_size: int = VIEW_SIZE,
    patch_size: int = PATCH_SIZE,
    slice_grid: Sequence[int] | None = None,
    pad_to_square: bool = False,
    pad_to_grid: bool = False,
) -> SlicePlan:
    """Plan the views of an image (LLaVA-UHD, section 3.1).

    A view covers about `view_size`² pixels. An image of at most that area, or `max_slices` of 1, gives the overview
    alone, enlarged to that area where it is smaller. Otherwise the ideal number of slices is the ratio of the areas,
    at most `max_slices`; the grid is the one nearest in aspect ratio among those of one slice fewer, as many, or one
    more.

    Every view's sides are multiples of the patch, rounded down, and its area is at most `view_size`²: except that a
    side shorter than one patch becomes one patch, which happens beyond an aspect ratio of about (view_size / patch)²
    (576 as published). A view has a single row or column of patches from a quarter of that ratio on (144); the
    published up-sampler, whose reflection needs two, cannot take such views.

    Args:
        width: image width in pixels.
        height: image height in pixels.
        max_slices: most slices to cut.
        view_size: side of the square whose area a view has, in pixels.
        patch_size: side of a patch, in pixels.
        slice_grid: (columns, rows) into which every image is cut, whatever its size, in place of the adaptive choice;
            the overview alone where `max_slices` is below its number of slices.
        pad_to_square: pad the image to a square first. All views are squares then if the grid is one, too: with a
            square `slice_grid`, or with the overview alone.
        pad_to_grid: pad the image to the aspect ratio of its grid, so that every slice is a square of `view_size`, and
            the overview where it is alone. Windows of the projector are whole patches in such a view, and positions of
            the encoder need no resizing.

    Raises:
        ValueError: for a side, number or size below 1, or for both paddings.
    """
    if pad_to_square and pad_to_grid:
        raise ValueError("an image is padded to a square or to its grid: pad_to_square and pad_to_grid are both true")
    if width < 1 or height < 1:
        raise ValueError(f"an image needs at least 1 x 1 pixels, got {width} x {height}")
    if max_slices < 1:
        raise ValueError(f"max_slices must be at least 1, got {max_slices}")
    if not 1 <= patch_size <= view_size:
        raise ValueError(f"view_size must be at least patch_size, and that at least 1; got {view_size}, {patch_size}")

    padded_size = None
    if pad_to_square:
        width = height = max(width, height)
        padded_size = (width, height)
    grid = _choose_grid(width, height, max_slices, view_size) if slice_grid is None else _fixed_grid(slice_grid)
    columns, rows = grid if 1 < math.prod(grid) <= max_slices else (1, 1)
    if pad_to_grid:
        side = max(math.ceil(width / columns), math.ceil(height / rows))
        width, height = padded_size = (columns * side, rows * side)
    overview_size = _fit(width, height, view_size, patch_size)
    if columns * rows == 1:
        return SlicePlan(None, overview_size, None, patch_size, padded_size)
    slice_size = _fit(_snap(width, columns) // columns, _snap(height, rows) // rows, view_size, patch_size)
    return SlicePlan(grid, overview_size, slice_size, patch_size, padded_size)


def max_view_patches(view_size: int, patch_size: int) -> int:
    """Return the default limit on the patches of a view: those of two square views, 1,152 at least."""
    return max(LARGEST_VIEW * (view_size // patch_size) ** 2, LEAST_LIMIT)


def plan_views(width: int, height: int, *, limit: int | None = None, **options: Unpack[SlicingOptions]) -> SlicePlan:
    """Plan the views of an image as `plan_slices` does, and refuse one so narrow that a view has too many patches.

    A side shorter than a patch becomes a patch, and the other side then grows with the aspect ratio: with views of
    336 x 336 pixels an image beyond about 2,300 to 1 is refused, turned by 90 degrees or not.

    Args:
        width: image width in pixels.
        height: image height in pixels.
        limit: maximum number of patches of a view; None for `max_view_patches`.
        options: see `plan_slices`; an image that would have more than `MAX_PADDED` pixels with its padding is refused.

    Raises:
        ValueError: a view has more patches than the limit, or a size is out of range; the message has the numbers.
    """
    plan = plan_slices(width, height, **options)
    if plan.padded_size is not None and math.prod(plan.padded_size) > max(MAX_PADDED, width * height):
        raise ValueError(
            f"an image of {width} x {height} pixels is too narrow: padded it would have {plan.padded_size[0]} x "
            f"{plan.padded_size[1]} pixels; at most {MAX_PADDED} are allowed: crop it, or cut it into several images"
        )
    plans = [plan]
    if any(1 in shape for shape in plan.view_shapes):
        turned = options.copy()
        if (slice_grid := options.get("slice_grid")) is not None:
            turned["slice_grid"] = slice_grid[::-1]
        plans.append(plan_slices(height, width, **turned))
    if limit is None:
        limit = max_view_patches(options.get("view_size", VIEW_SIZE), plan.patch_size)
    patches = max(rows * columns for each in plans for rows, columns in each.view_shapes)
    if patches > limit:
        raise ValueError(
            f"an image of {width} x {height} pixels is too narrow: one of its views would have {patches} patches; at "
            f"most {limit} are allowed (max_view_patches): crop it, or cut it into several images"
        )
    return plan


def enlarged_size(width: int, height: int, max_side: int) -> Size:
    """Size of an image enlarged, at its aspect ratio, until its long side is `max_side`; never reduced.

    The published evaluation enlarges images so before it slices them (to 1024, for TextVQA to 1536). The short side is
    rounded down, and is at least 1 pixel.

    Raises:
        ValueError: for a side below 1.
    """
    if min(width, height, max_side) < 1:
        raise ValueError(f"sides must be at least 1 pixel, got {width} x {height} and max_side {max_side}")
    if max(width, height) >= max_side:
        return width, height
    if width > height:
        return max_side, max(int(max_side / width * height), 1)
    return max(int(max_side / height * width), 1), max_side


def _choose_grid(width: int, height: int, max_slices: int, view_size: int) -> tuple[int, int]:
    """Choose the (columns, rows) of slices by area and aspect ratio; (1, 1) for the overview alone."""
    num_slices = min(math.ceil(width * height / view_size**2), max_slices)
    if num_slices <= 1:
        return 1, 1
    ratio = math.log(width / height)
    return min(
        _candidate_grids(num_slices, max_slices),
        key=lambda grid: abs(ratio - math.log(grid[0] / grid[1])),  # the first of equals wins, as published
    )


def _fixed_grid(slice_grid: Sequence[int]) -> tuple[int, int]:
    """Check a fixed grid: two whole numbers of at least 1."""
    if len(slice_grid) != 2 or any(type(count) is not int or count < 1 for count in slice_grid):
        raise ValueError(f"slice_grid must be [columns, rows], two whole numbers of at least 1, got {slice_grid!r}")
    columns, rows = slice_grid
    return columns, rows


def _snap(length: int, step: int) -> int:
    """Return the largest multiple of the step within the length, at least one step."""
    return max(length // step * step, step)


def _fit(width: int, height: int, view_size: int, patch_size: int) -> Size:
    """Size of about view_size² pixels at an image's aspect ratio, each side snapped to the patch.

    The height is truncated first and the width follows from the truncated height: as published.
    """
    ratio = width / height
    fitted_height = int(view_size / math.sqrt(ratio))
    fitted_width = int(fitted_height * ratio)
    return _snap(fitted_width, patch_size), _snap(fitted_height, patch_size)


def _candidate_grids(num_slices: int, max_slices: int) -> Iterator[tuple[int, int]]:
    """Yield the (columns, rows) of grids of one slice fewer, as many, and one more."""
    for count in (num_slices - 1, num_slices, num_slices + 1):
        if 1 < count <= max_slices:
            yield from ((columns, count // columns) for columns in range(1, count + 1) if count % columns == 0)
