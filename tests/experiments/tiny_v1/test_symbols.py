"""The code between the two halves of the built-in model."""

import numpy as np
import torch

from experiments.tiny_v1.setting import QUERY_GRID
from experiments.tiny_v1.symbols import (
    EMPTY,
    FIRST_CHARACTER,
    SMALL,
    encode_symbols,
    plan_of,
    sequence_symbols,
    symbol_vectors,
    view_symbols,
)
from llava_uhd.synthetic import Document, make_document
from llava_uhd.synthetic.page import Page, Text


def letter(character: str) -> int:
    return ord(character) - 32 + FIRST_CHARACTER


def page_with(text: str, x: float, baseline: float, size: tuple[int, int]) -> Document:
    page = Page(size, (255, 255, 255))
    page.texts.append(Text(text, x, baseline, "DejaVuSansMono", 20, (0, 0, 0)))
    return Document("form", page, ())


def test_a_word_in_a_stitched_raster():
    """A page of 336 x 504 has 2 x 3 slices: 16 windows of 21 pixels across, 24 down."""
    document = page_with("AB CD", 4, 100, (336, 504))  # 12 pixels a character: middles at 10, 22, 46, 58
    plan = plan_of(document)
    symbols = sequence_symbols(document, plan)
    row = int((100 - 0.36 * 20) / 21)
    assert plan.grid == (2, 3)
    assert symbols.shape == (16 * 24 + 64, 4)
    line = symbols[16 * row : 16 * row + 4]
    assert line.tolist() == [
        [letter("A"), EMPTY, EMPTY, EMPTY],
        [letter("B"), EMPTY, EMPTY, EMPTY],
        [letter("C"), letter("D"), EMPTY, EMPTY],
        [EMPTY] * 4,
    ]
    assert (symbols[: 16 * 24] != EMPTY).sum() == 4
    overview = symbols[16 * 24 :]
    assert set(np.unique(overview)) == {EMPTY, SMALL}


def test_views_and_sequence_hold_the_same():
    for index in range(10):
        document = make_document(2, index)
        plan = plan_of(document)
        views, sequence = np.concatenate(view_symbols(document, plan)), sequence_symbols(document, plan)
        assert sorted(map(tuple, views)) == sorted(map(tuple, sequence))


def test_every_patch_of_a_document_has_its_window():
    for index in range(40):
        plan = plan_of(make_document(2, index))
        assert max(plan.view_shapes[0]) <= QUERY_GRID


def test_nearly_all_characters_have_a_place():
    printed = placed = 0
    for index in range(30):
        document = make_document(2, index)
        plan = plan_of(document)
        printed += sum(1 for _ in document.page.characters())
        views = view_symbols(document, plan)
        placed += sum(int((view >= FIRST_CHARACTER).sum()) for view in views)
    assert 0.995 * printed < placed <= printed


def test_codes_tell_symbols_apart():
    vectors = symbol_vectors()
    symbols = torch.randint(0, vectors.shape[1], (50, 4), generator=torch.Generator().manual_seed(1))
    codes = encode_symbols(symbols, vectors).unflatten(-1, (4, -1))
    nearest = torch.cdist(codes.transpose(0, 1), vectors).argmin(dim=-1).T
    assert torch.equal(nearest, symbols)
