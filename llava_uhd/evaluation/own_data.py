"""Custom evaluation data: a file of questions, answers and images, with a chosen or inferred metric.

    llava-uhd eval run my.jsonl --images DIR --model MODEL --out results

A row has `question`, `answer` or `answers`, and optionally `image`, `id` and `category`. Rows are JSON lines, a JSON
list, CSV, TSV or Parquet; LLaVA's `text` and `conversations` of one turn are read, too.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..generation.sampling import MAX_NEW_TOKENS
from .mirrors import ParquetImage, has_embedded_images, iterate_rows
from .samples import DataError, ImageSource, Sample, read_json, read_jsonl, read_text
from .scorers import is_number
from .tasks import Task

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
# Metrics by name, with the criterion of a correct answer.
OWN_METRICS = {
    "accuracy": "the answer, case and a final period aside",
    "anls": "similarity to the nearest answer, 0 below one half",
    "letter": "the option's letter",
    "relaxed": "the answer, or a number within 5 %",
    "vqa": "soft accuracy over several annotators",
}
_QUESTIONS = ("question", "text", "prompt", "query")
_ANSWERS = ("answers", "answer", "label")
_IDS = ("id", "question_id", "questionId")
_MANY_ANSWERS = 4  # minimum number of annotators for inferring soft accuracy


def is_own_file(name: str) -> bool:
    """Return whether a command-line name is a question file instead of a task."""
    return Path(name).suffix.lower() in SUFFIXES


def own_task(path: Path, images: Path | None = None, metric: str | None = None, suffix: str = "") -> tuple[Task, str]:
    """Build a task from a question file.

    Args:
        path: the file.
        images: folder that image paths are relative to; None for the file's own.
        metric: name in `OWN_METRICS`; None guesses it from the answers.
        suffix: text that each prompt ends with, after the question.

    Returns:
        The task, and a line that says what it is: questions, images, metric and how it was chosen.

    Raises:
        DataError: the file is missing, or a row lacks something; names file and row.
        ValueError: there is no such metric.
    """
    if metric is not None and metric not in OWN_METRICS:
        raise ValueError(f"unknown metric {metric!r}; known are {', '.join(OWN_METRICS)}")
    samples = read_own_file(path, images, suffix)
    answered = sum(bool(sample.answers) for sample in samples)
    if answered not in (0, len(samples)):
        first = next(index for index, sample in enumerate(samples, start=1) if not sample.answers)
        raise DataError(f"{path}: {answered} of {len(samples)} rows have an answer; row {first} has none")
    chosen, reason = metric, "chosen"
    if not answered:
        if metric is not None:
            raise DataError(f"{path}: no row has an answer, so nothing can be scored by {metric}")
        reason = "no row has an answer"
    elif metric is None:
        chosen, reason = guess_metric([sample.answers for sample in samples])
        reason = f"guessed: {reason}; --metric chooses another"
    task = Task(
        name=path.stem,
        split="own data",
        count=None,
        folder=None,
        read=partial(_read, path, images, suffix),
        suffix=suffix,
        max_side=None,
        num_beams=1,
        max_new_tokens=MAX_NEW_TOKENS,
        match_key="id",
        metric=chosen and f"own_{chosen}",
        published=False,
        source=f"own file {path.name}",
        comparable="only with results on the same file by the same metric",
    )
    with_image = sum(sample.image is not None for sample in samples)
    text = f"{path}: {len(samples)} questions, {with_image} with an image; metric: {chosen or 'none'} ({reason})"
    return task, text


def _read(path: Path, images: Path | None, suffix: str, _root: Path) -> list[Sample]:
    return read_own_file(path, images, suffix)


def guess_metric(answers: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Infer a metric from all references; return it with the reason."""
    flat = [answer.strip() for references in answers for answer in references]
    if all(len(answer) == 1 and "A" <= answer <= "J" for answer in flat):
        return "letter", "every answer is a letter from A to J"
    if all(answer.lower() in ("yes", "no", "true", "false") for answer in flat):
        return "accuracy", "every answer is yes or no"
    if all(len(references) >= _MANY_ANSWERS for references in answers):
        return "vqa", f"every question has {_MANY_ANSWERS} answers or more"
    if all(map(is_number, flat)):
        return "relaxed", "every answer is a number"
    return "anls", "answers are free text"


def read_own_file(path: Path, images: Path | None = None, suffix: str = "") -> list[Sample]:
    """Read questions from a file; see the module for its rows.

    Raises:
        DataError: the file is missing or holds no rows, or a row lacks something; names file and row.
    """
    folder = path.parent if images is None else images
    samples = []
    for number, (row, image) in enumerate(_rows(path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where} is no object but a {type(row).__name__}")
        question, answers = _question_and_answers(row, where)
        name, source = _image(row, folder, image, where)
        identity = next((row[field] for field in _IDS if row.get(field) is not None), number)
        if not isinstance(identity, str | int):
            raise DataError(f"{where}: its id is {identity!r}, neither text nor a whole number")
        category = row.get("category")
        samples.append(
            Sample(
                identity,
                question + suffix,
                name,
                source,
                answers=answers,
                category="" if category is None else str(category),
            )
        )
    if not samples:
        raise DataError(f"{path} has 0 rows")
    duplicates = [name for name, count in Counter(str(sample.question_id) for sample in samples).items() if count > 1]
    if duplicates:
        raise DataError(f"{path}: {len(duplicates)} ids name more than one row, the first is {duplicates[0]!r}")
    return samples


def _rows(path: Path) -> Iterator[tuple[Any, ParquetImage | None]]:
    """Return the rows of a file, each with its image if the file embeds images."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"missing file: {path}")
    if suffix == ".parquet":
        embedded = has_embedded_images(path)
        for row, group, index in iterate_rows(path, without=("image",) if embedded else ()):
            image = ParquetImage(path, group, index) if embedded else None
            yield row, image if image is not None and image.exists() else None
    elif suffix in (".csv", ".tsv"):
        yield from ((row, None) for row in _read_csv(path, "\t" if suffix == ".tsv" else ","))
    elif suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise DataError(f"{path} holds a {type(content).__name__}, not a list of rows")
        yield from ((row, None) for row in content)
    elif suffix == ".jsonl":
        yield from ((row, None) for row in read_jsonl(path))
    else:
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}")


def _read_csv(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table with a header."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise DataError(f"{path} has more than one column {twice[0]!r}")
        for number, cells in enumerate((cells for cells in rows if cells), start=1):
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, row {number} has {len(cells)} cells and the header {len(header)}: text with the "
                    "separator in it goes in double quotes"
                )
            yield _with_list(dict(zip(header, cells, strict=True)))
    except csv.Error as error:  # a quote that is not closed, or a cell without an end
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def _with_list(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of text whose `answers` may be a JSON list."""
    answers = row.get("answers") or ""
    if not answers.startswith("["):
        return row
    try:
        return {**row, "answers": json.loads(answers)}
    except ValueError:
        return row  # an answer that begins with a bracket


def _question_and_answers(row: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    if "conversations" in row:
        return _one_turn(row["conversations"], where)
    question = next((row[field] for field in _QUESTIONS if row.get(field) is not None), None)
    question = _without_placeholder(question) if isinstance(question, str) else ""
    if not question:
        raise DataError(f"{where} has no question (fields: {', '.join(map(str, row))})")
    value = next((row[field] for field in _ANSWERS if row.get(field) is not None), ())
    answers = value if isinstance(value, list | tuple) else [value]
    unfit = [answer for answer in answers if isinstance(answer, dict | list) or answer is None]
    if unfit:
        raise DataError(f"{where}: an answer is {json.dumps(unfit[0])}, not text or a number")
    if infinite := [answer for answer in answers if isinstance(answer, float) and not math.isfinite(answer)]:
        raise DataError(f"{where}: an answer is {infinite[0]}, as of an empty cell: leave it out, or write it as text")
    return question, tuple(_text(answer) for answer in answers if _text(answer) != "")


def _text(answer: Any) -> str:
    return ("yes" if answer else "no") if isinstance(answer, bool) else str(answer)


def _one_turn(turns: Any, where: str) -> tuple[str, tuple[str, ...]]:
    """Return question and answer of a conversation in LLaVA format."""
    turns = turns if isinstance(turns, list) else []
    texts = [turn["value"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    if not 1 <= len(texts) == len(turns) <= 2:
        raise DataError(f"{where}: it must be one question and one answer, and has {len(turns)} turns")
    if turns[0].get("from") in ("gpt", "assistant"):
        raise DataError(f"{where}: its first turn is from {turns[0]['from']}, and must be the question")
    question = texts[0].replace("<image>", "").strip()
    if not question:
        raise DataError(f"{where}: its question is empty")
    return question, tuple(texts[1:])


def _without_placeholder(question: str) -> str:
    """Return a question without the placeholder of its image before or after it; within it `<image>` is a word."""
    return question.strip().removeprefix("<image>").removesuffix("<image>").strip()


def _image(
    row: Mapping[str, Any], folder: Path, image: ParquetImage | None, where: str
) -> tuple[str | None, ImageSource | None]:
    """Return name and source of a row's image."""
    if image is not None:
        return f"{image.path.name}, row {image.row} of group {image.group}", image
    name = row.get("image")
    if name is None:
        name = row.get("images")  # as training data has it
        if isinstance(name, list) and len(name) < 2:
            name = name[0] if name else None
        elif isinstance(name, list):
            raise DataError(f"{where} has {len(name)} images, and a question is about one")
    if name is None or name == "":
        return None, None
    if not isinstance(name, str):
        raise DataError(f"{where}: its image is {name!r:.60}, not the path of one image")
    return name, folder / name
