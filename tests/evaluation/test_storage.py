"""Files of an evaluation under faults: kills, a full disk, damage, text that UTF-8 or markup cannot hold."""

import errno
import json
import os
import zlib
from pathlib import Path

import pytest

from llava_uhd.evaluation import storage
from llava_uhd.evaluation.generation import Answers, BatchGenerator
from llava_uhd.evaluation.pipeline import RunOptions, evaluate_task, score_file
from llava_uhd.evaluation.report import markdown_report
from llava_uhd.evaluation.results import load_result
from llava_uhd.evaluation.storage import read_rows, write_atomically, write_record
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.files import lock_folder
from llava_uhd.loading import load
from tests.evaluation import minidata

SURROGATE = "\ud83d"
FILES = ("predictions.jsonl", "result.json", "protocol.json", "report.md", "report.html")


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    """Evaluates a task with a model whose answers are its questions' positions, without reading an image."""
    model, processor = load(str(model_folder), "cpu")
    monkeypatch.setattr(
        BatchGenerator,
        "generate",
        lambda self, batch: Answers({place: f"{place}" for place in batch.readable}, batch.errors, {}),
    )

    def evaluate(out: Path, task: str = "gqa", **options):
        data = minidata.build(tmp_path / "data", task)
        return evaluate_task(TASKS[task], model, processor, data, out, RunOptions(batch_size=1, **options), "small")

    return evaluate


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def test_a_run_killed_at_any_file_operation_resumes_to_the_same_files(run, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    left = {"operations": 0}

    def dying(operation, before):
        def call(*args, **kwargs):
            left["operations"] -= 1
            if left["operations"] == 0:
                before(*args)
                raise Killed
            return operation(*args, **kwargs)

        return call

    def half(path, content):
        os.truncate(path, 0) if Path(path).exists() else None
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])

    def nothing(*args):
        return None

    patches = [
        (storage.os, "replace", nothing),
        (storage.os, "fsync", nothing),
        (Path, "write_bytes", half),
        (Path, "unlink", nothing),
        (Path, "mkdir", nothing),
    ]
    for number in range(1, 100):
        out = tmp_path / str(number)
        with monkeypatch.context() as patched:
            left["operations"] = number
            for owner, name, before in patches:
                patched.setattr(owner, name, dying(getattr(owner, name), before))
            try:
                run(out)
                break
            except Killed:
                pass
        run(out)
        assert contents(out) == expected, number
        assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")], number
    assert number > 15


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_names_the_file_and_leaves_no_temporary_one(name, run, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if name in path.name:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=f"No space left on device.*{name}"):
            run(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    run(tmp_path / "out")
    run(tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_while_answers_are_appended_names_the_shard(run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device.*"):
            run(tmp_path / "out")
        with pytest.raises(OSError, match="rank0.jsonl"):
            storage.append_rows(tmp_path / "rank0.jsonl", [{"question_id": 1, "text": "a"}])


def test_a_protocol_without_its_last_byte_is_written_whole_again(run, tmp_path):
    run(tmp_path / "out")
    path = tmp_path / "out/protocol.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    run(tmp_path / "out")
    assert path.read_bytes() == whole


def test_two_runs_into_one_folder_are_refused(run, tmp_path):
    whole = run(tmp_path / "out")
    with lock_folder(tmp_path / "out/shards/rank0.jsonl", beside=True):
        with pytest.raises(ValueError, match="rank0.jsonl is in use by another run"):
            run(tmp_path / "out")
    assert run(tmp_path / "out") == whole


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]


def test_no_flipped_bit_changes_a_prediction_unnoticed(run, tmp_path, capsys):
    run(tmp_path / "out")
    path = tmp_path / "out/predictions.jsonl"
    whole = path.read_bytes()
    expected = read_rows(path)[0]
    for position in range(0, len(whole), 7):
        path.write_bytes(flipped(whole, position, position % 8))
        rows, damaged = read_rows(path)
        assert damaged or rows == expected, position
    # A damaged answer is asked for again, and that is said.
    path.write_bytes(whole.replace(b'"text": "1"', b'"text": "7"'))
    with pytest.raises(ValueError, match=r"1 unreadable lines \(line 2: not as it was written.*--allow-missing"):
        score_file(TASKS["gqa"], path, tmp_path / "data", None, allow_missing=False)
    capsys.readouterr()
    run(tmp_path / "out")
    assert "1 damaged predictions are asked for again (line 2" in capsys.readouterr().err
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["empty", "cut", "binary", "list", "nested", "flipped"])
@pytest.mark.parametrize("name", ["result.json", "protocol.json"])
def test_damaged_records_are_named(name, damage, run, tmp_path):
    run(tmp_path / "out")
    path = tmp_path / "out" / name
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "binary": b"\xff\xfe\x00" + whole,
            "list": b"[1, 2]",
            "nested": b"[" * 100_000,
            "flipped": whole.replace(b"gqa", b"gqb", 1),
        }[damage]
    )
    if name == "result.json":
        with pytest.raises(ValueError, match=name):
            load_result(tmp_path / "out")
        run(tmp_path / "out")
        assert path.read_bytes() == whole
    else:
        with pytest.raises(ValueError, match=name):
            run(tmp_path / "out")
        with pytest.raises(ValueError, match=name):
            score_file(TASKS["gqa"], tmp_path / "out/predictions.jsonl", tmp_path / "data", None, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scores", {"official": {"headline": "accuracy", "values": {"accuracy": "<b>"}, "notes": []}}),
        ("scores", {"official": 7}),
        ("scores", []),
        ("rows", [7]),
        ("rows", [{"question_id": 1, "image": None, "prompt": "?", "score": "high"}]),
        ("questions", "three"),
        ("protocol", None),
    ],
)
def test_results_of_wrong_types_are_named(field, value, run, tmp_path):
    result = run(tmp_path / "out")
    write_record(tmp_path / "out/result.json", result | {field: value})
    with pytest.raises(ValueError, match=f"result.json is no whole result file: its {field.rstrip('s')}"):
        load_result(tmp_path / "out")


def test_files_of_earlier_versions_are_read(run, tmp_path):
    """Files without checksums, and a protocol that lacks a newer field."""
    expected = run(tmp_path / "out")
    for name in ("result.json", "protocol.json"):
        record = json.loads((tmp_path / "out" / name).read_text())
        del record["checksum"]
        if name == "protocol.json":
            del record["suffix"]
        (tmp_path / "out" / name).write_text(json.dumps(record))
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    path = tmp_path / "out/predictions.jsonl"
    # A checksum of some fields, beside a probability that it does not cover; then none at all.
    covered = [
        [row.get(name) for name in ("question_id", "prompt", "text", "image", "index", "error")] for row in rows
    ]
    former = [f"{zlib.crc32(json.dumps(values).encode()):08x}" for values in covered]
    metadata = [{"checksum": checksum, "token_probability": 0.5} for checksum in former]
    path.write_text(
        "".join(json.dumps(row | {"metadata": each}) + "\n" for row, each in zip(rows, metadata, strict=True))
    )
    assert len(read_rows(path)[0]) == len(rows) and not read_rows(path)[1]
    path.write_bytes(path.read_bytes().replace(b'"text": "1"', b'"text": "7"'))
    assert read_rows(path)[1] == ["line 2: not as it was written, by its checksum"]
    path.write_text("".join(json.dumps(row | {"metadata": {}}) + "\n" for row in rows))
    assert load_result(tmp_path / "out") == expected
    assert run(tmp_path / "out")["rows"] == expected["rows"]


def test_lone_surrogates_in_predictions_are_scored_and_reported(evaluate, tmp_path, capsys):
    data = minidata.build(tmp_path / "data", "gqa", "vqav2", "mmbench")
    rows = [
        {"question_id": sample.question_id, "prompt": sample.prompt, "text": f"yes {SURROGATE}"}
        for sample in TASKS["gqa"].load(data)
    ]
    minidata.write_jsonl(tmp_path / "p.jsonl", [*rows, rows[0] | {"question_id": SURROGATE}])
    score = ("score", "gqa", tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / "gqa", "--allow-missing")
    printed = evaluate(*score)
    assert f"unknown questions ({SURROGATE})" in printed["results"][0]["headline"]
    assert load_result(tmp_path / "gqa")["rows"][0]["text"] == f"yes {SURROGATE}"
    assert "yes \\ud83d" in (tmp_path / "gqa/report.html").read_text()
    for name, task in (("vqav2", TASKS["vqav2"]), ("mmbench", TASKS["mmbench"])):
        # A control character, too, which a sheet cannot hold.
        texts = [
            {"question_id": sample.question_id, "prompt": sample.prompt, "text": f"A \x0b{SURROGATE}"}
            for sample in task.load(data)
        ]
        minidata.write_jsonl(tmp_path / "p.jsonl", texts)
        evaluate("score", name, tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / name)
        assert list((tmp_path / name).glob("submission.*"))


def test_reports_show_markup_as_text_and_name_the_models(run, tmp_path):
    result = run(tmp_path / "out")
    result["protocol"] |= {"model": "<img src=x onerror=alert(1)>", "prompt": "a `b` ``c``|\n<b>", "x|y": "[z](u)"}
    result["scores"]["official"]["values"]["<script>alert(1)</script>|"] = 1.0
    result["warnings"].append("<script>alert(2)</script>")
    result["comparable"] = "[click](javascript:alert(3))"
    text = markdown_report([result, result | {"protocol": {"model": "other"}}], ["a/result.json", "b/result.json"])
    assert "<script" not in text and "[click]" not in text
    assert "<img" not in text.replace("`<img src=x onerror=alert(1)>`", "")
    assert "| &lt;img src=x onerror=alert(1)> | gqa | 3 |" in text and "| other | gqa | 3 |" in text
    assert "- model: other\n- result: b/result.json" in text
    assert "| ``` a `b` ``c``\\|\\n<b> ``` |" in text


def test_atomic_write_keeps_the_old_file_where_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.md"
    write_atomically(path, "old")

    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(PermissionError, match="Permission denied.*a.md"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
