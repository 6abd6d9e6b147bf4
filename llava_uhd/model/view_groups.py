"""View groups: which of the packed patches make up which view, and where each view's tokens belong.

Views of one shape go through the model together, whichever image they are from. This is the index arithmetic of
grouping them and of putting their tokens in order; it runs on the host, on small integers, once per batch of shapes.

Shapes: V views, I images, P patches of all views, T image tokens of all images, H W grid of patches of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .compilation import not_compiled
from .layout import LayoutName, TokenGrid, layout_views


@dataclass(frozen=True)
class ViewGroup:
    """Views of one shape.

    Attributes:
        shape: (rows, columns) of patches, H and W.
        patch_indices: (views of the group, H·W), indices into the packed patches.
    """

    shape: tuple[int, int]
    patch_indices: torch.Tensor


@dataclass(frozen=True)
class GroupedViews:
    """The views of a batch of images, grouped by shape.

    Attributes:
        groups: the views, by shape.
        order: (T,), for each token of the sequence its index among the groups' tokens, one group after the other.
        tokens_per_image: number of tokens of each image.
    """

    groups: list[ViewGroup]
    order: torch.Tensor
    tokens_per_image: list[int]


# Token indices of a batch are some kilobytes; a server or an evaluation sees the same few shapes over and over.
CACHED_BATCHES = 32

Rows = tuple[tuple[int, ...], ...]
Integers = torch.Tensor | np.ndarray | Sequence[int]
IntegerRows = torch.Tensor | np.ndarray | Sequence[Sequence[int]]


@not_compiled
def group_views(
    num_patches: int,
    view_shapes: IntegerRows,
    num_views: Integers,
    grids: IntegerRows,
    token_grid: TokenGrid,
    layout: LayoutName,
    device: torch.device | None = None,
) -> GroupedViews:
    """Group the views of packed patches by shape.

    The shapes belong on the host: tensors on a device are read back, which waits for it. Index tensors of recent
    batches are cached on the device that they were asked for.

    Args:
        num_patches: rows of `pixel_values`, P.
        view_shapes: (V, 2), rows and columns of patches of each view, image after image.
        num_views: (I,), views of each image: its slices, row by row, then its overview.
        grids: (I, 2), columns and rows of slices of each image, zeros where it was not sliced.
        token_grid: number of tokens the projector makes of a view.
        layout: order of an image's tokens.
        device: device of the index tensors; None for the CPU.

    Raises:
        ValueError: the patches do not add up to the view shapes, or the views to the images.
    """
    shapes, counts, grid_rows = _rows(view_shapes), _integers(num_views), _rows(grids)
    total = sum(height * width for height, width in shapes)
    if total != num_patches or sum(counts) != len(shapes) or len(grid_rows) != len(counts):
        raise ValueError(
            f"pixel_values holds {num_patches} patches, view_shapes adds up to {total}; "
            f"num_views adds up to {sum(counts)}, view_shapes holds {len(shapes)} views; "
            f"num_views holds {len(counts)} images, grids {len(grid_rows)}"
        )
    return _grouped(shapes, counts, grid_rows, token_grid, layout, device or torch.device("cpu"))


def _integers(values: Integers) -> tuple[int, ...]:
    return tuple(values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else values)


def _rows(values: IntegerRows) -> Rows:
    return tuple(tuple(row) for row in (values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else values))


@lru_cache(maxsize=CACHED_BATCHES)
def _grouped(
    shape_of_view: Rows, num_views: tuple[int, ...], grids: Rows, token_grid: TokenGrid, layout: LayoutName,
    device: torch.device,
) -> GroupedViews:  # fmt: skip
    """Compute the groups of a batch from its shapes alone; see `group_views`."""
    if not num_views:
        return GroupedViews([], torch.zeros(0, dtype=torch.int64, device=device), [])
    # Made outside of inference mode even when first asked for inside it: a later training step may use them.
    with torch.inference_mode(False):
        areas = torch.tensor([height * width for height, width in shape_of_view], dtype=torch.int64)
        shapes = [(height, width) for height, width in sorted(set(shape_of_view))]
        group_of_view = torch.tensor(
            [shapes.index((height, width)) for height, width in shape_of_view], dtype=torch.int64
        )
        first_patch = areas.cumsum(0) - areas
        groups = []
        for index, (height, width) in enumerate(shapes):
            views = (group_of_view == index).nonzero().flatten()
            patch_indices = first_patch[views, None] + torch.arange(height * width)
            groups.append(ViewGroup((height, width), _to_device(patch_indices, device)))

        tokens_of_shape = torch.tensor([rows * columns for rows, columns in map(token_grid.shape, shapes)])
        tokens_of_view = tokens_of_shape[group_of_view]
        # Where a view's tokens begin among the groups' tokens; the sort is stable: views of a group are in order.
        by_group = group_of_view.argsort(stable=True)
        in_group_order = tokens_of_view[by_group]
        begin = torch.empty_like(tokens_of_view)
        begin[by_group] = in_group_order.cumsum(0) - in_group_order
        token = torch.arange(int(tokens_of_view.sum()))
        first_token = tokens_of_view.cumsum(0) - tokens_of_view
        place = token + (begin - first_token).repeat_interleave(tokens_of_view)  # of the tokens in view order

        orders, num_tokens = [], []
        view = offset = 0
        for count, (columns, rows) in zip(num_views, grids, strict=True):
            slice_shape, overview_shape = shape_of_view[view], shape_of_view[view + count - 1]
            of_image = layout_views((columns, rows), slice_shape, overview_shape, token_grid, layout)
            orders.append(torch.tensor(of_image.order) + offset)
            num_tokens.append(len(of_image.order))
            view, offset = view + count, offset + len(of_image.order)
        return GroupedViews(groups, _to_device(place[torch.cat(orders)], device), num_tokens)


def _to_device(indices: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device without waiting for it, which takes pinned memory on CUDA."""
    if device.type == "cuda":
        return indices.pin_memory().to(device, non_blocking=True)
    return indices.to(device)
