"""View groups: which of the packed patches make up which view, and where each view's tokens belong.

Views of one shape go through the model together, whichever image they are from. This is the index arithmetic of
grouping them and of putting their tokens in order; it runs on the CPU, on small integers.

Shapes: V views, I images, P patches of all views, T image tokens of all images, H W grid of patches of a view.
"""

from dataclasses import dataclass

import torch

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


def group_views(
    num_patches: int,
    view_shapes: torch.Tensor,
    num_views: torch.Tensor,
    grids: torch.Tensor,
    token_grid: TokenGrid,
    layout: LayoutName,
) -> GroupedViews:
    """Group the views of packed patches by shape.

    Args:
        num_patches: rows of `pixel_values`, P.
        view_shapes: (V, 2), rows and columns of patches of each view, image after image.
        num_views: (I,), views of each image: its slices, row by row, then its overview.
        grids: (I, 2), columns and rows of slices of each image, zeros where it was not sliced.
        token_grid: number of tokens the projector makes of a view.
        layout: order of an image's tokens.

    Raises:
        ValueError: the patches do not add up to the view shapes, or the views to the images.
    """
    view_shapes, num_views, grids = view_shapes.cpu(), num_views.cpu(), grids.cpu()
    areas = view_shapes.prod(dim=1)
    if int(areas.sum()) != num_patches or int(num_views.sum()) != len(view_shapes) or len(grids) != len(num_views):
        raise ValueError(
            f"pixel_values holds {num_patches} patches, view_shapes adds up to {int(areas.sum())}; "
            f"num_views adds up to {int(num_views.sum())}, view_shapes holds {len(view_shapes)} views; "
            f"num_views holds {len(num_views)} images, grids {len(grids)}"
        )
    shapes, group_of_view = view_shapes.unique(dim=0, return_inverse=True)
    first_patch = areas.cumsum(0) - areas
    groups = []
    for index, (height, width) in enumerate(shapes.tolist()):
        views = (group_of_view == index).nonzero().flatten()
        groups.append(ViewGroup((height, width), first_patch[views, None] + torch.arange(height * width)))

    tokens_of_shape = torch.tensor([rows * columns for rows, columns in map(token_grid.shape, shapes.tolist())])
    tokens_of_view = tokens_of_shape[group_of_view]
    # Where a view's tokens begin among the groups' tokens; the sort is stable, as the views of a group are in order.
    by_group = group_of_view.argsort(stable=True)
    in_group_order = tokens_of_view[by_group]
    begin = torch.empty_like(tokens_of_view)
    begin[by_group] = in_group_order.cumsum(0) - in_group_order
    token = torch.arange(int(tokens_of_view.sum()))
    first_token = tokens_of_view.cumsum(0) - tokens_of_view
    place = token + (begin - first_token).repeat_interleave(tokens_of_view)  # of the tokens in view order

    orders, num_tokens = [], []
    all_shapes = [(height, width) for height, width in view_shapes.tolist()]
    view = offset = 0
    for count, (columns, rows) in zip(num_views.tolist(), grids.tolist(), strict=True):
        of_image = layout_views((columns, rows), all_shapes[view], all_shapes[view + count - 1], token_grid, layout)
        orders.append(torch.tensor(of_image.order) + offset)
        num_tokens.append(len(of_image.order))
        view, offset = view + count, offset + len(of_image.order)
    return GroupedViews(groups, place[torch.cat(orders)], num_tokens)
