"""Slicing against the reference implementation's plans, and the invariants of any plan."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_uhd.model.slicing import enlarged_size, max_view_patches, plan_slices, plan_views

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "slicing.json").read_text())

sides = st.integers(1, 100_000)
common_sides = st.integers(1, 4_000)
max_slices = st.integers(1, 40)


@pytest.mark.parametrize("max_slices, entries", [(7, GOLDEN["train_N7"]), (9, GOLDEN["eval_N9"])])
def test_plans_are_the_published_ones(max_slices, entries):
    for entry in entries:
        plan = plan_slices(entry["w"], entry["h"], max_slices=max_slices)
        assert plan.grid == (tuple(entry["best_grid"]) if entry["best_grid"] else None), entry
        assert plan.overview_size == tuple(entry["source"]), entry
        assert plan.slice_size == (tuple(entry["slice_size"]) if entry["slice_size"] else None), entry
        assert plan.num_views == entry["n_slices"] + 1, entry


def test_the_evaluation_s_enlargement_is_the_published_one():
    for width, height, new_width, new_height in GOLDEN["resize_keep_ratio_1024"]:
        assert enlarged_size(width, height, 1024) == (new_width, new_height)


@given(width=sides, height=sides, max_slices=max_slices)
def test_views_are_whole_patches_and_tile_the_resized_image(width, height, max_slices):
    plan = plan_slices(width, height, max_slices=max_slices)
    assert len(plan.view_sizes) == plan.num_views <= max(max_slices, 1) + 1
    assert all(side >= 14 and side % 14 == 0 for size in plan.view_sizes for side in size)
    assert plan.num_patches == sum(width * height for width, height in plan.view_sizes) // 14**2
    assert len(plan.boxes) == plan.num_slices
    if plan.grid is None:
        assert plan.resized_size is None
        return
    assert plan.resized_size is not None
    covered = {(left, top) for left, top, _, _ in plan.boxes}
    assert len(covered) == plan.num_slices
    assert {(right - left, bottom - top) for left, top, right, bottom in plan.boxes} == {plan.slice_size}
    assert max(right for _, _, right, _ in plan.boxes) == plan.resized_size[0]
    assert max(bottom for _, _, _, bottom in plan.boxes) == plan.resized_size[1]


@given(width=sides, height=sides, max_slices=max_slices)
def test_the_area_of_a_view_is_bounded(width, height, max_slices):
    for view_width, view_height in plan_slices(width, height, max_slices=max_slices).view_sizes:
        if min(view_width, view_height) > 14:
            assert view_width * view_height <= 336**2
        else:  # a side shorter than a patch was made one patch
            assert max(view_width, view_height) <= 336**2


@given(width=common_sides, height=common_sides, max_slices=max_slices)
def test_the_number_of_slices_follows_the_area(width, height, max_slices):
    plan = plan_slices(width, height, max_slices=max_slices)
    ideal = min(math.ceil(width * height / 336**2), max_slices)
    if ideal <= 1:
        assert plan.grid is None
    else:
        assert max(2, ideal - 1) <= plan.num_slices <= min(max_slices, ideal + 1)


@given(width=common_sides, height=common_sides, view_size=st.sampled_from([112, 224, 336, 448]))
def test_other_view_sizes(width, height, view_size):
    plan = plan_slices(width, height, max_slices=12, view_size=view_size, patch_size=16)
    assert all(side % 16 == 0 for size in plan.view_sizes for side in size)
    assert plan.view_shapes[-1] == (plan.overview_size[1] // 16, plan.overview_size[0] // 16)


@pytest.mark.parametrize(
    "arguments, options, numbers",
    [
        ((0, 5), {}, "0 x 5"),
        ((5, -1), {}, "5 x -1"),
        ((5, 5), {"max_slices": 0}, "got 0"),
        ((5, 5), {"view_size": 13}, "13, 14"),
        ((5, 5), {"patch_size": 0}, "336, 0"),
    ],
)
def test_mistakes_are_named_with_their_numbers(arguments, options, numbers):
    with pytest.raises(ValueError, match=numbers):
        plan_slices(*arguments, **options)


def test_no_side_below_one_pixel():
    with pytest.raises(ValueError, match="max_side 0"):
        enlarged_size(3, 4, 0)
    assert enlarged_size(1, 3000, 4000) == (1, 4000)
    assert enlarged_size(1, 500, 1024) == (2, 1024)


def test_single_rows_of_patches_begin_beyond_an_aspect_ratio_of_144():
    assert plan_slices(1440, 10).overview_size[1] == 28
    assert plan_slices(1450, 10).overview_size[1] == 14


def test_no_view_has_more_patches_than_the_limit():
    assert max_view_patches(336, 14) == 1152
    for size in ((1, 2304), (2304, 1), (8, 8 * 2304), (1000, 700)):
        assert plan_views(*size) == plan_slices(*size)
    for size in ((1, 13_360), (13_360, 1), (1, 2400), (2400, 1), (100, 240_000)):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels is too narrow.* at most 1152"):
            plan_views(*size)
    with pytest.raises(ValueError, match="2774 patches; at most 2000"):
        plan_views(1, 13_360, limit=2000)
    assert plan_views(1, 13_360, limit=2774).num_patches == 2774
    assert plan_views(1, 13_360, pad_to_square=True).view_shapes == plan_slices(13_360, 13_360).view_shapes
    with pytest.raises(ValueError, match="20000 x 20000 pixels; at most 268435456"):
        plan_views(1, 20_000, pad_to_square=True)

    with pytest.raises(ValueError, match="20000 x 20000 pixels; at most 268435456"):
        plan_views(1, 20_000, pad_to_grid=True)


@given(width=sides, height=sides, max_slices=max_slices)
def test_an_image_padded_to_its_grid_is_cut_into_squares(width, height, max_slices):
    options = {"max_slices": max_slices, "view_size": 224, "patch_size": 14}
    plan = plan_slices(width, height, pad_to_grid=True, **options)
    assert plan.grid == plan_slices(width, height, **options).grid
    columns, rows = plan.grid or (1, 1)
    assert set(plan.view_shapes[: max(plan.num_slices, 1)]) == {(16, 16)}
    padded_width, padded_height = plan.padded_size
    assert padded_width / columns == padded_height / rows
    assert padded_width >= width and padded_height >= height
    # Padding is in one direction, up to a pixel for each slice.
    assert padded_width - width < columns or padded_height - height < rows


def test_an_image_has_one_padding():
    with pytest.raises(ValueError, match="pad_to_square and pad_to_grid"):
        plan_slices(10, 10, pad_to_square=True, pad_to_grid=True)


@given(width=sides, height=sides, max_slices=max_slices)
def test_an_image_is_refused_whichever_way_it_is_turned(width, height, max_slices):
    def is_taken(*size):
        try:
            return max(math.prod(shape) for shape in plan_views(*size, max_slices=max_slices).view_shapes) <= 1152
        except ValueError:
            return None

    assert is_taken(width, height) is is_taken(height, width) is not False
