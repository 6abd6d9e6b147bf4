"""Parquet mirrors of the mini data sets, in the columns of the data sets that lmms-eval's tasks name."""

import csv
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_uhd.evaluation.samples import Sample, open_image
from llava_uhd.evaluation.tasks import TASKS
from tests.evaluation import minidata

Record = dict[str, Any]


def image_cell(sample: Sample) -> Record | None:
    """An image as the hub's data sets hold it."""
    if sample.image_source is None:
        return None
    if isinstance(sample.image_source, Path):
        return {"bytes": sample.image_source.read_bytes(), "path": None}
    buffer = BytesIO()
    with open_image(sample.image_source) as image:
        image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": sample.image}


def write(path: Path, rows: list[Record], per_group: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=per_group)


def question(sample: Sample) -> str:
    return sample.prompt.split("\n")[0]


def options(sample: Sample) -> list[str]:
    lines = [line for line in sample.prompt.split("\n") if line[1:3] == ". "]
    return [line[3:] for line in lines]


def mme(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "question_id": sample.question_id,
            "image": image_cell(sample),
            "question": f"{question(sample)} Please answer yes or no.",
            "answer": sample.answers[0],
            "category": sample.category,
        }
        for sample in samples
    ]
    write(root / "data/test-00000-of-00002.parquet", rows[:5])
    write(root / "data/test-00001-of-00002.parquet", rows[5:])


def ai2d(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "question": question(sample),
            "options": options(sample),
            "answer": str("ABCD".index(sample.answers[0])),
            "image": image_cell(sample),
        }
        for sample in samples
    ]
    write(root / "data/test-00000-of-00001.parquet", rows)


def docvqa(split: str) -> Callable[[Path, list[Sample]], None]:
    def build(root: Path, samples: list[Sample]) -> None:
        rows = []
        for sample in samples:
            document, _, page = Path(sample.image).stem.rpartition("_")
            rows.append(
                {
                    "questionId": str(sample.question_id),
                    "question": question(sample),
                    "question_types": ["layout"],
                    "image": image_cell(sample),
                    "docId": len(rows),
                    "ucsf_document_id": document,
                    "ucsf_document_page_no": page,
                    "answers": list(sample.answers) or None,
                    "data_split": "val",
                }
            )
        write(root / f"DocVQA/{split}-00000-of-00001.parquet", rows)
        # The same repository holds another data set.
        write(root / f"InfographicVQA/{split}-00000-of-00001.parquet", rows[:1])

    return build


def chartqa(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "type": f"{sample.category}_test",
            "question": question(sample),
            "answer": sample.answers[0],
            "image": image_cell(sample),
        }
        for sample in samples
    ]
    write(root / "data/test-00000-of-00001-abc.parquet", rows)


def textvqa(root: Path, samples: list[Sample]) -> None:
    rows = []
    for index, sample in enumerate(samples):
        lines = sample.prompt.split("\n")
        tokens = lines[1].removeprefix("Reference OCR token: ").split(", ") if len(lines) == 3 else []
        rows.append(
            {
                "image_id": sample.question_id,
                "question_id": index,
                "question": lines[0],
                "image": image_cell(sample),
                "answers": list(sample.answers),
                "ocr_tokens": tokens,
                "set_name": "val",
            }
        )
    write(root / "data/validation-00000-of-00001.parquet", rows)


def gqa(root: Path, samples: list[Sample]) -> None:
    images = {Path(sample.image).stem: image_cell(sample) for sample in samples}
    rows = [
        {
            "id": sample.question_id,
            "imageId": Path(sample.image).stem,
            "question": question(sample),
            "answer": sample.answers[0],
            "isBalanced": True,
            "types": {"detailed": "x", "semantic": "obj", "structural": sample.category},
        }
        for sample in samples
    ]
    write(root / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", rows)
    write(
        root / "testdev_balanced_images/testdev-00000-of-00001.parquet",
        [{"id": name, "image": image} for name, image in images.items()],
    )


def scienceqa(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "image": image_cell(sample),
            "question": question(sample),
            "choices": options(sample),
            "answer": sample.details["answer_index"],
            "hint": "",
            "task": "closed choice",
        }
        for sample in samples
    ]
    write(root / "ScienceQA-FULL/test-00000-of-00001.parquet", rows)
    write(root / "ScienceQA-IMG/test-00000-of-00001.parquet", [row for row in rows if row["image"]])


def pope(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "id": str(index),
            "question_id": str(index % 2 + 1),
            "question": question(sample),
            "answer": sample.answers[0],
            "image_source": Path(sample.image).stem,
            "image": image_cell(sample),
            "category": sample.category,
        }
        for index, sample in enumerate(samples)
    ]
    write(root / "data/test-00000-of-00001.parquet", rows)


def vqav2(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "image_id": index,
            "question_id": sample.question_id,
            "question": question(sample),
            "image": image_cell(sample),
        }
        for index, sample in enumerate(samples)
    ]
    write(root / "data/testdev-00000-of-00001.parquet", rows)
    more = [row | {"question_id": number} for number, row in zip((2, 3), rows, strict=True)]
    write(root / "data/test-00000-of-00001.parquet", rows + more)


def vizwiz(root: Path, samples: list[Sample]) -> None:
    rows = [
        {"question_id": Path(sample.image).stem, "question": question(sample), "image": image_cell(sample)}
        for sample in samples
    ]
    write(root / "data/test-00000-of-00001.parquet", rows)


def mmbench(root: Path, samples: list[Sample]) -> None:
    with (root.parent.parent / "official/mmbench/mmbench_dev_20230712.tsv").open(newline="") as file:
        official = list(csv.DictReader(file, delimiter="\t"))
    rows = [
        {
            "index": int(row["index"]),
            "question": row["question"],
            "hint": row["hint"],
            "answer": row["answer"],
            **{letter: row[letter] or "nan" for letter in "ABCD"},
            "category": row["category"],
            "image": image_cell(sample),
            "source": row["source"],
            "L2-category": row["l2-category"],
            "comment": "nan",
            "split": "dev",
        }
        for row, sample in zip(official, samples, strict=True)
    ]
    write(root / "en/dev-00000-of-00001.parquet", rows)
    write(root / "cn/dev-00000-of-00001.parquet", rows[:1])


def seed(root: Path, samples: list[Sample]) -> None:
    kinds = {"Scene": 1, "Action": 10, "Text": 9}
    rows = [
        {
            "answer": sample.answers[0],
            **{f"choice_{letter}": option for letter, option in zip("abcd", options(sample), strict=True)},
            "data_id": Path(sample.image).stem,
            "data_type": sample.details["data_type"],
            "question": question(sample),
            "question_id": str(sample.question_id),
            "question_type_id": kinds[sample.category],
            # A video is several frames.
            "image": [image_cell(sample)] * (3 if sample.details["data_type"] == "video" else 1),
        }
        for sample in samples
    ]
    write(root / "data/test-00000-of-00001.parquet", rows)


def refcoco(root: Path, samples: list[Sample]) -> None:
    for config, split, sample in zip(("RefCOCO", "RefCOCO"), ("val", "testA"), samples, strict=True):
        box = json.loads(sample.answers[0])
        with open_image(sample.image_source) as image:
            width, height = image.size
        row = {
            "question_id": "7",
            "image": image_cell(sample),
            "question": "Please carefully observe the area circled in the image",
            "answer": ["the dog"],
            "segmentation": [0.0],
            "bbox": [box[0] * width, box[1] * height, (box[2] - box[0]) * width, (box[3] - box[1]) * height],
            "iscrowd": 0,
            "file_name": sample.image,
        }
        write(root / config / f"data/{split}-00000-of-00001.parquet", [row])


def ocrbench(root: Path, samples: list[Sample]) -> None:
    rows = [
        {
            "dataset": "mini",
            "question": sample.prompt,
            "question_type": sample.category,
            "answer": list(sample.answers),
            "image": image_cell(sample),
        }
        for sample in samples
    ]
    write(root / "data/test-00000-of-00001.parquet", rows)


BUILDERS = {
    "mme": mme,
    "ai2d": ai2d,
    "docvqa_val": docvqa("validation"),
    "docvqa_test": docvqa("test"),
    "chartqa": chartqa,
    "textvqa": textvqa,
    "gqa": gqa,
    "scienceqa_img": scienceqa,
    "pope": pope,
    "vqav2": vqav2,
    "vizwiz": vizwiz,
    "mmbench": mmbench,
    "seed": seed,
    "refcoco": refcoco,
    "ocrbench": ocrbench,
}


def build(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a mini data set in its official form and as a mirror; the data folders of both."""
    official, mirror = folder / "official", folder / "mirror"
    minidata.build(official, name)
    BUILDERS[name](mirror / TASKS[name].folder, TASKS[name].load(official))
    return official, mirror
