"""Codes of pages: which character stands in which slot and on which cell."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.tiny import symbols as symbol_names
from experiments.tiny.crops import cell_symbols, cut_crops, label_map
from experiments.tiny.earlier import EarlierDocument
from experiments.tiny.samples import draw_document, make_sample
from experiments.tiny.setting import Phase, Setting, load_plan
from experiments.tiny.symbols import (
    CONTINUED,
    EMPTY,
    SYMBOL_OF,
    crop_symbols,
    encode_symbols,
    plan_of,
    sequence_symbols,
    symbol_vectors,
    view_symbols,
    window_locations,
    window_symbols,
    without_continued,
)
from experiments.tiny_v1.tokenizer import IMAGE_ID, byte_id
from llava_uhd.synthetic.varied import SCRIBBLE, Glyphs, make_varied
from llava_uhd.synthetic.varied.fonts import CHARACTERS


class Page:
    """Stand-in of a document with characters at given places."""

    def __init__(self, text, points, size):
        self.size = size
        self.glyphs = Glyphs(
            text,
            np.zeros(len(text), int),
            np.array(points, float),
            np.full(len(text), 10.0),
            np.array([(x - 2, x + 2) for x, _ in points], float),
            np.zeros(len(text), bool),
        )


def middles(symbols):
    """Symbols in the slots where their characters' middles are."""
    return without_continued(torch.from_numpy(symbols)).numpy()


def named(symbols):
    """Symbols as text, with spaces for empty slots."""
    return "".join(" " if symbol == EMPTY else CHARACTERS[symbol - symbol_names.FIRST] for symbol in symbols.flat)


@pytest.mark.parametrize(
    "text, x, slots",
    [
        ("ab", [2, 17], "a  b"),
        ("ba", [17, 2], "a  b"),
        ("ab", [11, 13], "  ab"),  # in one slot: the right one moves on
        ("abc", [16, 17, 18], " abc"),  # and the left ones back where the slots end
        ("abcdef", [1, 2, 3, 4, 5, 6], "abcd"),
        ("abcd", [1, 6, 7, 19], "abcd"),
    ],
)
def test_a_character_stands_in_the_slot_where_its_middle_is(text, x, slots):
    page = Page(text, [(each, 5) for each in x], (100, 100))
    symbols = middles(window_symbols(page, (5, 5), 8))
    assert named(symbols[0, 0]) == slots + "    "
    assert (symbols != EMPTY).sum() == len(slots.replace(" ", ""))
    below = Page(text, [(each + 40, 15) for each in x], (100, 100))
    assert named(middles(window_symbols(below, (5, 5), 8))[0, 2]) == "    " + slots


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=40),
    slots=st.sampled_from([2, 4, 6, 8]),
)
def test_as_many_characters_have_a_slot_as_half_windows_hold(points, slots):
    page = Page("x" * len(points), points, (100, 100))
    symbols = middles(window_symbols(page, (5, 5), slots))
    halves = Counter((y // 10, x // 20) for x, y in points)
    assert (symbols != EMPTY).sum() == sum(min(count, slots // 2) for count in halves.values())


def test_a_character_is_continued_in_the_free_slots_that_it_covers():
    # Windows of 20 x 20 pixels with slots of 10 x 10, characters of 4 x 9 pixels.
    a, b = (SYMBOL_OF[name] for name in "ab")
    page = Page("a", [(13.5, 8)], (40, 40))
    assert window_symbols(page, (2, 2), 4)[0, 0].tolist() == [EMPTY, a, EMPTY, EMPTY]
    page.glyphs.edges[:] = 2, 36  # a wide one, 20 pixels high
    page.glyphs.sizes[:] = 25.0
    page.glyphs.points[:] = 19, 15
    more = a + CONTINUED
    assert window_symbols(page, (2, 2), 4)[0].tolist() == [[more, more, more, a], [more] * 4]
    assert window_symbols(page, (2, 2), 4)[1].tolist() == [[more, more, EMPTY, EMPTY]] * 2
    # Where a character's middle is, no other one is continued.
    both = Page("ab", [(19, 15), (25, 5)], (40, 40))
    both.glyphs.edges[0], both.glyphs.sizes[0] = (2, 36), 25.0
    assert window_symbols(both, (2, 2), 4)[0, 1].tolist() == [b, more, more, more]


def test_what_covers_a_slot_agrees_with_the_cells():
    """Both name the character over a point, one by slots, the other by pixels."""
    setting = load_plan().setting
    document = make_varied("covered", 0, kind="letter", shown=4 * setting.view_size**2, fonts=())
    symbols = crop_symbols(document, 1.0, 0, 0, setting).reshape(16, 16, 2, 4).swapaxes(1, 2).reshape(32, 64)
    labels, rows, columns = label_map(document, 1.0), np.arange(32) * 7, (np.arange(64) * 3.5).astype(int)
    # Labels are rounded to pixels, so that those around the middle count.
    around = [labels[np.ix_(rows + 2 + down, columns + right)] for down in range(4) for right in range(4)]
    covered = symbols >= symbol_names.FIRST + CONTINUED
    agree = np.logical_or.reduce([symbols - CONTINUED == each for each in around])
    assert covered.sum() > 20 and agree[covered].mean() > 0.97


def test_characters_of_a_padded_page_stand_where_its_views_show_them():
    page = Page("a", [(50, 10)], (100, 20))
    symbols = middles(window_symbols(page, (5, 5), 2, padded_size=(100, 100)))
    assert np.argwhere(symbols != EMPTY).tolist() == [[2, 2, 1]]  # 50 pixels from the top


def test_the_code_of_an_overview_says_where_there_is_text():
    setting = Setting()
    document = make_varied("symbols", 1, kind="letter", shown=4 * setting.view_size**2, fonts=())
    plan = plan_of(document, setting, 4)
    *_, overview = view_symbols(document, plan, setting)
    assert plan.grid and set(overview[:, 0]) == {EMPTY, symbol_names.SMALL} and set(overview[:, 1:].flat) == {EMPTY}


def test_every_slice_of_a_page_is_a_square_of_whole_windows():
    setting = Setting()
    for index in range(6):
        plan = plan_of(make_varied("shapes", index, shown=6 * setting.view_size**2, fonts=()), setting, 6)
        assert set(plan.view_shapes[: max(plan.num_slices, 1)]) == {(16, 16)}


def test_a_character_that_begins_a_word_is_a_symbol_of_its_own():
    document = make_varied("words", 0, kind="letter", fonts=())
    glyphs = document.glyphs
    words = [word for run in document.sheet.texts for word in run.text.split()]
    assert "".join(np.array(list(glyphs.text))[glyphs.begins]) == "".join(word[0] for word in words)
    symbols = middles(window_symbols(document, (90, 70), 8))
    assert 0.9 * len(words) < (symbols >= symbol_names.NUM_PLAIN).sum() <= len(words)
    # Both are the same vector but for one channel; of a continued one the rest is half as long.
    of_a = [SYMBOL_OF["a"] + form for form in (0, symbol_names.BEGINS, CONTINUED)]
    plain, begins, continued = symbol_vectors(Setting())[of_a]
    assert (plain != begins).sum() == 1
    assert torch.equal(continued[4:], 0.5 * plain[4:]) and continued[3] == -plain[3]


def test_nearly_all_characters_have_a_place_and_views_and_sequence_agree():
    setting = load_plan().setting
    printed = placed = 0
    for index in range(4):
        document = make_varied("symbols", index, shown=4 * setting.view_size**2, fonts=())
        plan = plan_of(document, setting, 4)
        views, sequence = view_symbols(document, plan, setting), sequence_symbols(document, plan, setting)
        assert sorted(map(tuple, views.reshape(-1, setting.slots))) == sorted(map(tuple, sequence))
        slices = views if plan.grid is None else views[:-1]
        printed += len(document.glyphs.text)
        placed += int((middles(slices) > 1).sum())
    assert 0.97 * printed < placed <= printed


def test_cells_name_the_character_that_covers_them():
    page = Page("ab", [(10, 20), (14, 20)], (60, 60))
    labels = label_map(page, 1.0)
    assert labels[20, 9] == labels[16, 11] == SYMBOL_OF["a"] and labels[20, 13] == SYMBOL_OF["b"]
    assert labels[20, 7] == labels[20, 16] == labels[12, 10] == labels[28, 10] == EMPTY
    cells = cell_symbols(labels[:56, :56], (4, 4), 14, (2, 5))
    assert cells.shape == (16, 10)
    # The second patch of the second row begins at (14, 14); its first cell's middle is at (15, 17).
    assert cells[5, 0] == SYMBOL_OF["b"] and set(cells[5, 1:]) == {EMPTY}
    assert (label_map(page, 0.4) == symbol_names.SMALL).any()  # print of 4 pixels


def test_the_windows_of_a_view_at_any_place_are_those_of_the_whole_page():
    setting = Setting()
    document = make_varied("crops", 0, kind=SCRIBBLE, shown=4 * setting.view_size**2, fonts=())
    found = crop_symbols(document, 1.0, 0, 0, setting)
    moved = crop_symbols(document, 1.0, 2 * setting.patch_size, 3 * setting.patch_size, setting)
    grid = setting.query_grid
    found, moved = (each.reshape(grid, grid, -1) for each in (found, moved))
    assert np.array_equal(moved[:-3, :-2], found[3:, 2:]) and (found > 1).sum() > 50
    small = crop_symbols(document, 0.1, 0, 0, setting)
    assert set(small[:, 0]) == {EMPTY, symbol_names.SMALL} and set(small[:, 1:].flat) == {EMPTY}


def test_a_page_of_solid_letters_darkens_the_cells_with_labels():
    document = make_varied("solid", 0, kind=SCRIBBLE, shown=Setting().view_size ** 2, fonts=())
    ((patches, symbols, _), *others) = cut_crops(document, Setting(), 1, 3, random.Random(0))
    assert patches.shape == (256, 588) and symbols.shape == (256, 10) and len(others) == 2
    spread = patches.float().std(dim=1)
    text = (symbols > symbol_names.SMALL).float().mean(dim=1)
    assert spread[text > 0.7].mean() > 2 * spread[text == 0].mean()


def test_documents_of_the_first_generator_are_read_like_the_others():
    setting, phase = Setting(), Phase("reader", "reader", 1, 4000, views=4, earlier=1.0, blanks=1.0)
    document = draw_document(setting, phase, 0, 1)
    assert isinstance(document, EarlierDocument) and len(document.glyphs.text) > 20
    # The page is darker or lighter where a character is than between the lines.
    gray = np.asarray(document.render().convert("L"), float)
    glyphs = document.glyphs
    boxes = [
        gray[int(y - 0.4 * size) : int(y + 0.4 * size), int(left) : int(right) + 1]
        for (_, y), size, (left, right) in zip(glyphs.points, glyphs.sizes, glyphs.edges, strict=True)
    ]
    assert np.median([box.max() - box.min() for box in boxes]) > 60
    named = found = 0
    for index in range(5):
        sample = make_sample(setting, phase, 1, index)
        images = [at for at, token in enumerate(sample.input_ids) if token == IMAGE_ID]
        held = dict(zip(images, sample.symbols.tolist(), strict=True))
        for position, pointer in enumerate(sample.pointers):
            character = sample.input_ids[position + 1] - byte_id("\0") if pointer >= 0 else 128
            if character < 128:
                symbol = SYMBOL_OF[chr(character)]
                named += 1
                found += symbol in held[pointer] or symbol + symbol_names.BEGINS in held[pointer]
    assert named > 100 and found > 0.95 * named


def test_codes_tell_symbols_apart():
    vectors = symbol_vectors(Setting())
    symbols = torch.randint(0, len(vectors), (40, 6), generator=torch.Generator().manual_seed(0))
    codes = encode_symbols(symbols, vectors).unflatten(-1, (6, -1))
    assert torch.equal(torch.cdist(codes, vectors[None]).argmin(dim=-1), symbols)


def test_codes_say_where_in_its_view_a_window_lies():
    setting = Setting(slots=8, width=256, text_heads=4, key_value_heads=2)
    locations, vectors = window_locations(setting), symbol_vectors(setting)
    distances = torch.cdist(locations.flatten(1), locations.flatten(1)) + 9 * torch.eye(len(locations))
    assert locations.shape == (256, 8, 2) and distances.min() > 1.0
    codes = encode_symbols(torch.full((256, 8), EMPTY), vectors, locations)
    assert torch.equal(codes.unflatten(-1, (8, -1))[..., :2], locations) and (codes != 0).sum() <= 256 * 16
    sample = make_sample(setting, Phase("reader", "reader", 1, 4000, views=2), 1, 0)
    assert len(sample.windows) == len(sample.symbols) and sample.windows.bincount().unique().numel() == 1
