"""Synthetic documents: reproducible, answerable from what is printed, and of the sizes they promise."""

import random
from collections import Counter

import numpy as np
import pytest

from llava_uhd.model.slicing import plan_slices
from llava_uhd.synthetic import HELD_OUT_SEED, KINDS, held_out_documents, make_document, make_scribble, render
from llava_uhd.synthetic.fonts import FOLDER, FONTS, text_width
from llava_uhd.synthetic.page import Page, Text


@pytest.fixture(scope="module")
def documents():
    return [make_document(3, index) for index in range(120)]


def test_a_document_is_a_function_of_seed_and_index(documents):
    for index in (0, 17, 60):
        again = make_document(3, index)
        assert again == documents[index]
        assert np.array_equal(np.asarray(render(again.page)), np.asarray(render(documents[index].page)))
    assert make_document(4, 0) != documents[0]


def test_drawing_one_document_does_not_change_the_next():
    random.seed(0)
    first = make_document(3, 5)
    random.seed(1)
    make_document(3, 9)
    assert make_document(3, 5) == first


def test_every_answer_is_printed_on_the_page(documents):
    for document in documents:
        printed = [text.text for text in document.page.texts]
        assert document.questions
        for question in document.questions:
            assert any(question.answer in text for text in printed), (question, printed)


def test_the_value_of_a_label_stands_on_its_line():
    for index in range(40):
        document = make_document(3, index, kind="receipt")
        baselines = {text.text: text.baseline for text in document.page.texts}
        for question in document.questions:
            if question.text.startswith("Price of "):
                name = question.text.removeprefix("Price of ").removesuffix("?")
                beside = [text.text for text in document.page.texts if text.baseline == baselines[name]]
                assert beside == [name, question.answer]


def test_questions_about_extremes_name_the_extreme():
    for index in range(40):
        document = make_document(3, index, kind="chart")
        values, extremes = {}, {}
        for question in document.questions:
            if question.text in ("Which is the highest?", "Which bar is the longest?"):
                extremes[max] = question.answer
            elif question.text in ("Which is the lowest?", "Which bar is the shortest?"):
                extremes[min] = question.answer
            elif "itle" not in question.text:
                name = question.text.removesuffix("?").split(" of ")[-1]
                values[name] = int(question.answer.removesuffix("%"))
        for extreme, name in extremes.items():
            assert name == extreme(values, key=values.__getitem__)
        unit = "%" if any("%" in text.text for text in document.page.texts) else ""
        hints = {f"Which bar is {value}{unit}?": name for name, value in values.items()}
        if extremes:
            hints |= {"What is the highest value?": f"{max(values.values())}{unit}"}
            hints |= {"What is the lowest value?": f"{min(values.values())}{unit}"}
        assert {hint.text: hint.answer for hint in document.hints} == hints


def test_characters_lie_on_the_page(documents):
    for document in [*documents, *(make_scribble(3, index) for index in range(10))]:
        width, height = document.page.size
        positions = [(x, y) for _, x, y in document.page.characters()]
        outside = [(x, y) for x, y in positions if not (0 <= x < width and 0 <= y < height)]
        assert positions
        assert len(outside) <= 0.02 * len(positions), (document.kind, document.page.size, outside)


@pytest.mark.parametrize("tilt", [0.0, 2.0])
def test_a_character_stands_where_it_says(tilt):
    page = Page((300, 200), (255, 255, 255), tilt=tilt)
    page.texts.append(Text("H", 230, 180, "DejaVuSans-Bold", 40, (0, 0, 0)))
    ((character, x, y),) = page.characters()
    dark = np.argwhere(np.asarray(render(page).convert("L")) < 128)
    middle_y, middle_x = (dark.min(axis=0) + dark.max(axis=0)) / 2
    assert character == "H"
    assert abs(x - middle_x) < 1.5
    assert abs(y - middle_y) < 1.5


@pytest.mark.parametrize("font", FONTS)
def test_a_text_is_as_wide_as_its_characters(font):
    page = Page((600, 60), (255, 255, 255))
    page.texts.append(Text("HAVE 0123 To, WAVE.H", 20, 45, font, 30, (0, 0, 0)))
    columns = np.flatnonzero((np.asarray(render(page).convert("L")) < 128).any(axis=0))
    assert abs(columns[-1] - (20 + text_width(page.texts[0].text, font, 30))) < 6


def test_fonts_are_small():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.ttf")) < 400_000


def test_most_documents_need_six_slices_and_some_fewer():
    grids = Counter(
        plan_slices(*document.page.size, max_slices=7, view_size=112, patch_size=14).grid
        for document in (make_document(5, index) for index in range(400))
    )
    six = sum(count for grid, count in grids.items() if grid and grid[0] * grid[1] in (6, 7))
    assert 0.8 < six / 400 < 0.95
    assert {(2, 3), (3, 2), None} <= set(grids)
    assert len(grids) >= 6


def test_held_out_documents_take_the_kinds_in_turn():
    documents = held_out_documents(8)
    assert [document.kind for document in documents] == [*KINDS, *KINDS]
    assert documents[5] == make_document(HELD_OUT_SEED, 5, kind=KINDS[1])
