"""Notes of numbers, by which they can be compared digit by digit."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from llava_uhd.synthetic.varied.notes import (
    COMPARED_SIGNS,
    DIGITS,
    EQUAL,
    LARGER,
    LAST,
    LEADS,
    MORE,
    SMALLER,
    TRAILS,
    compare_rows,
    note_compared,
    note_number,
    noted_digits,
)

CENTS = st.integers(1, 10**8)
FORMS = st.sampled_from(("{:,.2f}", "${:,.2f}", "{:.2f} kg", "EUR {:,.2f}"))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("$1,204.50", "4120"),
        ("1 204,5", "4120"),
        ("45%", "2450"),
        ("0.85 kg", "1085"),
        ("7", "1700"),
        ("12.5", "2125"),
        ("Total 87", "2870"),
        ("none", None),
        ("-3.20", None),
        ("(12)", None),
    ],
)
def test_a_note_has_the_length_of_a_number_and_its_first_digits(text, note):
    assert note_number(text) == note


@given(one=CENTS, other=CENTS, form=FORMS)
def test_notes_are_in_the_order_of_their_numbers(one, other, form):
    first, second = (note_number(form.format(cents / 100)) for cents in (one, other))
    assert first is not None and second is not None
    if one < other:
        assert first <= second
        if 10 * one < other:
            assert first < second


@given(numbers=st.lists(st.integers(0, 9999), min_size=1, max_size=9, unique=True), best=st.sampled_from((max, min)))
def test_a_number_leads_if_none_before_it_is_better(numbers, best):
    notes = note_compared([str(number) for number in numbers], numbers, best)
    if len({note_number(str(number)) for number in numbers}) == len(numbers):
        assert notes
    leads = [number for number, note in zip(numbers, notes, strict=False) if note[-1] == LEADS]
    assert all(note[:-1:3] == note_number(str(number)) for number, note in zip(numbers, notes, strict=False))
    if notes:
        assert {len(note) for note in notes} == {COMPARED_SIGNS}
        assert leads[0] == numbers[0] and leads[-1] == best(numbers)
        assert leads == sorted(leads, reverse=best is min)


def test_nothing_is_noted_of_numbers_that_would_not_be_told_apart_rightly():
    assert note_compared(["12.345", "99"], [12.345, 99], max) == ()  # a point between thousands, or a decimal one
    assert note_compared(["-3", "4"], [-3, 4], max) == ()
    assert note_compared(["3", "4"], [3, 4], max)


@given(numbers=st.lists(st.integers(0, 9999), min_size=1, max_size=9, unique=True), best=st.sampled_from((max, min)))
def test_each_sign_is_compared_with_that_of_the_best_number_before(numbers, best):
    notes = note_compared([str(number) for number in numbers], numbers, best)
    for place, (number, note) in enumerate(zip(numbers, notes, strict=False)):
        before = best(numbers[:place] or [number])
        own, of_best, orders = note[:-1:3], note[1:-1:3], note[2:-1:3]
        assert of_best == note_number(str(before))
        for sign, order in enumerate(orders):
            ordered = (own[: sign + 1] > of_best[: sign + 1]) - (own[: sign + 1] < of_best[: sign + 1])
            assert order == {1: LARGER, -1: SMALLER, 0: EQUAL}[ordered]
        leads = orders[-1] in (EQUAL, LARGER if best is max else SMALLER)
        assert note[-1] == (LEADS if leads else TRAILS)


def test_the_notes_of_two_numbers_are_compared_from_the_first_sign_that_differs():
    assert note_compared(["31", "4"], [31, 4], max) == ("220330110000+", "12-43-01-00--")
    assert note_compared(["31", "4"], [31, 4], min) == ("220330110000+", "12-43-01-00-+")
    assert note_compared(["31", "35"], [31, 35], max) == ("220330110000+", "22033051+00++")


def test_each_row_is_read_by_its_name_and_number_and_ends_with_the_row_that_leads():
    rows = [SimpleNamespace(text=text) for text in ("Mon", "31", "Tue", "4", "Wed", "35")]
    mon, _, tue, _, wed, _ = rows
    names, cells, numbers = rows[::2], rows[1::2], (31.0, 4.0, 35.0)
    for best, leaders in ((max, [mon, mon, wed]), (min, [mon, tue, tue])):
        keys, notes = compare_rows(names, cells, numbers, best)
        assert list(keys[::3]) == names and list(keys[1::3]) == cells and list(keys[2::3]) == leaders
        assert notes[::3] == ("",) * 3 and notes[2::3] == (MORE, MORE, LAST)
        assert notes[1::3] == note_compared(["31", "4", "35"], numbers, best)
    assert compare_rows(names, [mon, tue, wed], numbers, max) == ((), ())  # no number is printed


@given(cents=CENTS, form=FORMS)
def test_the_digits_of_a_note_repeat_those_that_are_printed(cents, form):
    text = form.format(cents / 100)
    (note,) = note_compared([text], [cents / 100], max)
    positions = noted_digits(text, note)
    assert len(positions) == len(note)
    repeated = positions[3:-1:3]
    assert [text[position] for position in repeated] == list(note[3:-1:3])
    assert len(repeated) == DIGITS and positions.count(-1) == len(note) - DIGITS


def test_the_number_of_a_counted_name_repeats_nothing():
    assert noted_digits("Room 12", "12") == [-1, -1] and noted_digits("Room 12", "") == []
