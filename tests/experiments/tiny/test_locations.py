"""Places in answers, and those that are moved."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.tiny.locations import (
    FOUND_ID,
    HALVES,
    LOCATION_ID,
    SIDES,
    first_slice_id,
    is_quarter,
    move_locations,
    row_and_column,
)
from experiments.tiny.samples import IGNORED, make_sample

from .small import READER, SMALL

GRID = 4
PLACES = st.integers(LOCATION_ID, first_slice_id(GRID) - 1)
TOKENS = st.one_of(PLACES, st.integers(0, FOUND_ID), st.integers(first_slice_id(GRID), first_slice_id(GRID) + 8))


@given(answer=st.lists(TOKENS, max_size=30), asked=st.integers(0, 5), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_place_moves_by_a_quarter_of_a_window_and_nothing_else_changes(answer, asked, part, seed):
    ids, labels = [7] * asked + answer, [IGNORED] * asked + answer
    moved = move_locations(ids, labels, part, GRID, random.Random(seed))
    assert len(moved) == len(ids)
    for token, before in zip(moved, ids, strict=True):
        if token != before:
            assert is_quarter(before, GRID)
            (row, column), (old_row, old_column) = row_and_column(token, GRID), row_and_column(before, GRID)
            steps = sorted(((row - old_row) % (HALVES * GRID), (column - old_column) % (SIDES * GRID)))
            # One step along a row or a column; beyond the edge it is the view beside.
            assert steps[0] == 0 and steps[1] in (1, HALVES * GRID - 1, SIDES * GRID - 1)


@given(answer=st.lists(PLACES, max_size=30), seed=st.integers(0, 99))
def test_all_or_no_places_move(answer, seed):
    rng = random.Random(seed)
    assert move_locations(answer, answer, 0.0, GRID, rng) == answer
    assert all(a != b for a, b in zip(move_locations(answer, answer, 1.0, GRID, rng), answer, strict=True))


def test_the_labels_of_a_page_keep_the_right_places():
    count = num_changed = 0
    for index in range(20):
        kept = make_sample(SMALL, READER, 0, index)
        moved = make_sample(SMALL, replace(READER, moved=0.5), 0, index)
        assert moved.labels == kept.labels and moved.pointers == kept.pointers
        num_changed += sum(a != b for a, b in zip(kept.input_ids, moved.input_ids, strict=True))
        count += sum(is_quarter(label, SMALL.query_grid) for label in kept.labels)
    assert count > 20 and 0.2 * count < num_changed < 0.8 * count
