"""Lists of numbers to compare, without a page."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faker", reason="the training of `small` needs the extra synthetic")

from experiments.tiny.comparisons import FEWEST, MOST, QUESTIONS, practice_list
from experiments.tiny.locations import FOUND_ID, first_note_id, first_slice_id, is_quarter
from experiments.tiny.samples import converse_about_lists, make_sample
from experiments.tiny.setting import Phase, load_plan
from experiments.tiny_v1.samples import IGNORED
from experiments.tiny_v1.tokenizer import EOS_ID
from llava_uhd.synthetic.varied.notes import COMPARED_SIGNS, LEADS, NOTED

SETTING = load_plan().setting
GRID = SETTING.query_grid
NOTES = first_note_id(GRID, SETTING.max_slices)


def read_list(ids: list[int]) -> tuple[list[tuple[int, int]], list[str], list[int]]:
    """Slice and quarter of each number, its note, and the tokens after the last note."""
    assert ids[0] == FOUND_ID
    where, notes, in_slice, rest = [], [], -1, ids[1:]
    while any(token >= NOTES for token in rest):
        if not is_quarter(rest[0], GRID):
            in_slice, rest = rest[0], rest[1:]
        where.append((in_slice, rest[0]))
        notes.append("".join(NOTED[token - NOTES] for token in rest[1 : 1 + COMPARED_SIGNS]))
        rest = rest[1 + COMPARED_SIGNS :]
    return where, notes, rest


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), sliced=st.booleans())
def test_a_list_ends_with_the_place_of_its_best_number(seed, sliced):
    question, ids, labels = practice_list(SETTING, random.Random(seed), sliced)
    where, notes, end = read_list(ids)
    assert "{" not in question and FEWEST <= len(notes) <= MOST
    best = max(place for place, note in enumerate(notes) if note[-1] == LEADS)
    in_slice, quarter = where[best]
    assert end == ([quarter] if in_slice == where[-1][0] else [in_slice, quarter])
    numbers = [note[:-1:3] for note in notes]
    (choose,) = {best for best, sorts in QUESTIONS for words in sorts for word in words if matches(word, question)}
    assert numbers[best] == choose(numbers)
    assert all(first_slice_id(GRID) <= in_slice < NOTES for in_slice, _ in where) == sliced


def matches(wording: str, question: str) -> bool:
    return all(part in question for part in wording.replace("{column}", "{noun}").split("{noun}"))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_what_only_a_page_could_tell_is_not_to_be_predicted(seed):
    _, ids, labels = practice_list(SETTING, random.Random(seed), True)
    _, notes, end = read_list(ids)
    predicted = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    compared = "".join(
        sign for note in notes for place, sign in enumerate(note) if place % 3 or place == COMPARED_SIGNS - 1
    )
    assert predicted == [NOTES + NOTED.index(sign) for sign in compared] + end


def test_lists_follow_a_page_of_rows():
    values = {"name": "compare", "kind": "reader", "steps": 1, "tokens": 1, "views": 2, "compared": 1.0}
    without = make_sample(SETTING, Phase(**values), 3, 4)
    sample = make_sample(SETTING, Phase(**values, lists=2), 3, 4)
    assert sample.input_ids.count(EOS_ID) == without.input_ids.count(EOS_ID) + 2
    assert len(sample.input_ids) == len(sample.labels) == len(sample.pointers) == len(sample.positions)
    assert sample.input_ids[: without.length] == without.input_ids
    assert set(sample.pointers[without.length :]) == {-1}


def test_no_lists_are_added_to_other_pages():
    values = {"name": "drawn", "kind": "reader", "steps": 1, "tokens": 1, "views": 2}
    assert make_sample(SETTING, Phase(**values, lists=2), 3, 4).input_ids == (
        make_sample(SETTING, Phase(**values), 3, 4).input_ids
    )


def test_each_list_is_a_turn():
    ids, labels, pointers = converse_about_lists(SETTING, False, 3, random.Random(0))
    assert len(ids) == len(labels) == len(pointers) and ids.count(EOS_ID) == 3
