"""The task webdocs: its archive, its outcomes and its scores."""

import json
from collections import Counter

import pytest

from llava_uhd.evaluation.metrics import METRICS
from llava_uhd.evaluation.samples import Sample, open_image
from llava_uhd.evaluation.scorers import is_declined, judge_answer, normalize_answer
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.evaluation.webdocs import ARCHIVE, DECLINABLE, read_webdocs


@pytest.fixture(scope="module")
def samples():
    return TASKS["webdocs"].load(None)


def test_the_archive_is_small_and_has_every_question_once(samples):
    assert ARCHIVE.stat().st_size < 3_000_000
    assert len(samples) == TASKS["webdocs"].count >= 300
    assert len({sample.question_id for sample in samples}) == len(samples)
    assert all(sample.answers for sample in samples)


def test_an_eighth_is_to_be_declined_and_every_program_ability_and_print_size_is_there(samples):
    abilities = Counter(sample.details["ability"] for sample in samples)
    assert 0.1 < sum(abilities[name] for name in DECLINABLE) / len(samples) < 0.16
    assert {"field", "cell", "price", "date", "name", "title", "total", "count", "extreme", "order"} <= set(abilities)
    kinds = {sample.category for sample in samples}
    assert {"receipt", "invoice", "packing list", "pie chart", "photograph", "spreadsheet"} <= kinds
    sizes = Counter(sample.details["print"] for sample in samples)
    assert len(sizes) == 5 and all(
        sizes[f"print of {size}"] >= 50 for size in ("10 to 12 px", "13 to 15 px", "16 px and more")
    )


def test_images_have_the_size_that_the_samples_say(samples):
    for sample in samples[:: len(samples) // 12]:
        assert open_image(sample.image_source).size == sample.image_size


@pytest.mark.parametrize("text", ["Not in the document.", "this is not a document I can read", "I cannot read it"])
def test_declining_words_decline(text):
    assert is_declined(text)


def test_outcomes():
    assert judge_answer(" $4.50. ", ("$4.50", "4.50"), False) == "right"
    assert judge_answer("Milk", ("milk",), False) == "right"
    assert judge_answer("4.5", ("4.50",), False) == "wrong"
    assert judge_answer("not in the document", ("4.50",), False) == "declined"
    assert judge_answer("not in the document", ("not in the document",), True) == "right"
    assert judge_answer("7%", ("not in the document",), True) == "wrong"
    assert normalize_answer(' "A  b!" ') == "a b"


def test_scores_count_what_is_wrong_without_saying_so():
    asked = [
        Sample(0, "a?", answers=("1",), category="receipt", details={"ability": "price", "print": "below 10 px"}),
        Sample(1, "b?", answers=("2",), category="receipt", details={"ability": "cell", "print": None}),
        Sample(2, "c?", answers=("3",), category="menu", details={"ability": "cell", "print": None}),
        Sample(3, "d?", answers=("no",), category="menu", details={"ability": "unanswerable", "print": None}),
    ]
    scores = METRICS["declining"](asked, ["1", "not in the document", None, "not in the document"], None)
    assert scores.rows == [1.0, 0.0, 0.0, 1.0]
    assert scores.values["answered right"] == pytest.approx(100 / 3)
    assert scores.values["declined though answerable"] == pytest.approx(100 / 3)
    assert scores.values["declined rightly"] == 100
    assert scores.values["wrong without saying so"] == 25
    assert scores.values["receipt"] == 50 and scores.values["ability cell"] == 0
    json.dumps(scores.values)


def test_samples_come_in_the_order_of_the_archive(samples):
    assert [sample.question_id for sample in read_webdocs(ARCHIVE.parent)] == list(range(len(samples)))
