"""Submission files for servers (DocVQA, VQAv2, VizWiz, MMBench) and judges (MM-Vet)."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .readers import mmbench_rows, read_vqav2_all
from .samples import Sample
from .scorers import evalai_normalize
from .storage import Record, dump_row, printable, replace_file, write_atomically

# Columns that the MMBench server must not get or does not accept.
_MMBENCH_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category", "split")
_MMBENCH_PREDICTION_COLUMN = 6


def docvqa_submission(samples: Sequence[Sample], texts: Sequence[str]) -> list[Record]:
    """Answers for the RRC server."""
    return [
        {"questionId": int(sample.question_id), "answer": text} for sample, text in zip(samples, texts, strict=True)
    ]


def vqav2_submission(all_ids: Sequence[str | int], texts: Mapping[str | int, str]) -> list[Record]:
    """Normalized answer to every test question; "" if missing."""
    return [{"question_id": number, "answer": evalai_normalize(texts.get(number, ""))} for number in all_ids]


def vizwiz_submission(samples: Sequence[Sample], texts: Sequence[str]) -> list[Record]:
    """Normalized answers by image."""
    return [
        {"image": sample.image, "answer": evalai_normalize(text)} for sample, text in zip(samples, texts, strict=True)
    ]


def mmvet_submission(samples: Sequence[Sample], texts: Sequence[str]) -> dict[str, str]:
    """Answers by "v1_<id>", for the judge's notebook."""
    return {f"v1_{sample.question_id}": text for sample, text in zip(samples, texts, strict=True)}


def seed_submission(samples: Sequence[Sample], texts: Sequence[str]) -> list[Record]:
    """Answers in the format of SEED-Bench's leaderboard, one object per line."""
    return [
        {"question_id": str(sample.question_id), "prediction": text}
        for sample, text in zip(samples, texts, strict=True)
    ]


def mmbench_table(rows: Sequence[Mapping[str, Any]], texts: Mapping[int, str]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the submission sheet: the TSV without labels and images, plus predictions.

    Args:
        rows: rows of the TSV as mappings by column.
        texts: answers by index; a row without one keeps an empty cell.
    """
    columns = [name for name in rows[0] if name.lower() not in _MMBENCH_DROPPED]
    columns.insert(_MMBENCH_PREDICTION_COLUMN, "prediction")
    table = []
    for row in rows:
        index = int(row["index"])
        cells = {**row, "index": index, "prediction": texts.get(index)}
        table.append([cells[name] if cells[name] != "" else None for name in columns])
    return columns, table


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")


def _write_sheet(path: Path, columns: list[str], table: list[list[Any]]) -> None:
    """Write a sheet; control characters and lone surrogates, which it cannot hold, become spaces and escapes."""
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for cells in [columns, *table]:
        sheet.append(
            [ILLEGAL_CHARACTERS_RE.sub(" ", printable(cell)) if isinstance(cell, str) else cell for cell in cells]
        )
    replace_file(path, book.save)


def _docvqa(path: Path, root: Path, samples: Sequence[Sample], texts: Sequence[str]) -> Path:
    _write_json(path / "submission.json", docvqa_submission(samples, texts))
    return path / "submission.json"


def _vqav2(path: Path, root: Path, samples: Sequence[Sample], texts: Sequence[str]) -> Path:
    answers = {sample.question_id: text for sample, text in zip(samples, texts, strict=True)}
    _write_json(path / "submission.json", vqav2_submission(read_vqav2_all(root), answers))
    return path / "submission.json"


def _vizwiz(path: Path, root: Path, samples: Sequence[Sample], texts: Sequence[str]) -> Path:
    _write_json(path / "submission.json", vizwiz_submission(samples, texts))
    return path / "submission.json"


def _mmvet(path: Path, root: Path, samples: Sequence[Sample], texts: Sequence[str]) -> Path:
    _write_json(path / "submission.json", mmvet_submission(samples, texts))
    return path / "submission.json"


def _seed(path: Path, root: Path, samples: Sequence[Sample], texts: Sequence[str]) -> Path:
    rows = seed_submission(samples, texts)
    write_atomically(path / "submission.jsonl", "".join(map(dump_row, rows)))
    return path / "submission.jsonl"


def _mmbench(path: Path, root: Path, samples: Sequence[Sample], texts: Sequence[str]) -> Path:
    answers = {int(sample.question_id): text for sample, text in zip(samples, texts, strict=True)}
    _write_sheet(path / "submission.xlsx", *mmbench_table(mmbench_rows(root), answers))
    return path / "submission.xlsx"


# Each writes into a folder, given the task's data folder, its samples and their answers.
WRITERS: dict[str, Callable[[Path, Path, Sequence[Sample], Sequence[str]], Path]] = {
    "docvqa": _docvqa,
    "mmbench": _mmbench,
    "mmvet": _mmvet,
    "seed": _seed,
    "vizwiz": _vizwiz,
    "vqav2": _vqav2,
}
