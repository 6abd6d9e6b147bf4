"""Lists of numbers to compare, without a page."""

import random
from itertools import islice

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
from llava_uhd.synthetic.varied.notes import COMPARED_SIGNS, LAST, LEADS, MORE, NOTED

SETTING = load_plan().setting
GRID = SETTING.query_grid
NOTES = first_note_id(GRID, SETTING.max_slices)


Place = tuple[int, int]


def read_list(ids: list[int]) -> list[tuple[Place, str, Place, str]]:
    """Slice and quarter of each row's name, the note of its number, those of the row that leads, and what follows."""
    assert ids[0] == FOUND_ID
    rows, in_slice, rest = [], -1, iter(ids[1:])

    def read_place(token: int) -> Place:
        nonlocal in_slice
        if not is_quarter(token, GRID):
            assert token != in_slice
            in_slice, token = token, next(rest)
        assert is_quarter(token, GRID)
        return in_slice, token

    def read_note(count: int) -> str:
        return "".join(NOTED[token - NOTES] for token in islice(rest, count))

    for token in rest:
        name = read_place(token)
        read_place(next(rest))
        rows.append((name, read_note(COMPARED_SIGNS), read_place(next(rest)), read_note(1)))
    return rows


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), sliced=st.booleans())
def test_each_row_of_a_list_ends_with_the_one_that_leads(seed, sliced):
    question, ids, _ = practice_list(SETTING, random.Random(seed), sliced)
    names, notes, leaders, follow = zip(*read_list(ids), strict=True)
    assert "{" not in question and FEWEST <= len(notes) <= MOST
    (choose,) = {best for best, sorts in QUESTIONS for words in sorts for word in words if matches(word, question)}
    numbers = [note[:-1:3] for note in notes]
    for count, leader in enumerate(leaders, start=1):
        best = choose(numbers[:count])
        assert leader in {name for name, number in zip(names[:count], numbers, strict=False) if number == best}
        assert (leader == names[count - 1]) == (notes[count - 1][-1] == LEADS)
    assert "".join(follow) == MORE * (len(notes) - 1) + LAST
    assert all(first_slice_id(GRID) <= in_slice < NOTES for in_slice, _ in names) == sliced


def matches(wording: str, question: str) -> bool:
    return all(part in question for part in wording.replace("{column}", "{noun}").split("{noun}"))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_what_only_a_page_could_tell_is_not_to_be_predicted(seed):
    _, ids, labels = practice_list(SETTING, random.Random(seed), True)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    predicted = []
    for _, note, leader, _ in read_list(ids):
        compared = [sign for place, sign in enumerate(note) if place % 3 or place == COMPARED_SIGNS - 1]
        predicted.append(([NOTES + NOTED.index(sign) for sign in compared], leader))
    labeled = iter(label for label in labels if label != IGNORED)
    for signs, (in_slice, quarter) in predicted:
        assert list(islice(labeled, len(signs))) == signs
        place = next(labeled)
        assert place == quarter or (place == in_slice and next(labeled) == quarter)
    assert next(labeled, None) is None


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
