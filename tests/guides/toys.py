"""Models, images and data of toy size, at the names that the commands of the guides use."""

import json
import re
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from llava_uhd import built_in
from llava_uhd.synthetic import make_document, render
from tests.checkpoints.layouts import TOWER, write_json, write_original
from tests.documents import write_pdf, write_tiff
from tests.evaluation import minidata
from tests.guides.rules import CLIP
from tests.reproducing import write_toys

ROOT = Path(__file__).parents[2]
SAMPLES = ["sft.json", "mine.json", "playground/data/llava-uhd-v2-sft-data.json"]


def write_parts(folder: Path) -> None:
    """Write backbones, an original checkpoint, and the built-in model under the names that guides give a model."""
    write_toys(folder)
    (folder / CLIP).parent.mkdir()
    shutil.copytree(folder / "tower", folder / CLIP)
    write_original(folder / "LLaVA-UHD-v2")
    for name in ("MODEL", "FOLDER", "runs/mine/model"):
        shutil.copytree(built_in("tiny"), folder / name)
    minidata.build(folder / "DATA", *minidata.SEVEN, "ocrbench")


def write_original_tower(folder: Path) -> None:
    """Write the config of the original checkpoint's vision tower."""
    write_json(folder / CLIP / "config.json", TOWER)


def write_images(folder: Path) -> None:
    """Write documents, scans and folders of images."""
    write_pdf(folder / "report.pdf", 5)
    write_tiff(folder / "scan.tif", 3)
    Image.new("RGB", (2481, 3508), "white").save(folder / "scan.png")
    shutil.copy(ROOT / "examples" / "receipt.png", folder / "page.png")
    shutil.copytree(folder / "images", folder / "birds")
    for name in ("photos", "mine", "playground/data", "playground/data/coco/train2017"):
        shutil.copytree(folder / "flat", folder / name, dirs_exist_ok=True)
    for name in SAMPLES:
        shutil.copy(folder / "samples.json", folder / name)
    with tarfile.open(_parent(folder / "shards" / "0000.tar"), "w") as tar:
        for index, sample in enumerate(json.loads((folder / "samples.json").read_text())):
            _add(tar, f"{index}.json", json.dumps({"conversations": sample["conversations"]}).encode())
            _add(tar, f"{index}.png", (folder / "flat" / sample["image"]).read_bytes())
    encoded = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted((folder / "flat").iterdir())]
    table = {"image": encoded, "query": ["What?"] * len(encoded), "label": ["Blocks."] * len(encoded)}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "train.parquet")


def write_questions(folder: Path) -> None:
    """Write `my.jsonl`: the row that the guide shows, and questions that the built-in model can and cannot answer."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    rows = [json.loads(shown)]
    Image.new("RGB", (60, 90), "white").save(folder / "photos" / rows[0]["image"])
    for index in range(4):
        document = make_document("guides", index)
        render(document.page).save(folder / "photos" / f"document-{index}.png")
        question = document.questions[0]
        rows.append({"image": f"document-{index}.png", "question": question.text, "answer": question.answer})
        rows.append({"image": f"document-{index}.png", "question": "Who painted it?", "answer": "Vermeer"})
    for file in (folder / "photos").iterdir():
        if not (mask := folder / "masks" / f"{file.stem}.png").exists():
            with Image.open(file) as image:
                classes = Image.new("L", image.size)
                classes.paste(1, (0, 0, image.width // 2, image.height))
                classes.save(mask)
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_all(folder: Path) -> None:
    """Write every toy, and links to what commands name in the repository."""
    write_parts(folder)
    write_images(folder)
    write_questions(folder)
    for name in ("examples", "experiments", "benchmarks", "llava_uhd"):
        (folder / name).symlink_to(ROOT / name)


def _parent(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
