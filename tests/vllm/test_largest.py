"""The largest image: vLLM profiles memory with it, so no image may have more tokens."""

import math

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llava_uhd.model.layout import TokenGrid, plan_layout
from llava_uhd.model.slicing import plan_slices
from llava_uhd.vllm.largest import check_views, largest_image, max_image_tokens, max_view_patches

GEOMETRY = {"view_size": 112, "patch_size": 14}
PUBLISHED = {"view_size": 336, "patch_size": 14}


def num_tokens(width, height, grid, max_slices, **geometry):
    plan = plan_slices(width, height, max_slices=max_slices, **geometry)
    return plan_layout(plan, grid, "stitched").num_image_tokens


def test_a_strip_has_more_tokens_than_any_square():
    """A square of many slices is cut into 2 x 3 of at most 7, a strip into 7 x 1."""
    grid = TokenGrid(8)
    size, tokens = largest_image(grid, "stitched", max_slices=7, **GEOMETRY)
    assert tokens == 512 == num_tokens(*size, grid, 7, **GEOMETRY)
    assert num_tokens(2000, 2000, grid, 7, **GEOMETRY) == 448
    assert max_image_tokens(grid, max_slices=7, **GEOMETRY) == 512
    assert max_image_tokens(TokenGrid(12), max_slices=7, **PUBLISHED) == 1152
    assert largest_image(TokenGrid(12), "stitched", max_slices=7, **PUBLISHED)[1] == 1152


@pytest.mark.parametrize("grid", [TokenGrid(8), TokenGrid(None, 2)], ids=["queries", "mlp"])
@given(
    short=st.integers(1, 600),
    ratio=st.floats(0, math.log(600)) | st.floats(0, math.log(20_000)),
    is_wide=st.booleans(),
    max_slices=st.integers(1, 9),
)
@example(short=1, ratio=9.5, is_wide=False, max_slices=1)
@settings(max_examples=300, deadline=None)
def test_no_image_has_more(grid, short, ratio, is_wide, max_slices):
    long = min(int(short * math.exp(ratio)) + 1, 10_000_000)
    size = (long, short) if is_wide else (short, long)
    plan = plan_slices(*size, max_slices=max_slices, **GEOMETRY)
    is_served = max(math.prod(shape) for shape in plan.view_shapes) <= max_view_patches(**GEOMETRY)
    if not is_served:
        with pytest.raises(ValueError, match="image 7 is too narrow: .* at most 128"):
            check_views(plan, 112, "image 7")
    assume(is_served)
    check_views(plan, 112, "image 7")
    tokens = num_tokens(*size, grid, max_slices, **GEOMETRY)
    assert tokens <= max_image_tokens(grid, max_slices=max_slices, **GEOMETRY)


@pytest.mark.parametrize("max_slices", range(1, 10))
def test_profiled_mlp_image_is_a_strip(max_slices):
    """Its views have one row or column of up to twice the usual patches; a square has no more tokens."""
    grid = TokenGrid(None, 2)
    size, tokens = largest_image(grid, "stitched", max_slices=max_slices, **GEOMETRY)
    assert tokens == num_tokens(*size, grid, max_slices, **GEOMETRY)
    assert 0.3 * max_image_tokens(grid, max_slices=max_slices, **GEOMETRY) <= tokens
    assert tokens >= num_tokens(3000, 3000, grid, max_slices, **GEOMETRY)


@pytest.mark.parametrize("layout", ["stitched", "sequential"])
def test_it_fits_into_the_context(layout):
    """Given 8 x 8 tokens a view, 300 positions hold three slices, their separators and the overview."""
    grid = TokenGrid(8)
    size, tokens = largest_image(grid, layout, max_slices=7, max_length=300, **GEOMETRY)
    plan = plan_slices(*size, max_slices=7, **GEOMETRY)
    assert tokens == 4 * 64 and plan_layout(plan, grid, layout).length <= 300
    (_, smallest) = largest_image(grid, layout, max_slices=7, max_length=10, **GEOMETRY)
    assert smallest == 64


def test_fixed_grid_and_padding_have_the_tokens_of_their_views():
    grid = TokenGrid(None, 2)
    padded_to_grid = {"slice_grid": (2, 2), "pad_to_grid": True}
    assert largest_image(grid, "unseparated", max_slices=7, **GEOMETRY, **padded_to_grid)[1] == 5 * 16
    options = {"slice_grid": (2, 2), "pad_to_square": True}
    size, tokens = largest_image(grid, "unseparated", max_slices=7, **GEOMETRY, **options)
    assert tokens == 5 * 16 == num_tokens(*size, grid, 7, **GEOMETRY, **options)
    assert tokens <= max_image_tokens(grid, max_slices=7, **GEOMETRY)
    on_level = TokenGrid(None, 2, 2)
    assert largest_image(on_level, "unseparated", max_slices=7, **GEOMETRY, **options)[1] == 4 * tokens
