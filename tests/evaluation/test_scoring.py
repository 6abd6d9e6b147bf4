"""Scoring prediction files: the joins, every kind of bad input, both modes, reports and comparisons."""

import json
import subprocess
import sys

import numpy as np
import pytest

from llava_uhd.evaluation.compare import compare_results
from llava_uhd.evaluation.metrics import METRICS
from llava_uhd.evaluation.own_data import OWN_METRICS
from llava_uhd.evaluation.pipeline import score_file
from llava_uhd.evaluation.predictions import match_predictions
from llava_uhd.evaluation.results import load_result, show
from llava_uhd.evaluation.samples import Sample
from llava_uhd.evaluation.storage import append_rows, read_rows
from llava_uhd.evaluation.submission import (
    mmbench_table,
    mmvet_submission,
    seed_submission,
    vizwiz_submission,
    vqav2_submission,
)
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.files import drop_partial_line
from tests.evaluation import minidata
from tests.evaluation.goldens import load_golden

# One answer to every question of the mini data sets, by benchmark, and the scores they must have.
ANSWERS = {
    "mme": ["yes", "No", "yes.", "the answer is no", "Yes", "no", "eyes", "know"],
    "ai2d": ["A", "B. stem", "c", "D.", "Leaf"],
    "docvqa_val": ["0", "17", "34 usd", "5l", "68  USD", "85 EUR"],
    "chartqa": ["14.5", "yes", "0.57", "1999", "lamb."],
    "textvqa": ["Nokia", "samsung", "apple", "the nokia"],
    "gqa": ["Yes.", "cat", "left"],
    "scienceqa_img": ["A", "B. no", "The answer is A.", "A", "b"],
    "pope": ["Yes", "No", "No", "No", "Yes, it is", "yes"],
    "mmbench": ["A", "The answer is B"],
    "seed": ["B", "B", "B."],
    "refcoco": ["[0.1,0.2,0.5,0.6]", "here"],
    "ocrbench": ["A sale!", "thirteen", "$x^2$"],
}
SCORES = {  # (official, as published)
    "mme": ({"perception": 75 + 50 + 200, "cognition": 200, "existence": 125}, {"perception": 325}),
    "ai2d": ({"accuracy": 80}, {"accuracy": 40}),
    "docvqa_val": (
        {"ANLS": 100 * (1 + 1 + 1 + 0.5 + 7 / 7 + 0.5) / 6},
        # One reference, spaces count: "34 usd" to "34", "68  USD" to "68", "85 EUR" to "85" all fall below one half.
        {"single-reference ANLS": 100 * (1 + 1 + 0 + 0.5 + 0 + 0) / 6},
    ),
    "chartqa": (
        {"relaxed accuracy": 100 * (1 + 0.5) / 2, "human": 100, "augmented": 50},
        {"single-reference ANLS": 100 * (0.5 + 1 + 0 + 0 + 0.8) / 5},
    ),
    "textvqa": ({"soft accuracy": 100 * (1 + 0.6 + 0 + 1) / 4}, {"soft accuracy": 65}),
    "gqa": ({"accuracy": 200 / 3, "binary": 100, "open": 0}, {"accuracy": 200 / 3}),
    "scienceqa_img": ({"image accuracy": 200 / 3, "accuracy": 60, "images": 3}, {"image accuracy": 200 / 3}),
    "pope": ({"mean F1": 100 * (1 + 0 + 2 / 3) / 3, "popular F1": 0, "random yes": 100}, {"adversarial F1": 100}),
    "mmbench": ({"circular accuracy": 100, "accuracy": 100}, {"accuracy": 100}),
    "seed": ({"image accuracy": 50, "video accuracy": 100, "accuracy": 200 / 3, "Text": 0}, {"accuracy": 200 / 3}),
    "ocrbench": (
        {"Final Score": 2, "Final Score Norm": 0.2, "Text Recognition": 1, "Doc-oriented VQA": 0},
        {"Final Score": 2},
    ),
    "refcoco": ({"mean accuracy": 50, "answers without a box": 1}, {"mean accuracy": 50}),
}


def published_rows(name: str, data, answers=None) -> list[dict]:
    """A prediction file as the reference scripts write it."""
    samples = TASKS[name].load(data)
    return [
        {"question_id": sample.question_id, "prompt": sample.prompt, "text": text, "answer_id": "x", "model_id": "m"}
        for sample, text in zip(samples, answers or ANSWERS[name], strict=True)
    ]


@pytest.fixture
def data(tmp_path):
    return minidata.build(tmp_path / "data", *minidata.BUILDERS)


def test_exact_match_by_kind_and_text_size():
    samples = [
        Sample(index, "?", answers=("7",), category=kind, details={"text_size": size})
        for index, (kind, size) in enumerate((("form", "small"), ("form", "large"), ("table", "small")))
    ]
    scores = METRICS["exact"](samples, ["7", "7.", None], None)
    assert scores.rows == [1, 0, 0]
    assert scores.values == {"exact match": pytest.approx(100 / 3), "form": 50, "table": 0, "large": 0, "small": 50}


def test_every_metric_is_computed_by_hand():
    own = {f"own_{name}" for name in OWN_METRICS}  # in test_own_data.py
    declining = {"declining"}  # in test_webdocs.py
    assert METRICS.keys() == {TASKS[name].metric for name in SCORES} | {"exact"} | own | declining


@pytest.mark.parametrize("name", SCORES)
def test_scores_computed_by_hand(name, data, tmp_path, evaluate):
    rows = published_rows(name, data)
    # The order of the file must not matter, ChartQA's ids apart from the release's are unique here.
    minidata.write_jsonl(tmp_path / "p.jsonl", rows[::-1])
    printed = evaluate("score", name, tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / "out")
    scores = load_result(tmp_path / "out")["scores"]
    for mode, expected in zip(("official", "llava-uhd"), SCORES[name], strict=True):
        for score, value in expected.items():
            assert scores[mode]["values"][score] == pytest.approx(value, abs=1e-9), (mode, score)
    name = scores["official"]["headline"]
    quoted = f"{name} {show(scores['official']['values'][name])} over {len(rows)} questions"
    assert quoted in printed["results"][0]["headline"]


def broken(rows: list[dict], kind: str) -> str:
    lines = [json.dumps(row) for row in rows]
    if kind == "duplicate":
        lines.append(json.dumps(dict(rows[1], text="another")))
    if kind == "missing":
        del lines[1]
    if kind == "extra":
        lines.append(json.dumps(dict(rows[1], question_id=999)))
    if kind == "empty":
        lines[1] = json.dumps(dict(rows[1], text=" "))
    if kind == "unreadable":
        lines[1] = lines[1][:30]
        del lines[2:]
        return "\n".join(lines)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("kind", "message", "score"),
    [
        ("duplicate", r"1 questions answered twice \(201\)", 200 / 3),
        ("missing", r"1 questions without an answer \(201\)", 200 / 3),
        ("extra", r"1 answers to unknown questions \(999\)", 100),
        ("empty", r"1 empty answers \(201\)", 200 / 3),
        ("unreadable", r"1 unreadable lines \(line 2\); 2 questions without an answer \(201, 202\)", 100 / 3),
    ],
)
def test_bad_predictions_are_counted_and_named(kind, message, score, data, tmp_path):
    gqa, path = TASKS["gqa"], tmp_path / "p.jsonl"
    path.write_text(broken(published_rows("gqa", data, ["yes", "dog", "left"]), kind))
    with pytest.raises(ValueError, match=f"{message}.*--allow-missing"):
        score_file(gqa, path, data, None, allow_missing=False)
    result = score_file(gqa, path, data, None, allow_missing=True)
    assert result["scores"]["official"]["values"]["accuracy"] == pytest.approx(score)
    assert "scored 0: 1 " in result["headline"]
    assert result["problems"][kind] == 1


def test_another_split_is_recognized(data, tmp_path):
    rows = [dict(row, question_id=f"other{index}") for index, row in enumerate(published_rows("gqa", data))]
    minidata.write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(ValueError, match="none of the 3 questions is answered.*is it another split"):
        score_file(TASKS["gqa"], tmp_path / "p.jsonl", data, None, allow_missing=True)
    with pytest.raises(ValueError, match="no prediction file"):
        score_file(TASKS["gqa"], tmp_path / "q.jsonl", data, None, allow_missing=True)


def test_an_empty_answer_is_no_yes(data, tmp_path):
    """POPE reads the empty text as "yes"; officially it is no answer."""
    minidata.write_jsonl(tmp_path / "p.jsonl", published_rows("pope", data, ["", "No", "Yes", "No", "Yes", "No"]))
    scores = score_file(TASKS["pope"], tmp_path / "p.jsonl", data, None, allow_missing=True)["scores"]
    assert scores["official"]["values"]["adversarial F1"] == 0.0
    assert scores["llava-uhd"]["values"]["adversarial F1"] == 100.0


def test_questions_that_only_their_image_tells_apart(tmp_path):
    minidata.docvqa_pair(tmp_path, "chartqa", "chartqa")
    chartqa = TASKS["chartqa"]
    rows = published_rows("chartqa", tmp_path, ["0", "1", "2", "3"])
    minidata.write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(ValueError, match="questions answered twice"):
        score_file(chartqa, tmp_path / "p.jsonl", tmp_path, None, allow_missing=False)
    named = [dict(row, image=sample.image) for row, sample in zip(rows, chartqa.load(tmp_path), strict=True)]
    minidata.write_jsonl(tmp_path / "p.jsonl", named[::-1])
    result = score_file(chartqa, tmp_path / "p.jsonl", tmp_path, None, allow_missing=False)
    assert result["scores"]["official"]["values"]["relaxed accuracy"] == 100.0
    assert "human from the augmented" in result["headline"]


def test_join_ignores_case_and_the_recorded_placeholder():
    samples = [Sample("1", "What?\nAnswer.")]
    row = {"question_id": 1, "prompt": "<image>\nwhat?\nanswer.", "text": "a"}
    texts, problems = match_predictions(samples, [row], "id+prompt")
    assert texts == ["a"]
    assert not problems.lines()


def test_question_repeated_in_the_data_may_be_answered_as_often():
    samples = [Sample(1, "What?"), Sample(1, "What?")]
    row = {"question_id": 1, "prompt": "What?", "text": "a"}
    assert match_predictions(samples, [row, row], "id+prompt")[0] == ["a", "a"]
    texts, problems = match_predictions(samples, [row, row | {"text": "b"}], "id+prompt")
    assert texts == [None, None]
    assert problems.duplicate == ["1"]


def test_partial_line_is_dropped(tmp_path):
    path = tmp_path / "p.jsonl"
    append_rows(path, [{"question_id": 1, "text": "é"}])
    whole = path.read_bytes()
    path.write_bytes(whole + '{"question_id": 2, "text": "é'.encode()[:-1])
    assert read_rows(path) == ([{"question_id": 1, "text": "é"}], ["line 2"])
    drop_partial_line(path)
    assert path.read_bytes() == whole


def test_compare_gives_a_paired_interval(data, tmp_path, evaluate):
    for name, answers in (("a", ["yes", "cat", "right"]), ("b", ["yes", "dog", "left"])):
        minidata.write_jsonl(tmp_path / f"{name}.jsonl", published_rows("gqa", data, answers))
        evaluate("score", "gqa", tmp_path / f"{name}.jsonl", "--data", data, "--out", tmp_path / name)
    compared = evaluate("compare", tmp_path / "a", tmp_path / "b")
    assert (compared["better"], compared["worse"]) == (2, 0)
    assert compared["difference"] == pytest.approx(200 / 3)
    assert compared["low"] <= compared["difference"] <= compared["high"]
    assert compared["protocol_changes"] == {"predictions": ["a.jsonl", "b.jsonl"]}
    same = compare_results(load_result(tmp_path / "a"), load_result(tmp_path / "a"))
    assert (same.difference, same.low, same.high, same.is_significant) == (0, 0, 0, False)


def test_compare_interval_matches_theory():
    """The bootstrap interval of many independent rows is the normal one."""
    generator = np.random.default_rng(0)

    def result(accuracy: float) -> dict:
        rows = [
            {"question_id": index, "image": None, "prompt": "?", "score": float(hit)}
            for index, hit in enumerate(generator.random(2000) < accuracy)
        ]
        return {"benchmark": "gqa", "scores": {"official": {}}, "rows": rows, "protocol": {}}

    first, second = result(0.5), result(0.6)
    comparison = compare_results(first, second)
    differences = [b["score"] - a["score"] for a, b in zip(first["rows"], second["rows"], strict=True)]
    error = 100 * np.std(differences) / np.sqrt(2000)
    assert comparison.low == pytest.approx(comparison.difference - 1.96 * error, abs=0.15)
    assert comparison.high == pytest.approx(comparison.difference + 1.96 * error, abs=0.15)
    assert comparison.is_significant


def test_compare_counts_questions_that_the_data_repeats():
    rows = [{"question_id": 1, "image": None, "prompt": "?", "score": float(index == 0)} for index in range(3)]
    result = {"benchmark": "gqa", "scores": {"official": {}}, "rows": rows, "protocol": {}}
    comparison = compare_results(result, result)
    assert comparison.questions == 3 and comparison.first == pytest.approx(100 / 3)
    for broken in ([], [rows[0] | {"score": None}]):
        with pytest.raises(ValueError, match=f"gqa has {len(broken)} rows, not all of them with a score"):
            compare_results(result | {"rows": broken}, result)


def test_compare_refuses_what_cannot_be_paired(data, tmp_path, evaluate):
    for name in ("gqa", "ai2d"):
        minidata.write_jsonl(tmp_path / f"{name}.jsonl", published_rows(name, data))
        evaluate("score", name, tmp_path / f"{name}.jsonl", "--data", data, "--out", tmp_path / name)
    gqa, ai2d = load_result(tmp_path / "gqa"), load_result(tmp_path / "ai2d")
    with pytest.raises(ValueError, match="cannot compare gqa with ai2d"):
        compare_results(gqa, ai2d)
    with pytest.raises(ValueError, match="1 are only in the first, 0 only in the second"):
        compare_results(gqa, gqa | {"rows": gqa["rows"][1:]})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks rows or protocol"):
        load_result(tmp_path / "other.json")


def test_report_shows_both_modes_and_the_worst_rows(data, tmp_path, evaluate, capsys):
    for name in ("docvqa_val", "chartqa"):
        minidata.write_jsonl(tmp_path / f"{name}.jsonl", published_rows(name, data))
        evaluate("score", name, tmp_path / f"{name}.jsonl", "--data", data, "--out", tmp_path / "out" / name)
    from llava_uhd.evaluation.cli import app

    app(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report.md")], standalone_mode=False)
    text = (tmp_path / "report.md").read_text()
    assert "| chartqa | 5 | relaxed accuracy 75.00 | single-reference ANLS 46.00 |" in text
    page = (tmp_path / "out/chartqa/report.html").read_text()
    # The one wrong answer, beside its image.
    assert page.count("<div class=row>") == page.count("data:image/jpeg") == 1
    assert "lamb." in page


def test_submissions_match_the_goldens():
    cases = {case["tool"]: case for case in load_golden("converters")["cases"]}

    case = cases["vqav2"]
    texts = {row["question_id"]: row["text"] for row in case["results"]}
    assert vqav2_submission([row["question_id"] for row in case["questions"]], texts) == case["expected"]

    case = cases["vizwiz"]
    samples = [Sample(row["question_id"], "q", row["image"]) for row in case["questions"]]
    assert vizwiz_submission(samples, [row["text"] for row in case["results"]]) == case["expected"]

    case = cases["mmvet"]
    samples = [Sample(row["question_id"], "q") for row in case["results"]]
    assert mmvet_submission(samples, [row["text"] for row in case["results"]]) == case["expected"]

    case = cases["seed"]
    texts = {str(row["question_id"]): row["text"] for row in case["results"]}
    samples = [Sample(row["question_id"], "q") for row in case["questions"]]
    assert seed_submission(samples, [texts[str(s.question_id)] for s in samples]) == case["expected_upload"]

    case = cases["mmbench"]
    secret = {"hint": "h", "category": "c", "image": "", "source": "s", "l2-category": "l", "comment": "x"}
    full = [secret | row for row in case["expected_rows"]]
    rows = [{column: "" if row[column] is None else row[column] for column in case["tsv_columns"]} for row in full]
    columns, table = mmbench_table(rows, {row["question_id"]: row["text"] for row in case["results"]})
    assert columns == case["expected_columns"]
    assert [dict(zip(columns, cells, strict=True)) for cells in table] == case["expected_rows"]


def test_no_torch_where_no_model_is_needed(data, tmp_path):
    minidata.write_jsonl(tmp_path / "p.jsonl", published_rows("gqa", data))
    code = """
import sys
sys.argv = ["llava-uhd", "eval"]
from llava_uhd.evaluation.cli import app
app(["list"], standalone_mode=False)
app(["score", "gqa", "{0}/p.jsonl", "--data", "{0}/data", "--out", "{0}/o"], standalone_mode=False)
app(["compare", "{0}/o", "{0}/o"], standalone_mode=False)
app(["report", "{0}/o"], standalone_mode=False)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code.replace("{0}", str(tmp_path))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "docvqa_val" in done.stdout
    assert "gqa: accuracy 66.67 over 3 questions" in done.stdout
