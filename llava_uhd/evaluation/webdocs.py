"""Task on documents rendered by other programs than the training data.

    llava-uhd eval run webdocs --model tiny --out results

Chromium, reportlab with PDFium, and matplotlib drew the documents, in fonts and wordings of their own
(`benchmarks/webdocs`); about an eighth of the questions asks for what is not there, or of a photograph. An answer is
right, declined, or wrong without saying so; scores are also by kind, by ability and by size of print, in pixels of the
image as a model sees it that shows at most twelve slices of 224 x 224.
"""

import io
import json
import zipfile
from functools import partial
from pathlib import Path

from PIL import Image

from .samples import Sample

ARCHIVE = Path(__file__).parents[1] / "assets" / "webdocs.zip"
DECLINABLE = ("unanswerable", "no document")
PRINT_SIZES = ((10, "print below 10 px"), (13, "print of 10 to 12 px"), (16, "print of 13 to 15 px"))
LARGE_PRINT = "print of 16 px and more"


def read_webdocs(root: Path) -> list[Sample]:
    """Return all questions; images are read lazily from the archive.

    Args:
        root: not used: the archive comes with the package.
    """
    with zipfile.ZipFile(ARCHIVE) as archive:
        records = [json.loads(line) for line in archive.read("questions.jsonl").decode().splitlines()]
    return [
        Sample(
            record["question_id"],
            record["question"],
            image=record["image"],
            image_source=partial(open_page, record["image"]),
            image_size=tuple(record["size"]),
            answers=tuple(record["answers"]),
            category=record["kind"],
            details={"ability": record["ability"], "print": _print_size(record["print"])},
        )
        for record in records
    ]


def open_page(name: str) -> Image.Image:
    """Return one image of the archive as RGB."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return Image.open(io.BytesIO(archive.read(name))).convert("RGB")


def _print_size(pixels: float | None) -> str | None:
    if pixels is None:
        return None
    return next((name for limit, name in PRINT_SIZES if pixels < limit), LARGE_PRINT)
