"""The table, the readers of official files, and what is said when the data is not as it should be."""

import json

import pytest

from llava_uhd.evaluation.metrics import METRICS
from llava_uhd.evaluation.readers import LETTER_ANSWER, SHORT_ANSWER
from llava_uhd.evaluation.samples import DataError, fingerprint
from llava_uhd.evaluation.submission import WRITERS
from llava_uhd.evaluation.tasks import PAPER_SUITE, TASKS, find_task, parse_max_slices
from tests.evaluation import minidata

# Section 6 of the evaluation notes: beams, new tokens, long side.
PUBLISHED_SETTINGS = {
    "mme": (5, 128, 1024),
    "ai2d": (1, 128, None),
    "docvqa_val": (1, 128, 1024),
    "chartqa": (1, 128, 1024),
    "textvqa": (3, 128, 1536),
    "gqa": (3, 128, 1024),
    "scienceqa_img": (3, 1024, 1024),
    "pope": (1, 128, 1024),
    "vizwiz": (3, 128, 1024),
    "vqav2": (3, 128, 1024),
    "refcoco": (3, 128, 1024),
}


@pytest.mark.parametrize("name", PUBLISHED_SETTINGS)
def test_settings_are_those_of_the_published_scripts(name):
    row = TASKS[name]
    assert (row.num_beams, row.max_new_tokens, row.max_side) == PUBLISHED_SETTINGS[name]


def test_every_benchmark_is_scored_by_someone():
    for row in TASKS.values():
        assert (row.metric in METRICS) or (row.submission in WRITERS), row.name
        assert row.source and row.comparable
    assert PAPER_SUITE == minidata.SEVEN


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("trained", None), ("paper", 6), ("scripts", 9), ("1", 1), ("12", 12)]
)
def test_maximum_slices_by_number_or_name(value, expected):
    assert parse_max_slices(value) == expected


@pytest.mark.parametrize("value", ["0", "-1", "nine", "2.5"])
def test_other_maximum_slices_are_refused(value):
    with pytest.raises(ValueError, match=f"max_slices is '{value}'.*trained, paper, scripts"):
        parse_max_slices(value)


def test_unknown_benchmark():
    with pytest.raises(ValueError, match="known are mme, ai2d"):
        find_task("docvqa")


@pytest.mark.parametrize("name", minidata.BUILDERS)
def test_official_files_are_read(name, tmp_path):
    task = TASKS[name]
    samples = task.load(minidata.build(tmp_path, name))
    assert len(samples) >= 2
    for sample in samples:
        assert sample.prompt.endswith(task.suffix)
        assert sample.prompt.count(task.suffix) == 1 or not task.suffix
        assert bool(sample.answers) == (task.metric is not None)
        assert "<image>" not in sample.prompt
    # The task's own folder will do as well as the one above it.
    assert fingerprint(task.load(tmp_path / task.folder)) == fingerprint(samples)


def test_labels_are_joined_by_question_not_by_order(tmp_path):
    minidata.build(tmp_path, "mme", "ai2d", "pope", "textvqa", "seed")
    mme = TASKS["mme"].load(tmp_path)
    assert [sample.answers[0] for sample in mme] == ["Yes", "No"] * 4
    assert {sample.category for sample in mme} == {"existence", "posters", "code_reasoning"}
    assert [sample.answers[0] for sample in TASKS["ai2d"].load(tmp_path)] == list("ABCDA")
    assert [sample.answers[0] for sample in TASKS["pope"].load(tmp_path)] == ["yes", "no"] * 3
    assert all(len(sample.answers) == 10 for sample in TASKS["textvqa"].load(tmp_path))
    assert [sample.category for sample in TASKS["seed"].load(tmp_path)] == ["Scene", "Action", "Text"]


def test_scienceqa_tells_images_from_text(tmp_path):
    samples = TASKS["scienceqa_img"].load(minidata.build(tmp_path, "scienceqa_img"))
    assert [sample.image is not None for sample in samples] == [True, False, True, False, True]
    assert samples[0].prompt == f"Question 0?\nA. yes\nB. no{LETTER_ANSWER}"


def test_mmbench_prompt_has_hint_and_options(tmp_path):
    samples = TASKS["mmbench"].load(minidata.build(tmp_path, "mmbench"))
    assert samples[0].prompt == f"Which colour?\nA. red\nB. green{LETTER_ANSWER}"
    assert samples[0].details["choices"] == {"A": "red", "B": "green"}


@pytest.mark.parametrize("name", ["docvqa_val", "chartqa"])
def test_pairs_of_the_authors_are_read_by_image_too(name, tmp_path):
    folder = TASKS[name].folder
    minidata.docvqa_pair(tmp_path, folder, folder)
    samples = TASKS[name].load(tmp_path)
    # Every id is -1 and two images share a question: only the image tells them apart.
    assert [sample.answers[0] for sample in samples] == ["0", "1", "2", "3"]
    assert samples[0].prompt == f"What is item 0?{SHORT_ANSWER}"


def test_missing_files_and_images_are_named_with_their_place_and_source(tmp_path):
    task = TASKS["docvqa_val"]
    with pytest.raises(DataError, match=r"missing file: .*val_v1.0_withQT.json.*rrc.cvc.uab.es"):
        task.load(tmp_path)
    minidata.build(tmp_path, "docvqa_val")
    (tmp_path / "docvqa/documents/doc3_1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 6 images are missing.* .*doc3_1.png.*put it below .*docvqa"):
        task.load(tmp_path)


def test_broken_question_files_are_refused(tmp_path):
    minidata.build(tmp_path, "ai2d")
    path = tmp_path / "ai2d/test.jsonl"
    rows = path.read_text()
    path.write_text(rows + '{"question_id": 3, "ima')
    with pytest.raises(DataError, match="line 6 is no JSON"):
        TASKS["ai2d"].load(tmp_path)
    path.write_text(rows + json.dumps({"question_id": 3, "image": "0.png", "text": "unknown"}))
    with pytest.raises(DataError, match="test_from_mova.jsonl has no entry for"):
        TASKS["ai2d"].load(tmp_path)
    path.write_text(rows + json.dumps({"question_id": 3, "text": "unknown"}))
    with pytest.raises(DataError, match="lacks the field 'image'"):
        TASKS["ai2d"].load(tmp_path)
    path.write_text("")
    with pytest.raises(DataError, match="has 0 rows"):
        TASKS["ai2d"].load(tmp_path)
