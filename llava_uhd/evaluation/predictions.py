"""Prediction files: one JSON object per line, `question_id`, `prompt` and `text` at least, as LLaVA's loader writes.

They are appended to as answers arrive, so a kill can leave half a line at the end: that line is not there.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .benchmarks import Join
from .samples import Sample

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass
class Problems:
    """What is wrong with a prediction file, each with the names of the questions concerned.

    Attributes:
        unreadable: lines that are no JSON object with `question_id` and `text` (a kill leaves one at the end).
        duplicate: questions answered more than once.
        missing: questions without an answer.
        extra: answers to no question of the data.
        empty: answers without text.
        image: questions whose image could not be read.
    """

    unreadable: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    image: list[str] = field(default_factory=list)

    _MEANING = {
        "unreadable": "unreadable lines",
        "duplicate": "questions answered twice",
        "missing": "questions without an answer",
        "extra": "answers to unknown questions",
        "empty": "empty answers",
        "image": "images that failed to load",
    }

    def lines(self) -> list[str]:
        """One line per kind of problem: how many, and the first names."""
        return [
            f"{len(names)} {meaning} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, meaning in self._MEANING.items()
            if (names := getattr(self, kind))
        ]

    def counts(self) -> dict[str, int]:
        """Number of each kind."""
        return {kind: len(getattr(self, kind)) for kind in self._MEANING}


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows and see to it that they are on disk."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole, so that nobody ever reads half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def drop_partial_line(path: Path) -> None:
    """Cut off what a kill left behind the last newline."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Read a prediction file.

    Returns:
        The rows, and a name ("line 7") for each line that is none.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"no prediction file {path}")
    rows, unreadable = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "question_id" in row and isinstance(row.get("text"), str):
            rows.append(row)
        else:
            unreadable.append(f"line {number}")
    return rows, unreadable


def _normal_prompt(prompt: str | None) -> str:
    """Prompts are compared in lower case and without the image placeholder some scripts record."""
    return (prompt or "").replace("<image>", "").strip().lower()


def _keys(join: Join, question_id: Any, image: str | None, prompt: str | None) -> Key:
    if join == "id":
        return (str(question_id),)
    if join == "id+prompt":
        return (str(question_id), _normal_prompt(prompt))
    return (str(question_id), image, _normal_prompt(prompt))


def join_predictions(samples: Sequence[Sample], rows: Sequence[Row], join: Join) -> tuple[list[str | None], Problems]:
    """Find each question's answer by id, never by order.

    A file that names no images is joined without them; questions that only their image tells apart are then
    duplicates. Questions the data repeats word for word may be answered as often, if always alike.

    Returns:
        The text for each sample, None where there is none (or several); and what was wrong.
    """
    problems = Problems()
    if join == "id+image+prompt" and not any("image" in row for row in rows):
        join = "id+prompt"
    asked = Counter(_keys(join, s.question_id, s.image, s.prompt) for s in samples)
    given: dict[Key, list[str | None]] = {}
    for row in rows:
        text = None if "error" in row else row["text"]
        given.setdefault(_keys(join, row["question_id"], row.get("image"), row.get("prompt")), []).append(text)
    answers: dict[Key, str | None] = {}
    for key, count in asked.items():
        texts, name = given.get(key, []), str(key[0])
        answers[key] = None
        if not texts:
            problems.missing += [name] * count
        elif len(texts) > count or len(set(texts)) > 1:
            problems.duplicate.append(name)
        elif texts[0] is None:
            problems.image.append(name)
        else:
            answers[key] = texts[0]
            if not texts[0].strip():
                problems.empty.append(name)
    problems.extra = [str(key[0]) for key in given if key not in asked]
    return [answers[_keys(join, s.question_id, s.image, s.prompt)] for s in samples], problems
