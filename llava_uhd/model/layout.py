"""Layout: where the tokens of an image's views stand in the sequence, and how many there are.

The views of an image become one run of image tokens with separators between them. This is the one place that knows
their order and their number; the processor writes prompts by it and the model orders its features by it.

Two layouts were published. `stitched` (December 2024): the slices' tokens are joined into one raster as the slices lie
in the image, with a row separator after each raster row, one slice separator after the raster, then the overview.
`sequential` (April 2025): slice after slice, each followed by a slice separator, or by a row separator where it is the
last of its row, then the overview. `unseparated` is the same without separators: no spatial schema, in v1's words.

Shapes of token grids are (rows, columns), grids of slices (columns, rows).
"""

import warnings
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal

from .slicing import SlicePlan

LayoutName = Literal["stitched", "sequential", "unseparated"]
LAYOUTS: tuple[LayoutName, ...] = ("stitched", "sequential", "unseparated")
Shape = tuple[int, int]


class TokenType(IntEnum):
    """Token type of a position: a feature of the image, or an ordinary separator token."""

    IMAGE = 0
    SLICE_SEPARATOR = 1
    ROW_SEPARATOR = 2


@dataclass(frozen=True)
class TokenGrid:
    """Grid of the tokens that a projector makes of a view.

    Attributes:
        query_grid: a view of any shape gives query_grid x query_grid tokens (HiWin and v1 resampler: 12 published).
        unshuffle_factor: instead, a token stands for a square of patches of this side (MLP projector); squares that
            stick out of the view are filled up.
        input_level: level of the pyramid whose patches the MLP projector joins.
    """

    query_grid: int | None = 12
    unshuffle_factor: int | None = None
    input_level: int = 1

    def __post_init__(self) -> None:
        if (self.query_grid is None) == (self.unshuffle_factor is None):
            raise ValueError(
                "a token grid has either a query_grid or an unshuffle_factor, "
                f"got {self.query_grid} and {self.unshuffle_factor}"
            )

    def shape(self, view_shape: Shape) -> Shape:
        """(rows, columns) of the tokens of a view of (rows, columns) of patches."""
        if self.unshuffle_factor is None:
            assert self.query_grid is not None
            return self.query_grid, self.query_grid
        rows, columns = view_shape
        level, factor = self.input_level, self.unshuffle_factor
        return -(-level * rows // factor), -(-level * columns // factor)


@dataclass(frozen=True)
class ImageLayout:
    """One image in the sequence.

    Attributes:
        template: token type of every position.
        order: index of the feature of every image token in turn, among the image's features in view order (slices
            row by row, then the overview; the tokens of a view row by row). A permutation.
    """

    template: tuple[TokenType, ...]
    order: tuple[int, ...]

    @property
    def num_image_tokens(self) -> int:
        """Features of the image, and image tokens in the sequence."""
        return len(self.order)

    @property
    def length(self) -> int:
        """Positions in the sequence: image tokens and separators."""
        return len(self.template)


def plan_layout(plan: SlicePlan, token_grid: TokenGrid, layout: LayoutName) -> ImageLayout:
    """Layout of an image from its plan of views."""
    return layout_views(plan.grid, plan.view_shapes[0], plan.view_shapes[-1], token_grid, layout)


@lru_cache(maxsize=4096)
def layout_views(
    grid: tuple[int, int] | None, slice_shape: Shape, overview_shape: Shape, token_grid: TokenGrid, layout: LayoutName
) -> ImageLayout:
    """Layout of an image from the shapes of its views.

    Args:
        grid: (columns, rows) of the slices; None, or (0, 0), for the overview alone.
        slice_shape: (rows, columns) of a slice in patches; ignored without slices.
        overview_shape: (rows, columns) of the overview in patches.
        token_grid: the tokens of a view.
        layout: `stitched`, `sequential` or `unseparated`.

    Raises:
        ValueError: for another layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    columns, rows = grid or (0, 0)
    token_rows, token_columns = token_grid.shape(slice_shape)
    overview_rows, overview_columns = token_grid.shape(overview_shape)
    num_slice_tokens = rows * columns * token_rows * token_columns
    num_tokens = num_slice_tokens + overview_rows * overview_columns

    template: list[TokenType] = []
    order = list(range(num_tokens))
    if columns == 0:
        pass
    elif layout == "stitched":
        template += ([TokenType.IMAGE] * (columns * token_columns) + [TokenType.ROW_SEPARATOR]) * (rows * token_rows)
        # Published so: the separator of the first slice ends the raster, and in a single column that is a row's.
        template += [TokenType.SLICE_SEPARATOR if columns > 1 else TokenType.ROW_SEPARATOR]
        order[:num_slice_tokens] = [
            ((row * columns + column) * token_rows + token_row) * token_columns + token_column
            for row in range(rows)
            for token_row in range(token_rows)
            for column in range(columns)
            for token_column in range(token_columns)
        ]
    elif layout == "unseparated":
        template += [TokenType.IMAGE] * num_slice_tokens
    else:
        one_slice = [TokenType.IMAGE] * (token_rows * token_columns)
        one_row = [*one_slice, TokenType.SLICE_SEPARATOR] * (columns - 1) + [*one_slice, TokenType.ROW_SEPARATOR]
        template += one_row * rows
    template += [TokenType.IMAGE] * (num_tokens - num_slice_tokens)
    return ImageLayout(tuple(template), tuple(order))


def __getattr__(name: str) -> type[TokenType]:
    if name == "Mark":  # former name
        warnings.warn(f"{__name__}.Mark is now {__name__}.TokenType", DeprecationWarning, stacklevel=2)
        return TokenType
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
