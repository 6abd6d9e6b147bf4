"""Lists of numbers to compare, without a page: practice for the notes of `llava_uhd.synthetic.varied.notes`.

Whether a number leads is one token of the twenty that it takes to find a number on a page and to note it, and all
questions about a page compare the same few numbers. Here the rows, their numbers and the places of both are given,
others in every list, and the loss is on what follows from them alone: the signs of the best number before, which one
is larger, whether the number leads, and the place of the row that leads.
"""

import random
from collections.abc import Callable, Sequence

from llava_uhd.synthetic.charts import HIGHEST as LONGEST_BAR
from llava_uhd.synthetic.charts import LOWEST as SHORTEST_BAR
from llava_uhd.synthetic.varied.notes import COMPARED_SIGNS, DIGITS, LAST, LEADS, MORE, NOTED, note_compared
from llava_uhd.synthetic.varied.wordings import CHEAPEST, DEAREST, HIGHEST, LARGEST, LOWEST, SMALLEST

from ..tiny_v1.samples import IGNORED
from .locations import FOUND_ID, HALVES, LOCATION_ID, SIDES, first_note_id, first_slice_id
from .setting import Setting

Best = Callable[[Sequence[float]], float]
QUESTIONS: tuple[tuple[Best, tuple[tuple[str, ...], ...]], ...] = (
    (max, (HIGHEST, LARGEST, DEAREST, LONGEST_BAR)),
    (min, (LOWEST, SMALLEST, CHEAPEST, SHORTEST_BAR)),
)
NOUNS = ("item", "city", "month", "product", "bar", "row", "name", "dish", "day", "team")
COLUMNS = ("value", "price", "amount", "share", "stock", "total", "number", "quantity", "score")
# Ranges of numbers, in hundredths.
RANGES = ((100, 10_000), (1_000, 100_000), (10_000, 1_000_000), (50, 2_000), (100_000, 10_000_000))
FEWEST, MOST = 2, 12
# Of lists, the part whose numbers are near each other, and the part in which most numbers lead.
NEAR, RISING = 0.4, 0.4
# Of places, the part that is on another slice than the one before.
OTHER_SLICE = 0.3


def practice_list(setting: Setting, rng: random.Random, sliced: bool) -> tuple[str, list[int], list[int]]:
    """Return a question, the tokens of its answer up to the place of the best row, and their labels.

    Args:
        setting: sizes of the model.
        rng: generator of the sample.
        sliced: whether places name their slice.
    """
    best, sorts = rng.choice(QUESTIONS)
    question = rng.choice(rng.choice(sorts)).format(noun=rng.choice(NOUNS), column=rng.choice(COLUMNS))
    notes: tuple[str, ...] = ()
    while not notes:
        numbers = _draw_numbers(rng, best)
        notes = note_compared([f"{number:.2f}" for number in numbers], numbers, best)
    grid, first_note = setting.query_grid, first_note_id(setting.query_grid, setting.max_slices)
    ids, labels = [FOUND_ID], [IGNORED]
    last_slice = -1
    in_slice = _draw_slice(setting, rng)
    quarters = iter(rng.sample(range(HALVES * SIDES * grid**2), k=2 * len(notes)))  # no two texts stand in one

    def name_place(of_slice: int, place: int, *, predicted: bool) -> None:
        nonlocal last_slice
        where = [of_slice, place] if sliced and of_slice != last_slice else [place]
        last_slice = of_slice
        ids.extend(where)
        labels.extend(where if predicted else [IGNORED] * len(where))

    leader = (-1, -1)
    for number, note in enumerate(notes, start=1):
        of_row = []
        for _ in ("name", "number"):
            in_slice = _draw_slice(setting, rng) if rng.random() < OTHER_SLICE else in_slice
            of_row.append((in_slice, LOCATION_ID + next(quarters)))
            name_place(*of_row[-1], predicted=False)
        signs = [first_note + NOTED.index(sign) for sign in note]
        ids += signs
        labels += signs
        labels[-COMPARED_SIGNS:-1:3] = [IGNORED] * (DIGITS + 1)  # the number's own signs
        leader = of_row[0] if note.endswith(LEADS) else leader
        name_place(*leader, predicted=True)
        ids.append(first_note + NOTED.index(MORE if number < len(notes) else LAST))
        labels.append(IGNORED)
    return question, ids, labels


def _draw_numbers(rng: random.Random, best: Best) -> list[float]:
    """Numbers with at most two decimals, all or none of them with some."""
    least, most = rng.choice(RANGES)
    if rng.random() < NEAR:
        least = rng.randint(least, most - least)
        most = min(least + max(least // 5, 100), most)
    step = rng.choice((1, 100)) if most - least > MOST * 100 else 1
    choices = range(least - least % step, most, step)
    numbers = rng.sample(choices, k=rng.randint(FEWEST, min(MOST, len(choices))))
    if rng.random() < RISING:
        numbers.sort(reverse=best is min)
        for _ in range(rng.randint(0, 2)):  # some of them out of their order
            numbers.insert(rng.randrange(len(numbers)), numbers.pop(rng.randrange(len(numbers))))
    return [number / 100 for number in numbers]


def _draw_slice(setting: Setting, rng: random.Random) -> int:
    """Token of a slice of a small page."""
    row, column = rng.randrange(3), rng.randrange(3)
    return first_slice_id(setting.query_grid) + row * setting.max_slices + column
