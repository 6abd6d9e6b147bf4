"""One question of a task, and reading the files it comes from."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


class DataError(ValueError):
    """A task's files are missing or do not hold what they should."""


ImageSource = Path | str | Callable[[], Image.Image]


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        question_id: as in the official files; not always unique, see `Task.match_key`.
        prompt: the complete text of the user, with the task's suffix.
        image: the image's name in the official files; None for a question without one.
        image_source: where the image is: a path, its bytes in base64, or a function that draws it.
        image_size: (width, height) in pixels of an image that is drawn.
        answers: references; empty where the labels are a server's secret.
        category: category, kind or sub-split, where scores are given by them.
        details: what this task's metric needs besides.
    """

    question_id: str | int
    prompt: str
    image: str | None = None
    image_source: ImageSource | None = None
    image_size: tuple[int, int] | None = None
    answers: tuple[str, ...] = ()
    category: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def open_image(source: ImageSource) -> Image.Image:
    """Open (or draw) an image; its pixels may not have been read yet.

    Raises:
        OSError, ValueError: it is no image.
    """
    if isinstance(source, Path):
        return Image.open(source)
    return Image.open(BytesIO(base64.b64decode(source))) if isinstance(source, str) else source()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing or no JSON.
    """
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON: {error}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line; blank lines are skipped.

    Raises:
        DataError: it is missing, or a line is no JSON.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is no JSON: {error}") from error
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"missing file: {path}") from error


def fingerprint(samples: list[Sample]) -> str:
    """Short hash of questions, references and image names (not of pixels): tells versions of a data set apart."""
    digest = hashlib.sha256()
    for sample in samples:
        content = (sample.question_id, sample.prompt, sample.image, sample.answers, sample.category)
        digest.update(repr(content).encode())
    return digest.hexdigest()[:16]
