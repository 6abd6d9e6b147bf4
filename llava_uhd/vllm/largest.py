"""Largest image: the most tokens that an image can have, and an image to profile memory with.

A projector with a fixed number of queries gives every view as many tokens, so most slices are most tokens, and a strip
reaches them: squares are cut into a square grid, which may have fewer slices than allowed. The MLP projector rounds
squares of patches up at the edges of a view, so there the shape counts too, and views of one row or column have the
most.

A view is as large as the tower's image, but for extreme strips: a side shorter than a patch becomes a patch, and the
other side grows without bound. `check_views` refuses them before they reach the engine.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

from ..model.layout import LayoutName, TokenGrid, plan_layout
from ..model.slicing import Size, SlicePlan, max_view_patches, plan_slices


def check_views(plan: SlicePlan, view_size: int, name: str) -> None:
    """Refuse an image with views beyond `max_view_patches`.

    Args:
        plan: views of the image.
        view_size: side of the square whose area a view has, in pixels.
        name: name of the image in the error.

    Raises:
        ValueError: a view is too large, with its number of patches and the limit.
    """
    limit = max_view_patches(view_size, plan.patch_size)
    if (patches := max(math.prod(shape) for shape in plan.view_shapes)) > limit:
        raise ValueError(
            f"{name} is too narrow: one of its views would have {patches} patches, and at most {limit} are served"
        )


def max_image_tokens(token_grid: TokenGrid, *, max_slices: int, view_size: int, patch_size: int) -> int:
    """Return a number of tokens that no image exceeds, and with a fixed number of queries some images have.

    Args:
        token_grid: tokens that the projector makes of a view.
        max_slices: most slices of an image.
        view_size: side of the square whose area a view has, in pixels.
        patch_size: side of a patch, in pixels.
    """
    limit = max_view_patches(view_size, patch_size)
    shapes = ((rows, limit // rows) for rows in range(1, limit + 1))
    return (max_slices + 1) * max(math.prod(token_grid.shape(shape)) for shape in shapes)


@lru_cache(maxsize=64)
def largest_image(
    token_grid: TokenGrid,
    layout: LayoutName,
    *,
    max_slices: int,
    view_size: int,
    patch_size: int,
    max_length: int | None = None,
    slice_grid: tuple[int, int] | None = None,
    pad_to_square: bool = False,
    pad_to_grid: bool = False,
) -> tuple[Size, int]:
    """Return the (width, height) of an image with the most tokens of all that are large, and their number.

    Args:
        token_grid: tokens that the projector makes of a view.
        layout: order of an image's tokens.
        max_slices: most slices of an image.
        view_size: side of the square whose area a view has, in pixels.
        patch_size: side of a patch, in pixels.
        max_length: longest sequence; images of more positions, separators included, are left out unless all are.
        slice_grid: (columns, rows) that every image is cut into, or None.
        pad_to_square: images are padded to squares.
        pad_to_grid: images are padded so that every slice is a square.
    """
    limit = max_view_patches(view_size, patch_size)
    best: tuple[int, Size] | None = None
    shortest: tuple[int, int, Size] | None = None
    for size in _candidates(token_grid, max_slices, view_size, patch_size):
        plan = plan_slices(
            *size,
            max_slices=max_slices,
            view_size=view_size,
            patch_size=patch_size,
            slice_grid=slice_grid,
            pad_to_square=pad_to_square,
            pad_to_grid=pad_to_grid,
        )
        if max(math.prod(shape) for shape in plan.view_shapes) > limit:
            continue
        tokens = sum(math.prod(token_grid.shape(shape)) for shape in plan.view_shapes)
        if best is not None and tokens <= best[0]:
            continue
        length = tokens if max_length is None else plan_layout(plan, token_grid, layout).length
        if max_length is None or length <= max_length:
            best = tokens, size
        elif shortest is None or length < shortest[0]:
            shortest = length, tokens, size
    if best is not None:
        return best[1], best[0]
    assert shortest is not None
    return shortest[2], shortest[1]


def _candidates(token_grid: TokenGrid, max_slices: int, view_size: int, patch_size: int) -> Iterator[Size]:
    """Sizes among which the largest is: strips of every number of slices, and the aspect ratios where views grow."""
    for slices in range(1, max_slices + 1):
        yield view_size * slices, view_size
    if token_grid.unshuffle_factor is None:
        return
    # A view is view_size / sqrt(ratio) high, rounded down to the patch, and the shorter it is, the wider: widest for
    # its rows where the height just reaches them, and below one row wider with every pixel.
    heights = [
        *range(1, patch_size),
        *range(patch_size, max_view_patches(view_size, patch_size) * patch_size, patch_size),
    ]
    grids = {(columns, count // columns) for count in range(1, max_slices + 1) for columns in _divisors(count)}
    ratios = {view_size**2 / height**2 * columns / rows for height in heights for columns, rows in grids}
    for ratio in sorted(ratios):
        for scale in (1, 5):
            if ratio >= 1:
                height = scale * math.ceil(math.sqrt(max_slices * view_size**2 / ratio))
                yield math.floor(height * ratio), height
            else:
                width = scale * math.ceil(math.sqrt(max_slices * view_size**2 * ratio))
                yield width, math.ceil(width / ratio)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
