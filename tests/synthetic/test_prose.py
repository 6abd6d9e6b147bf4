"""Values that running text states."""

import random
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from llava_uhd.synthetic.varied import make_varied
from llava_uhd.synthetic.varied.content import Content
from llava_uhd.synthetic.varied.facts import Field, Line
from llava_uhd.synthetic.varied.fonts import find_families
from llava_uhd.synthetic.varied.labels import LABELS
from llava_uhd.synthetic.varied.prose import SENTENCES, state, stated
from llava_uhd.synthetic.varied.questions import ask_all
from llava_uhd.synthetic.varied.sheet import Sheet, draw_style
from llava_uhd.synthetic.varied.statements import OF_OBJECTS, OF_OCCASIONS, draw_statements, told_apart


def make_sheet(seed, width):
    rng = random.Random(seed)
    return Sheet(rng, Content(rng), draw_style(rng, find_families(()), 14), (width, 2000))


def read(sheet):
    """The lines of a page as one reads them: runs that touch are one word."""
    lines = []
    for _, runs in groupby(sheet.texts, key=lambda run: run.baseline):
        line, end = "", None
        for run in sorted(runs, key=lambda run: run.x):
            space = sheet.measure("n n") - sheet.measure("nn")
            line += (" " if end is not None and run.x - end > 0.5 * space else "") + run.text
            end = run.x + run.width
        assert end <= sheet.right + 1
        lines.append(line)
    return lines


@given(seed=st.integers(0, 10**6), width=st.integers(200, 900), count=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_value_is_stated_in_a_whole_sentence_and_found_by_its_words(seed, width, count):
    sheet = make_sheet(seed, width)
    names = sheet.rng.sample(list(SENTENCES), k=count)
    state(sheet, [stated(sheet, name) for name in names], ["So it continues.", "Nothing is said here."], 100)
    text = " ".join(read(sheet))
    facts = {fact.label: fact for fact in sheet.facts if isinstance(fact, Field)}
    assert set(facts) == sheet.unlabeled <= set(names) and "Nothing is said here." in text
    assert set(names) - set(facts) <= {"email"} or width < 300
    for name, fact in facts.items():
        (sentence,) = (each for each in SENTENCES[name] if each.replace("*", "").format(value=fact.value) in text)
        cue = sentence.split("*")[1]
        assert " ".join(run.text for run in fact.sources) == fact.value
        (key,) = fact.keys
        assert cue.endswith(key.text) and key in sheet.texts
    assert {fact.run.text for fact in sheet.facts if isinstance(fact, Line)} <= set(read(sheet))


def test_a_value_that_is_not_all_on_the_page_is_not_asked_for():
    for seed in range(20):
        sheet = make_sheet(seed, 220)
        state(sheet, [stated(sheet, name) for name in ("email", "delivery date", "phone")], (), 2)
        assert len(read(sheet)) <= 2
        text = " ".join(read(sheet))
        for fact in (fact for fact in sheet.facts if isinstance(fact, Field)):
            assert fact.value in text
        asked = {question.answer for question in ask_all(sheet) if question.ability not in ("unanswerable", "line")}
        assert asked == {fact.value for fact in sheet.facts if isinstance(fact, Field)}


def test_sentences_are_of_labels_have_a_cue_and_a_value_and_are_not_those_of_webdocs():
    assert set(SENTENCES) <= set(LABELS)
    sentences = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    sentences += [form.sentence.format(thing="meeting", value="{value}") for form in (*OF_OCCASIONS, *OF_OBJECTS)]
    pages = Path(__file__).parents[2] / "benchmarks" / "webdocs" / "html_pages.py"
    letters = pages.read_text().replace("draft.value", "")
    assert "at the door" in letters
    for sentence in sentences:
        assert sentence.count("{value}") == 1 and sentence.count("*") == 2 and sentence.endswith(".")
        before = sentence.replace("*", "").split("{value}")[0]
        assert not before or before not in letters


@given(seed=st.integers(0, 10**6), count=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_what_is_said_of_things_is_asked_with_their_names(seed, count):
    sheet = make_sheet(seed, 700)
    statements = draw_statements(sheet.rng, sheet.content, count)
    assert 1 <= len(statements) <= count and len({statement.label for statement in statements}) == len(statements)
    state(sheet, statements, (), 100)
    facts = [fact for fact in sheet.facts if isinstance(fact, Field)]
    assert {(fact.label, fact.value) for fact in facts} == {(each.label, each.value) for each in statements}
    for fact in facts:
        (key,) = fact.keys
        # The thing, or what of it stands on the line of its end.
        assert fact.label.endswith(key.text) and all(key.text in wording for wording in fact.wordings)
        assert told_apart(next(each for each in statements if each.label == fact.label)) <= set(LABELS)


def test_letters_state_values():
    made = [make_varied("stated", index, kind="letter", fonts=()) for index in range(20)]
    found = [question for document in made for question in document.questions if question.keys]
    cues = {sentence.split("*")[1] for sentences in SENTENCES.values() for sentence in sentences}
    assert sum(question.keys[0].text in cues for question in found) > 20
