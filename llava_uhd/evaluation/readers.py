"""Readers of the official files, one per format, from a task's folder to its samples.

The files are those of LLaVA's eval.zip, of the data sets' own releases, or of LLaVA-UHD v2's evaluation data.
References are joined by ids and questions, never by the order of lines.
"""

import csv
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .mirrors import MIRRORS, iterate_rows, split_files
from .samples import LETTER_ANSWER as LETTER_ANSWER
from .samples import SHORT_ANSWER as SHORT_ANSWER
from .samples import DataError, MissingFileError, Sample, mmbench_sample, read_json, read_jsonl
from .scorers import textvqa_question

_YES_NO = "Please answer yes or no."


def _image(root: Path, name: str, *folders: str) -> Path:
    """Return the image's path in the first folder that holds it, by default in the first folder."""
    candidates = [root / folder / name for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def _question_rows(root: Path, file: str, folder: str) -> Iterable[tuple[dict[str, Any], Sample]]:
    """Rows of a LLaVA question file (`question_id`, `image`, `text`), each with its sample still without answers."""
    for row in read_jsonl(root / file):
        yield (
            row,
            Sample(
                question_id=row["question_id"],
                prompt=row["text"],
                image=row["image"],
                image_source=_image(root, row["image"], folder),
                category=row.get("category", ""),
            ),
        )


def _answered(sample: Sample, answers: Iterable[str], category: str | None = None, **details: Any) -> Sample:
    category = sample.category if category is None else category
    return replace(sample, answers=tuple(answers), category=category, details=details)


def _look_up(labels: dict[Any, Any], key: Any, file: str) -> Any:
    if key not in labels:
        raise DataError(f"{file} has no entry for {key!r}")
    return labels[key]


def read_mme(root: Path) -> list[Sample]:
    """MME: `llava_mme.jsonl`, and images and labels in `MME_Benchmark_release_version`."""
    folder = "MME_Benchmark_release_version"
    samples = []
    for _, sample in _question_rows(root, "llava_mme.jsonl", folder):
        category, *_, name = str(sample.question_id).split("/")
        label_file = f"{name.split('.')[0]}.txt"
        path = _image(root, label_file, f"{folder}/{category}/questions_answers_YN", f"{folder}/{category}")
        question = sample.prompt.removesuffix(SHORT_ANSWER)
        label = _look_up(_mme_labels(path), _mme_question(question), str(path))
        samples.append(_answered(sample, [label], category))
    return samples


def _mme_labels(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise MissingFileError(f"missing file: {path}") from error
    fields = [line.split("\t") for line in lines if line.strip()]
    return {_mme_question(question): label.strip() for question, label in fields}


def _mme_question(question: str) -> str:
    """Remove MME's suffix from a question; some files have two spaces before it."""
    return question.strip().removesuffix(_YES_NO).rstrip()


def read_paired(root: Path, questions: str, annotations: str, folders: tuple[str, ...]) -> list[Sample]:
    """MoVA's pairs of files: questions (`text`) and annotations (`question`, the same prompt, and `answer`).

    Annotations are found by (question_id, image, prompt), and by (question_id, prompt) if they name no image.
    """
    labels: dict[Any, Any] = {}
    for row in read_jsonl(root / annotations):
        labels[row["question_id"], row.get("image"), row["question"].lower()] = row
    samples = []
    for row in read_jsonl(root / questions):
        prompt = row["text"].lower()
        key = (row["question_id"], row["image"], prompt)
        unnamed = (row["question_id"], None, prompt)
        label = labels[unnamed] if unnamed in labels else _look_up(labels, key, annotations)
        answers = label["answer"] if isinstance(label["answer"], list) else [label["answer"]]
        source = _image(root, row["image"], *folders)
        category = label.get("type", row.get("category", ""))
        samples.append(
            Sample(row["question_id"], row["text"], row["image"], source, answers=tuple(answers), category=category)
        )
    return samples


def read_ai2d(root: Path) -> list[Sample]:
    """AI2D: `test.jsonl` and `test_from_mova.jsonl`, images in `ai2d_images`."""
    return read_paired(root, "test.jsonl", "test_from_mova.jsonl", ("ai2d_images", "."))


def read_docvqa_val(root: Path) -> list[Sample]:
    """DocVQA's validation split: the challenge's own file with all references, else the authors' single ones."""
    for name in ("val_v1.0_withQT.json", "val_v1.0.json"):
        if (root / name).exists():
            return _read_docvqa(root, name)
    if not (root / "docvqa_questions.jsonl").exists():
        raise MissingFileError(f"missing file: {root / 'val_v1.0_withQT.json'} (or docvqa_questions.jsonl beside it)")
    return read_paired(root, "docvqa_questions.jsonl", "docvqa_annotations.jsonl", (".", "images"))


def read_docvqa_test(root: Path) -> list[Sample]:
    """DocVQA's test split, without labels (evaluation server)."""
    return _read_docvqa(root, "test_v1.0.json")


def _read_docvqa(root: Path, file: str) -> list[Sample]:
    return [
        Sample(
            row["questionId"],
            row["question"] + SHORT_ANSWER,
            row["image"],
            _image(root, row["image"], ".", "spdocvqa_images", ".."),
            answers=tuple(row.get("answers", ())),
        )
        for row in read_json(root / file)["data"]
    ]


def read_chartqa(root: Path) -> list[Sample]:
    """ChartQA's test split: the release's `test/test_{human,augmented}.json`, else the authors' pair of files."""
    halves = {half: root / "test" / f"test_{half}.json" for half in ("human", "augmented")}
    if not any(path.exists() for path in halves.values()):
        if not (root / "chartqa_questions.jsonl").exists():
            raise MissingFileError(f"missing file: {halves['human']} (or chartqa_questions.jsonl in {root})")
        return read_paired(root, "chartqa_questions.jsonl", "chartqa_annotations.jsonl", ("test/png", "."))
    return [
        Sample(
            f"{half}-{index}",
            row["query"] + SHORT_ANSWER,
            row["imgname"],
            root / "test" / "png" / row["imgname"],
            answers=(str(row["label"]),),
            category=half,
        )
        for half, path in halves.items()
        for index, row in enumerate(read_json(path))
    ]


def read_textvqa(root: Path) -> list[Sample]:
    """TextVQA's validation split with OCR tokens in the prompt; references by image and question."""
    annotations = {
        (row["image_id"], row["question"].lower()): row["answers"]
        for row in read_json(root / "TextVQA_0.5.1_val.json")["data"]
    }
    return [
        _answered(
            sample,
            _look_up(annotations, (sample.question_id, textvqa_question(sample.prompt)), "TextVQA_0.5.1_val.json"),
        )
        for _, sample in _question_rows(root, "llava_textvqa_val_v051_ocr.jsonl", "train_images")
    ]


def read_gqa(root: Path) -> list[Sample]:
    """GQA's balanced testdev questions."""
    file = "data/testdev_balanced_questions.json"
    labels = read_json(root / file)
    samples = []
    for _, sample in _question_rows(root, "llava_gqa_testdev_balanced.jsonl", "data/images"):
        label = _look_up(labels, str(sample.question_id), file)
        if label["isBalanced"]:
            structural = label["types"]["structural"]
            samples.append(_answered(sample, [label["answer"]], structural))
    return samples


def read_scienceqa(root: Path) -> list[Sample]:
    """ScienceQA's test split, with and without images."""
    problems = read_json(root / "problems.json")
    in_split = set(read_json(root / "pid_splits.json")["test"])
    samples = []
    for row in read_json(root / "llava_test_CQM-A.json"):
        if row["id"] not in in_split:
            raise DataError(f"llava_test_CQM-A.json has {row['id']!r}, which pid_splits.json does not list for test")
        problem = _look_up(problems, row["id"], "problems.json")
        question = row["conversations"][0]["value"].replace("<image>", "").strip()
        image = row.get("image")
        samples.append(
            Sample(
                row["id"],
                question + LETTER_ANSWER,
                image,
                root / "images" / "test" / image if image else None,
                answers=("ABCDE"[problem["answer"]],),
                category="image" if image else "text",
                details={"num_choices": len(problem["choices"]), "answer_index": problem["answer"]},
            )
        )
    return samples


def read_pope(root: Path) -> list[Sample]:
    """POPE on COCO; labels by category, image and question."""
    labels: dict[Any, str] = {}
    samples = []
    for _, sample in _question_rows(root, "llava_pope_test.jsonl", "val2014"):
        file = f"coco/coco_pope_{sample.category}.json"
        if (sample.category, None, None) not in labels:
            labels[sample.category, None, None] = file
            for row in read_jsonl(root / file):
                labels[sample.category, row["image"], row["text"]] = row["label"]
        key = (sample.category, sample.image, sample.prompt.removesuffix(SHORT_ANSWER))
        samples.append(_answered(sample, [_look_up(labels, key, file)]))
    return samples


def read_vqav2(root: Path) -> list[Sample]:
    """VQAv2's test-dev questions, without labels (evaluation server)."""
    return [s for _, s in _question_rows(root, "llava_vqav2_mscoco_test-dev2015.jsonl", "test2015")]


def read_vqav2_all(root: Path) -> list[str | int]:
    """Return the ids of all test questions; the server expects an answer, possibly empty, to each.

    Of a mirror without its test split, the ids of test-dev.
    """
    if not (root / "llava_vqav2_mscoco_test2015.jsonl").exists():
        files = split_files(root, "", "test") or split_files(root, "", "testdev")
        if files:
            return [int(row["question_id"]) for path in files for row, *_ in iterate_rows(path)]
    return [row["question_id"] for row in read_jsonl(root / "llava_vqav2_mscoco_test2015.jsonl")]


def read_vizwiz(root: Path) -> list[Sample]:
    """VizWiz's test questions, without labels (evaluation server)."""
    return [s for _, s in _question_rows(root, "llava_test.jsonl", "test")]


def read_mm_vet(root: Path) -> list[Sample]:
    """MM-Vet's questions, scored by a judge model."""
    return [s for _, s in _question_rows(root, "llava-mm-vet.jsonl", "images")]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file with images in base64.

    Raises:
        DataError: it is missing.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError as error:
        raise MissingFileError(f"missing file: {path}") from error


MMBENCH_FILE = "mmbench_dev_20230712.tsv"


def read_mmbench(root: Path) -> list[Sample]:
    """MMBench's dev split: one TSV file, images inside."""
    return [mmbench_sample(row, row["image"]) for row in read_table(root / MMBENCH_FILE)]


def mmbench_rows(root: Path) -> list[dict[str, Any]]:
    """Rows of MMBench's TSV file, or of its Parquet mirror in the file's order of columns and without images."""
    if (root / MMBENCH_FILE).exists():
        return list(read_table(root / MMBENCH_FILE))
    files = [path for paths in MIRRORS["mmbench"].files(root).values() for path in paths]
    order = ("index", "question", "hint", "A", "B", "C", "D", "answer")
    rows = []
    for path in files:
        for row, *_ in iterate_rows(path):
            cells = {name: "" if value in (None, "nan") else value for name, value in row.items()}
            rows.append({name: cells.pop(name) for name in order if name in cells} | cells)
    return rows


def read_seed(root: Path) -> list[Sample]:
    """SEED-Bench, images and video frames."""
    release = read_json(root / "SEED-Bench.json")
    names = {number: name for name, number in release["question_type"].items()}
    labels = {str(row["question_id"]): row for row in release["questions"]}
    samples = []
    for _, sample in _question_rows(root, "llava-seed-bench.jsonl", "."):
        label = _look_up(labels, str(sample.question_id), "SEED-Bench.json")
        question_type = names[label["question_type_id"]]
        samples.append(_answered(sample, [label["answer"]], question_type, data_type=label["data_type"]))
    return samples


def read_refcoco(root: Path) -> list[Sample]:
    """RefCOCO, RefCOCO+ and RefCOCOg; `category` names the split."""
    labels = {row["question_id"]: row["label"] for row in read_jsonl(root / "annotations.jsonl")}
    return [
        _answered(sample, [_look_up(labels, sample.question_id, "annotations.jsonl")])
        for _, sample in _question_rows(root, "questions.jsonl", "images/train2017")
    ]


def read_ocrbench(root: Path) -> list[Sample]:
    """OCRBench: `OCRBench.json` and `OCRBench_Images`."""
    return [
        Sample(
            index,
            row["question"],
            row["image_path"],
            _image(root, row["image_path"], "OCRBench_Images", "."),
            answers=tuple(row["answers"]) if isinstance(row["answers"], list) else (row["answers"],),
            category=row["type"],
        )
        for index, row in enumerate(read_json(root / "OCRBench.json"))
    ]
