"""Parquet mirrors: the same rows and the same scores as from the official files, and which form was read."""

import json
import pickle

import pyarrow.parquet as pq
import pytest
from PIL import ImageChops

from llava_uhd.evaluation.mirrors import MIRRORS, ParquetImage
from llava_uhd.evaluation.samples import DataError, open_image
from llava_uhd.evaluation.tasks import TASKS
from tests.evaluation import minidata, mirrordata
from tests.evaluation.test_scoring import ANSWERS

# Tasks whose mirrors have prompts or names of their own.
OWN_PROMPTS = ("refcoco", "textvqa", "vizwiz")
OWN_CATEGORIES = ("seed", "refcoco")
SAME_IDS = ("mme", "docvqa_val", "docvqa_test", "chartqa", "textvqa", "gqa", "vqav2", "mmbench", "seed", "ocrbench")


def test_every_mirror_is_tested():
    assert MIRRORS.keys() == mirrordata.BUILDERS.keys()


@pytest.mark.parametrize("name", mirrordata.BUILDERS)
def test_same_rows(name, tmp_path):
    official, mirror = mirrordata.build(tmp_path, name)
    expected, form = TASKS[name].read_data(official)
    found, mirror_form = TASKS[name].read_data(mirror)
    assert form == "official files" and mirror_form.startswith(f"Parquet mirror {MIRRORS[name].repo}: ")
    assert len(found) == len(expected)
    for actual, reference in zip(found, expected, strict=True):
        if name == "refcoco":
            assert json.loads(actual.answers[0]) == pytest.approx(json.loads(reference.answers[0]), abs=1e-4)
        else:
            assert actual.answers == reference.answers and actual.details == reference.details
        assert actual.prompt == reference.prompt or name in OWN_PROMPTS
        assert actual.category == reference.category or name in OWN_CATEGORIES
        assert actual.question_id == reference.question_id or name not in SAME_IDS
        assert (actual.image is None) == (reference.image is None) and actual.prompt.endswith(TASKS[name].suffix)
        if reference.image_source is not None:
            with open_image(actual.image_source) as image, open_image(reference.image_source) as other:
                assert not ImageChops.difference(image.convert("RGB"), other.convert("RGB")).getbbox()
    # The official files are read where both are there, and the mirror may lie in the data folder itself.
    minidata.build(mirror, name)
    assert TASKS[name].read_data(mirror)[1] == "official files"


@pytest.mark.parametrize("name", ANSWERS)
def test_same_scores(name, tmp_path, evaluate):
    official, mirror = mirrordata.build(tmp_path, name)
    scores = []
    for data in (official, mirror):
        rows = [
            {"question_id": sample.question_id, "prompt": sample.prompt, "image": sample.image, "text": text}
            for sample, text in zip(TASKS[name].load(data), ANSWERS[name], strict=True)
        ]
        minidata.write_jsonl(tmp_path / "p.jsonl", rows)
        printed = evaluate("score", name, tmp_path / "p.jsonl", "--data", data, "--out", tmp_path / data.name)
        result = printed["results"][0]
        scores.append({mode: list(of_mode["values"].values()) for mode, of_mode in result["scores"].items()})
        form = result["protocol"]["data_form"]
        assert form == "official files" if data == official else form.startswith("Parquet mirror")
    assert scores[0] == scores[1]


def test_textvqa_prompt_has_the_ocr_tokens(tmp_path):
    _, mirror = mirrordata.build(tmp_path, "textvqa")
    prompts = [sample.prompt for sample in TASKS["textvqa"].load(mirror)]
    assert prompts[1].startswith("What brand is phone 1?\nReference OCR token: NOKIA, 1\nAnswer")


def test_a_run_over_a_mirror_equals_one_over_the_official_files(tmp_path, evaluate, model_folder):
    official, mirror = mirrordata.build(tmp_path, "gqa")
    texts = []
    for data in (official, mirror):
        run = ("run", "gqa", "--model", model_folder, "--data", data, "--out", tmp_path / f"out-{data.name}")
        evaluate(*run, "--max-new-tokens", "4", "--workers", "2")
        rows = json.loads((tmp_path / f"out-{data.name}/gqa/result.json").read_text())["rows"]
        texts.append([(row["question_id"], row["text"], row["score"]) for row in rows])
    assert texts[0] == texts[1] and any(text for _, text, _ in texts[0])
    protocol = json.loads((tmp_path / "out-mirror/gqa/protocol.json").read_text())
    assert protocol["data_form"] == "Parquet mirror lmms-lab/GQA: testdev_balanced_instructions testdev"
    assert "data:image/jpeg" in (tmp_path / "out-mirror/gqa/report.html").read_text()


def test_submissions_of_mirrors(tmp_path, evaluate, model_folder):
    for name in ("vqav2", "mmbench"):
        official, mirror = mirrordata.build(tmp_path / name, name)
        sheets = []
        for data in (official, mirror):
            rows = [
                {"question_id": sample.question_id, "prompt": sample.prompt, "text": "A"}
                for sample in TASKS[name].load(data)
            ]
            minidata.write_jsonl(tmp_path / "p.jsonl", rows)
            out = tmp_path / name / data.name
            evaluate("score", name, tmp_path / "p.jsonl", "--data", data, "--out", out)
            if name == "vqav2":
                sheets.append(json.loads((out / "submission.json").read_text()))
            else:
                from openpyxl import load_workbook

                sheet = load_workbook(out / "submission.xlsx").active
                sheets.append([[cell.value for cell in row] for row in sheet.iter_rows()])
        assert sheets[0] == sheets[1] and len(sheets[0]) >= 3


def test_images_of_one_name_are_one_image_and_survive_pickling(tmp_path):
    _, mirror = mirrordata.build(tmp_path, "mme")
    sources = [sample.image_source for sample in TASKS["mme"].load(mirror)]
    assert len(set(sources)) == 4 and all(isinstance(source, ParquetImage) for source in sources)
    assert pickle.loads(pickle.dumps(sources)) == sources


def test_other_layouts_and_splits(tmp_path):
    official, mirror = mirrordata.build(tmp_path, "docvqa_val")
    folder = mirror / "docvqa/DocVQA"
    # As the hub converts a data set, and the files of one configuration alone.
    (folder / "validation").mkdir()
    (folder / "validation-00000-of-00001.parquet").rename(folder / "validation/0000.parquet")
    assert len(TASKS["docvqa_val"].load(mirror)) == 6
    (mirror / "docvqa/InfographicVQA/validation-00000-of-00001.parquet").unlink()
    folder.rename(mirror / "docvqa/data")
    assert len(TASKS["docvqa_val"].load(mirror)) == 6
    with pytest.raises(DataError, match=r"missing file.*Parquet files: lmms-lab/DocVQA"):
        TASKS["docvqa_test"].load(mirror)
    # POPE's categories as splits of their own.
    _, mirror = mirrordata.build(tmp_path / "pope", "pope")
    table = pq.read_table(mirror / "pope/data/test-00000-of-00001.parquet")
    expected = [(sample.question_id, sample.prompt) for sample in TASKS["pope"].load(mirror)]
    for start, split in enumerate(("adversarial", "popular", "random")):
        mirrordata.write(mirror / f"pope/Full/{split}-00000-of-00001.parquet", table.slice(2 * start, 2).to_pylist())
    found, form = TASKS["pope"].read_data(mirror)
    assert [(sample.question_id, sample.prompt) for sample in found] == expected
    assert form == "Parquet mirror lmms-lab/POPE: Full adversarial, Full popular, Full random"


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "column", "type"])
def test_damaged_mirrors_are_named(damage, tmp_path):
    _, mirror = mirrordata.build(tmp_path, "ai2d")
    path = mirror / "ai2d/data/test-00000-of-00001.parquet"
    whole = path.read_bytes()
    if damage in ("column", "type"):
        rows = pq.read_table(path).to_pylist()
        rows = [{**row, "answer": "five"} if damage == "type" else {"question": row["question"]} for row in rows]
        mirrordata.write(path, rows)
    else:
        middle = len(whole) - 300
        path.write_bytes(
            {
                "cut": whole[: len(whole) // 2],
                "empty": b"",
                "flipped": whole[:middle] + bytes(byte ^ 255 for byte in whole[middle:-100]) + whole[-100:],
            }[damage]
        )
    with pytest.raises(DataError, match=f"ai2d: {path}.*put it below"):
        TASKS["ai2d"].load(mirror)


def test_a_broken_image_in_a_mirror_is_named(tmp_path, evaluate, model_folder):
    _, mirror = mirrordata.build(tmp_path, "ai2d")
    path = mirror / "ai2d/data/test-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    rows[2]["image"] = None
    mirrordata.write(path, rows)
    run = (
        "run",
        "ai2d",
        "--model",
        model_folder,
        "--data",
        mirror,
        "--out",
        tmp_path / "out",
        "--max-new-tokens",
        "2",
    )
    with pytest.raises(ValueError, match=r"2 images that failed to load \(test-1, test-2\)"):
        evaluate(*run)
