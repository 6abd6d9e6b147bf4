"""A file of one's own: every format of rows, the guessed metric, scores by hand, and what is said of mistakes."""

import csv
import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from llava_uhd.evaluation.cli import app
from llava_uhd.evaluation.own_data import OWN_METRICS, guess_metric, own_task, read_own_file
from llava_uhd.evaluation.samples import DataError, open_image
from tests.evaluation import minidata

ROWS = [
    {"id": "a", "question": "What is the total?", "answer": "12 USD", "image": "0.png", "category": "receipt"},
    {"id": "b", "question": "Who signed?", "answers": ["Ann Lee", "A. Lee"], "image": "1.png", "category": "letter"},
    {"id": "c", "question": "What is a receipt?", "answer": "a proof of payment", "category": "letter"},
]


@pytest.fixture
def images(tmp_path):
    for index in range(3):
        minidata.draw(tmp_path / "images" / f"{index}.png", index)
    return tmp_path / "images"


def write(path, rows):
    suffix = path.suffix
    if suffix == ".jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in rows).encode())
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix in (".csv", ".tsv"):
        delimiter = "," if suffix == ".csv" else "\t"
        lines = [delimiter.join(("id", "question", "answer", "image", "category"))]
        lines += [delimiter.join(str(row.get(name, "")) for name in lines[0].split(delimiter)) for row in rows]
        path.write_text("\n".join(lines))
    else:
        names = ("id", "question", "answers", "image", "category")
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_from_a_file_to_a_report(suffix, images, tmp_path, evaluate, model_folder, capsys):
    path = write(tmp_path / f"my{suffix}", ROWS)
    run = ("run", path, "--images", images, "--model", model_folder, "--out", tmp_path / "out")
    app([*map(str, run), "--max-new-tokens", "3"], standalone_mode=False)
    said = capsys.readouterr()
    assert f"{path}: 3 questions, 2 with an image; metric: anls (guessed: answers are free text; --metric" in said.err
    assert said.out.startswith("my: ANLS ") and "published" not in said.out
    result = json.loads((tmp_path / "out/my/result.json").read_text())
    assert [row["question_id"] for row in result["rows"]] == ["a", "b", "c"]
    assert result["protocol"]["data_form"] == f"own file my{suffix}" and result["protocol"]["metric"] == "own_anls"
    assert list(result["scores"]) == ["official"]
    assert list(result["scores"]["official"]["values"]) == ["ANLS", "receipt", "letter"]
    assert "data:image/jpeg" in (tmp_path / "out/my/report.html").read_text()
    # The predictions of the run are scored by another metric.
    scored = evaluate("score", path, tmp_path / "out/my/predictions.jsonl", "--images", images, "--metric", "accuracy")
    assert "accuracy" in scored["results"][0]["headline"]


@pytest.mark.parametrize(
    ("metric", "answers", "text", "value"),
    [
        ("accuracy", ["Yes"], " yes. ", 100),
        ("accuracy", ["Yes"], "yes, it is", 0),
        ("anls", ["Ann Lee", "A. Lee"], "ann  lee", 100),
        ("anls", ["Ann Lee"], "Ann Li", 100 * (1 - 2 / 7)),
        ("letter", ["B"], "B. stem", 100),
        ("relaxed", ["100"], "104", 100),
        ("relaxed", ["100"], "106", 0),
        ("vqa", ["nokia"] * 4, "Nokia", 100),
    ],
)
def test_every_metric_by_hand(metric, answers, text, value, tmp_path, evaluate):
    path = write(tmp_path / "my.jsonl", [{"question": "?", "answers": answers}])
    minidata.write_jsonl(tmp_path / "p.jsonl", [{"question_id": 1, "prompt": "?", "text": text}])
    result = evaluate("score", path, tmp_path / "p.jsonl", "--metric", metric)["results"][0]
    scores = result["scores"]["official"]
    assert scores["values"][scores["headline"]] == pytest.approx(value)
    assert scores["notes"] == []


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        ([["A"], ["C"]], "letter"),
        ([["yes"], ["No"]], "accuracy"),
        ([["12"], ["3.5"], ["10%"]], "relaxed"),
        ([["12"], ["12 USD"]], "anls"),
        ([["nokia"] * 10, ["samsung"] * 10], "vqa"),
        ([["nokia"] * 10, ["samsung"]], "anls"),
    ],
)
def test_the_metric_is_guessed_from_the_answers(answers, metric):
    assert guess_metric(answers)[0] == metric and metric in OWN_METRICS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_every_format_gives_the_same_rows(suffix, images, tmp_path):
    rows = [row | {"answer": row.get("answer", "Ann Lee")} for row in ROWS]
    for row in rows:
        row.pop("answers", None)
    samples = read_own_file(write(tmp_path / f"my{suffix}", rows), images)
    assert [(s.question_id, s.prompt, s.answers, s.image, s.category) for s in samples] == [
        (row["id"], row["question"], (row["answer"],), row.get("image"), row["category"]) for row in rows
    ]


def test_parquet_holds_its_images(images, tmp_path):
    rows = [
        {
            "question": "?",
            "answers": ["7"],
            "image": {"bytes": (images / "0.png").read_bytes(), "path": None} if index else None,
        }
        for index in range(3)
    ]
    samples = read_own_file(write(tmp_path / "my.parquet", rows))
    assert [sample.image is None for sample in samples] == [True, False, False]
    with open_image(samples[1].image_source) as image, open_image(images / "0.png") as expected:
        assert image.size == expected.size


def test_llava_rows_and_relative_images(images, tmp_path):
    rows = [
        {"question_id": 7, "image": "0.png", "text": "What?", "label": 12},
        {
            "id": 8,
            "image": "1.png",
            "conversations": [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "Ann"}],
        },
    ]
    samples = read_own_file(write(images / "my.jsonl", rows), suffix="\nAnswer briefly.")
    assert [(s.question_id, s.prompt, s.answers) for s in samples] == [
        (7, "What?\nAnswer briefly.", ("12",)),
        (8, "Who?\nAnswer briefly.", ("Ann",)),
    ]
    assert samples[0].image_source == images / "0.png"


def test_questions_without_answers_are_answered_and_not_scored(images, tmp_path, evaluate, model_folder):
    path = write(tmp_path / "my.jsonl", [{"question": "What?", "image": "0.png"}])
    result = evaluate("run", path, "--images", images, "--model", model_folder, "--out", tmp_path / "out")["results"][
        0
    ]
    assert result["headline"] is None and result["scores"] == {}


def test_half_an_emoji_in_a_question_is_answered(tmp_path, evaluate, model_folder):
    rows = [{"question": "What is \ud83d?", "answer": "a \ud83d"}, {"question": "And \U0001f600?", "answer": "b"}]
    path = write(tmp_path / "my.jsonl", rows)
    run = ("run", path, "--model", model_folder, "--out", tmp_path / "out", "--max-new-tokens", "2")
    assert evaluate(*run)["results"][0]["questions"] == 2
    rows = json.loads((tmp_path / "out/my/result.json").read_text())["rows"]
    assert [row["prompt"] for row in rows] == ["What is \ud83d?", "And \U0001f600?"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 rows"),
        ([{"question": "?", "answer": "a"}, {"answer": "b"}], r"row 2 has no question \(fields: answer\)"),
        ([{"question": "?", "answer": "a"}, {"question": "!"}], "1 of 2 rows have an answer; row 2 has none"),
        ([{"question": "?", "answer": {"x": 1}}], "row 1: an answer is"),
        ([{"question": "?", "answer": "a", "image": ["0.png", "1.png"]}], "row 1: its image is"),
        ([{"question": "?", "answer": "a", "id": 1}] * 2, "1 ids name more than one row, the first is '1'"),
        ([{"question": "?", "answer": "a", "id": [1]}], "row 1: its id is"),
        ([["question", "?"]], "row 1 is no object but a list"),
        ([{"conversations": [{"value": "a"}] * 4}], "one question and one answer, and has 4 turns"),
        ([{"conversations": "a"}], "and has 0 turns"),
    ],
)
def test_mistakes_in_rows_are_named(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        own_task(write(tmp_path / "my.json", rows))


def test_mistakes_in_the_command_are_named(images, tmp_path, evaluate):
    path = write(tmp_path / "my.jsonl", ROWS)
    run = ("run", path, "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"2 of 2 images are missing, the first is .*0.png"):
        evaluate(*run)
    with pytest.raises(ValueError, match="unknown metric 'bleu'; known are accuracy, anls"):
        evaluate(*run, "--images", images, "--metric", "bleu")
    with pytest.raises(DataError, match="missing file: .*other.jsonl"):
        evaluate("run", tmp_path / "other.jsonl", "--out", tmp_path / "out")
    with pytest.raises(typer.BadParameter, match="--metric is for a file of your own"):
        evaluate("run", "synthdoc", "--metric", "anls", "--out", tmp_path / "out")
    with pytest.raises(typer.BadParameter, match="'my' is given twice"):
        evaluate("run", path, path, "--images", images, "--out", tmp_path / "out")


def test_cells_beyond_the_header_are_refused_and_a_list_of_answers_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nWhat is the total, with tax?,12.40\n")
    with pytest.raises(DataError, match="a.csv, row 1 has 3 cells and the header 2"):
        read_own_file(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('question,answers\n"Total, all?","[""12.40"", ""$12.40""]"\nWhich?,[sic]\n')
    assert [sample.answers for sample in read_own_file(tmp_path / "b.csv")] == [("12.40", "$12.40"), ("[sic]",)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", 'question,answer\n"What is the total?,12.40\nWhich?,5\n', "a.csv, line 3: unexpected end of data"),
        ("a.csv", "question,answer\nWhat is the total?\n", "row 1 has 1 cells and the header 2"),
        ("a.csv", "question,answer,answer\nWhat?,1,2\n", "more than one column 'answer'"),
        ("a.jsonl", '{"question": "What?", "answer": NaN}', "an answer is nan, as of an empty cell"),
        ("a.jsonl", '{"question": "What?", "answers": [1, Infinity]}', "an answer is inf"),
        ("a.jsonl", '{"question": "<image>\\n", "answer": "1"}', "has no question"),
        ("a.jsonl", '{"question": "What?", "answer": "1", "images": ["0.png", "1.png"]}', "has 2 images"),
        ("a.jsonl", '{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}', "from gpt"),
        ("a.jsonl", '{"conversations": [{"from": "human", "value": "<image>\\n"}]}', "its question is empty"),
    ],
)
def test_rows_that_are_not_what_they_seem_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_own_file(tmp_path / name)


def test_a_cell_without_an_end_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(f"question,answer\nWhat?,{'x' * 2000}\n")
    limit = csv.field_size_limit(1000)
    try:
        with pytest.raises(DataError, match=r"a\.csv, line 2: field larger than field limit"):
            read_own_file(tmp_path / "a.csv")
    finally:
        csv.field_size_limit(limit)


def test_rows_of_training_data_have_the_image_in_a_list_and_its_place_in_the_question(images, tmp_path):
    rows = [{"question": "<image>\nIs <image> a word?", "answer": "yes", "images": ["0.png"]}]
    rows += [{"question": "What?", "answer": "1", "images": []}]
    samples = read_own_file(write(tmp_path / "my.jsonl", rows), images)
    assert [(sample.prompt, sample.image) for sample in samples] == [("Is <image> a word?", "0.png"), ("What?", None)]


def test_parquet_with_paths_of_images_or_none(images, tmp_path):
    rows = [{"question": row["question"], "answer": "x", "image": row.get("image")} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "paths.parquet")
    samples = read_own_file(tmp_path / "paths.parquet", images)
    assert [sample.image_source for sample in samples] == [images / "0.png", images / "1.png", None]
    pq.write_table(pa.Table.from_pylist([{"question": "A?", "answer": "x"}]), tmp_path / "none.parquet")
    (sample,) = read_own_file(tmp_path / "none.parquet")
    assert sample.image is None and sample.answers == ("x",)


def test_a_category_named_like_the_metric_is_not_the_headline(tmp_path, evaluate):
    rows = [
        {"id": str(i), "question": "Q?", "answer": "x", "category": name} for i, name in enumerate(("accuracy", "b"))
    ]
    path = write(tmp_path / "my.jsonl", rows)
    predictions = [{"question_id": str(i), "prompt": "Q?", "text": text} for i, text in enumerate("xy")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))
    app(["score", str(path), str(tmp_path / "p.jsonl"), "--metric", "accuracy", "--out", str(tmp_path / "out")],
        standalone_mode=False)  # fmt: skip
    (file,) = (tmp_path / "out").rglob("result.json")
    result = json.loads(file.read_text())
    assert result["scores"]["official"]["values"] == {"accuracy": 50.0, "category accuracy": 100.0, "b": 0.0}
    assert result["protocol"]["metric"] == "own_accuracy"


def test_questions_are_asked_about_other_images_again_and_missing_ones_can_be_allowed(
    images, tmp_path, model_folder, capsys
):
    other = tmp_path / "other"
    for index in (0, 1):
        minidata.draw(other / f"{index}.png", index + 5)
    path = write(tmp_path / "my.jsonl", ROWS)
    run = ["run", str(path), "--model", str(model_folder), "--out", str(tmp_path / "out"), "--max-new-tokens", "2"]
    app([*run, "--images", str(images)], standalone_mode=False)
    answers = (tmp_path / "out/my/predictions.jsonl").read_text()
    app([*run, "--images", str(other)], standalone_mode=False)
    assert "2 answers are about other image files: they are asked for again" in capsys.readouterr().err
    rows = [json.loads(line)["metadata"] for line in (tmp_path / "out/my/predictions.jsonl").read_text().splitlines()]
    checksums = [f"{zlib.crc32((other / f'{index}.png').read_bytes()):08x}" for index in (0, 1)]
    assert [row.get("image_crc32") for row in rows] == [*checksums, None]
    before = [json.loads(line)["metadata"].get("image_crc32") for line in answers.splitlines()[:2]]
    assert not set(before) & set(checksums)
    (other / "1.png").unlink()
    run[5] = str(tmp_path / "missing")
    with pytest.raises(DataError, match="1 of 2 images are missing"):
        app([*run, "--images", str(other)], standalone_mode=False)
    app([*run, "--images", str(other), "--allow-missing"], standalone_mode=False)
    result = json.loads((tmp_path / "missing/my/result.json").read_text())
    assert len(result["rows"]) == 3 and result["rows"][1]["score"] == 0
