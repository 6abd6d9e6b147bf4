"""Notes of numbers, by which they can be compared digit by digit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from llava_uhd.synthetic.varied.notes import DIGITS, LEADS, TRAILS, note_compared, note_number, noted_digits

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
    assert all(note[:-1] == note_number(str(number)) for number, note in zip(numbers, notes, strict=False))
    if notes:
        assert leads[0] == numbers[0] and leads[-1] == best(numbers)
        assert leads == sorted(leads, reverse=best is min)


def test_nothing_is_noted_of_numbers_that_would_not_be_told_apart_rightly():
    assert note_compared(["12.345", "99"], [12.345, 99], max) == ()  # a point between thousands, or a decimal one
    assert note_compared(["-3", "4"], [-3, 4], max) == ()
    assert note_compared(["3", "4"], [3, 4], max) == (f"1300{LEADS}", f"1400{LEADS}")
    assert note_compared(["3", "4"], [3, 4], min) == (f"1300{LEADS}", f"1400{TRAILS}")


@given(cents=CENTS, form=FORMS)
def test_the_digits_of_a_note_repeat_those_that_are_printed(cents, form):
    text = form.format(cents / 100)
    note = f"{note_number(text)}{LEADS}"
    positions = noted_digits(text, note)
    assert len(positions) == len(note) and positions[0] == positions[-1] == -1
    repeated = positions[1 : 1 + DIGITS]
    assert [text[position] for position in repeated] == list(note[1 : 1 + DIGITS])


def test_the_number_of_a_counted_name_repeats_nothing():
    assert noted_digits("Room 12", "12") == [-1, -1] and noted_digits("Room 12", "") == []
