"""Layouts against the reference implementation's sequences, and the invariants of any layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_uhd.model import layout as layout_module
from llava_uhd.model.layout import LAYOUTS, ImageLayout, TokenGrid, TokenType, layout_views, plan_layout
from llava_uhd.model.slicing import plan_slices

GOLDENS = Path(__file__).parents[1] / "goldens"
FILES = {"stitched": "layout_dec24", "sequential": "layout_apr25"}
PLACEHOLDER = -200
SEPARATOR_IDS = {TokenType.SLICE_SEPARATOR: 29892, TokenType.ROW_SEPARATOR: 13}
HIWIN = TokenGrid(query_grid=12)
CASES = [
    (layout, case["case"], case["grids"])
    for layout, name in FILES.items()
    for case in json.loads((GOLDENS / f"{name}.index.json").read_text())["cases"]
]


def symbolic_image(layout: ImageLayout, index: int) -> list[float]:
    """The published sequence of image `index`: feature n of slice s is -(100000 index + 1000 s + n + 1)."""
    tokens_per_view = 144
    features = iter(
        -float(100_000 * index + 1000 * (feature // tokens_per_view) + feature % tokens_per_view + 1)
        for feature in layout.order
    )
    return [
        next(features) if token_type is TokenType.IMAGE else float(SEPARATOR_IDS[token_type])
        for token_type in layout.template
    ]


def symbolic_sequence(input_ids: list[int], layouts: list[ImageLayout | None], first: int) -> list[float]:
    sequence: list[float] = []
    index = first
    for token in input_ids:
        if token == PLACEHOLDER:
            layout = layouts[index]
            assert layout is not None
            sequence += symbolic_image(layout, index)
            index += 1
        else:
            sequence.append(float(token))
    return sequence


@pytest.mark.parametrize("layout, case, grids", CASES)
def test_sequences_are_the_published_ones(layout, case, grids):
    """The reference implementation pads and cuts embeddings; the processor pads ids, and refuses to cut image tokens.

    So the padding is compared here by value, and of the cut cases the part that was kept.
    """
    golden = np.load(GOLDENS / f"{FILES[layout]}.npz")
    layouts = [layout_views(tuple(grid) if grid else None, (24, 24), (24, 24), HIWIN, layout) for grid in grids]
    embeds = golden[f"{case}.embeds"]
    ids, mask = golden[f"{case}.input_ids"], golden[f"{case}.attention_mask_in"]
    limit = 200 if case.startswith("trunc200") else 4096
    image = 0
    for row in range(len(ids)):
        text = ids[row][mask[row]].tolist() if mask.any() else ids[row].tolist()
        expected = symbolic_sequence(text, layouts, image)[:limit]
        # A published sample without an image uses up one of a dummy image.
        image += max(text.count(PLACEHOLDER), 1)
        padding = [0.0] * (embeds.shape[1] - len(expected))
        expected = [*padding, *expected] if case.endswith("left") else [*expected, *padding]
        np.testing.assert_array_equal(embeds[row], np.array(expected, dtype=np.float32))


def test_numbers_of_the_specification():
    stitched = layout_views((3, 2), (24, 24), (24, 24), HIWIN, "stitched")
    assert stitched.length == 2 * 12 * (3 * 12 + 1) + 1 + 144
    assert stitched.num_image_tokens == 7 * 144
    sequential = layout_views((3, 2), (24, 24), (24, 24), HIWIN, "sequential")
    assert sequential.length == 6 * 145 + 144
    for layout in LAYOUTS:
        assert layout_views(None, (24, 24), (24, 24), HIWIN, layout).template == (TokenType.IMAGE,) * 144
        assert layout_views((0, 0), (1, 1), (9, 5), HIWIN, layout).length == 144


def test_one_column_ends_its_raster_with_a_row_separator():
    template = layout_views((1, 2), (24, 24), (24, 24), HIWIN, "stitched").template
    assert TokenType.SLICE_SEPARATOR not in template
    assert template[24 * 13 : 24 * 13 + 1] == (TokenType.ROW_SEPARATOR,)


def test_stitched_raster_is_the_image_s_own_order():
    """Label each feature with its place in the image; the stitched raster must then read like a page."""
    columns, rows, token_rows, token_columns = 3, 2, 4, 5
    layout = layout_views((columns, rows), (8, 9), (2, 4), TokenGrid(None, 2), "stitched")
    positions = [
        (row * token_rows + token_row, column * token_columns + token_column)
        for row in range(rows)
        for column in range(columns)
        for token_row in range(token_rows)
        for token_column in range(token_columns)
    ]
    assert [positions[feature] for feature in layout.order[: len(positions)]] == sorted(positions)
    assert layout.order[len(positions) :] == tuple(range(len(positions), len(positions) + 2))


@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    max_slices=st.integers(1, 20),
    token_grid=st.one_of(
        st.builds(TokenGrid, query_grid=st.integers(1, 12)),
        st.builds(TokenGrid, query_grid=st.none(), unshuffle_factor=st.integers(1, 4)),
    ),
    layout=st.sampled_from(LAYOUTS),
)
def test_every_feature_has_one_place(width, height, max_slices, token_grid, layout):
    plan = plan_slices(width, height, max_slices=max_slices)
    image = plan_layout(plan, token_grid, layout)
    features = sum(rows * columns for rows, columns in map(token_grid.shape, plan.view_shapes))
    assert sorted(image.order) == list(range(features))
    assert image.template.count(TokenType.IMAGE) == image.num_image_tokens == features
    assert image.length == len(image.template)
    # An image's run begins and ends with an image token, so a cut of it is never a cut of separators alone.
    assert image.template[0] is TokenType.IMAGE
    assert image.template[-1] is TokenType.IMAGE


def test_a_projector_s_token_grid():
    assert TokenGrid(query_grid=8).shape((3, 50)) == (8, 8)
    assert TokenGrid(None, unshuffle_factor=2).shape((23, 24)) == (12, 12)
    with pytest.raises(ValueError, match="12 and 2"):
        TokenGrid(12, 2)
    with pytest.raises(ValueError, match="None and None"):
        TokenGrid(None, None)


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match="'spiral'"):
        layout_views(None, (1, 1), (1, 1), HIWIN, "spiral")  # type: ignore[arg-type]


def test_former_name_of_token_types_warns():
    with pytest.warns(DeprecationWarning, match="layout.Mark is now llava_uhd.model.layout.TokenType"):
        assert layout_module.Mark is TokenType  # former name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        layout_module.nothing  # noqa: B018
