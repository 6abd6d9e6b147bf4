"""Sample of a task, and helpers for reading official files."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..errors import InputError

# Fields that identify a question in a prediction file.
MatchKey = Literal["id", "id+prompt", "id+image+prompt"]
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."


class DataError(InputError):
    """Error: a task's files are missing or invalid."""


ImageSource = Path | str | Callable[[], Image.Image]


@dataclass(frozen=True)
class Sample:
    """Question of a task.

    Attributes:
        question_id: id in the official files; not always unique, see `Task.match_key`.
        prompt: complete user text, including the task's suffix.
        image: image name in the official files; None for a text-only question.
        image_source: path of the image, its bytes in base64, or a function that renders it.
        image_size: (width, height) in pixels of a rendered image.
        answers: reference answers; empty if only an evaluation server has the labels.
        category: category, kind or sub-split, for tasks that report scores by category.
        details: additional fields for the task's metric.
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
    """Open (or render) an image; pixels may be decoded later.

    Raises:
        OSError, ValueError: it is no image.
    """
    from ..model.images import decode_base64
    from ..model.images import open_image as open_file

    if isinstance(source, Path):
        return open_file(source)
    return open_file(decode_base64(source)) if isinstance(source, str) else source()


def _is_empty(value: Any) -> bool:
    return value is None or str(value).lower() in ("", "nan", "none")


def mmbench_sample(row: Mapping[str, Any], image: ImageSource) -> Sample:
    """Sample of a row of MMBench: the hint, the question and the options up to the first that is empty."""
    choices: dict[str, str] = {}
    for letter in "ABCD":
        if _is_empty(row.get(letter)):
            break
        choices[letter] = row[letter]
    question = row["question"] if _is_empty(row.get("hint")) else f"{row['hint']}\n{row['question']}"
    options = "".join(f"\n{letter}. {option}" for letter, option in choices.items())
    return Sample(
        int(row["index"]),
        question + options + LETTER_ANSWER,
        str(row["index"]),
        image,
        answers=() if _is_empty(row.get("answer")) else (row["answer"],),
        category=row.get("category") or "",
        details={"choices": choices},
    )


class MissingFileError(DataError):
    """Error: a dataset file is missing."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path} is no JSON: {error}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line; blank lines are skipped.

    Raises:
        DataError: it is missing, or a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is no JSON object but a {type(row).__name__}")
            rows.append(row)
    return rows


def read_text(path: Path) -> str:
    """Read a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is missing, or in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError(f"missing file: {path}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from error


def fingerprint(samples: list[Sample]) -> str:
    """Return a short hash of questions, references and image names (not pixels) to identify a dataset version."""
    digest = hashlib.sha256()
    for sample in samples:
        content = (sample.question_id, sample.prompt, sample.image, sample.answers, sample.category)
        digest.update(repr(content).encode())
    return digest.hexdigest()[:16]
