"""Predictions: matching to questions, validation, and the files of a run.

A prediction is a JSON object on a line of its own with `question_id`, `prompt` and `text` at least, as LLaVA's loader
writes. Predictions are appended as answers arrive, so a kill can leave half a line at the end: that line is dropped.
"""

import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..confidence import AnswerProbability
from ..distributed import Rank
from ..files import drop_partial_line, lock_folder
from .samples import MatchKey, Sample
from .storage import (
    CHECKSUM,
    Record,
    append_rows,
    dump_row,
    read_rows,
    row_checksum,
    warn,
    write_atomically,
)

Key = tuple[Any, ...]
IMAGE_CHECKSUM = "image_crc32"  # in the metadata of a prediction: of the image's file
# In the metadata of a prediction: mean of its tokens' probabilities, and their product; see `AnswerProbability`.
TOKEN_PROBABILITY = "token_probability"
PROBABILITIES = {"mean": TOKEN_PROBABILITY, "product": "answer_probability"}
_POLL = 0.5  # polling interval of the other ranks' files in seconds
_STALL = 3600  # timeout of the other ranks in seconds without a new answer


@dataclass
class Problems:
    """Problems of a set of predictions: ids of the affected questions by kind.

    Attributes:
        unreadable: lines that are not a JSON object with `question_id` and `text` (a killed run leaves a partial last
            line), or that do not match their checksum.
        duplicate: questions answered more than once.
        missing: questions without an answer.
        extra: answers whose question is not in the data.
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
        """Return one line per kind of problem: count and first ids."""
        return [
            f"{len(names)} {meaning} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, meaning in self._MEANING.items()
            if (names := getattr(self, kind))
        ]

    def counts(self) -> dict[str, int]:
        """Return the number of problems by kind."""
        return {kind: len(getattr(self, kind)) for kind in self._MEANING}


def _normal_prompt(prompt: str | None) -> str:
    """Normalize a prompt for matching: lower case, without the image placeholder of some scripts."""
    return (prompt or "").replace("<image>", "").strip().lower()


def _keys(match_key: MatchKey, question_id: Any, image: str | None, prompt: str | None) -> Key:
    if match_key == "id":
        return (str(question_id),)
    if match_key == "id+prompt":
        return (str(question_id), _normal_prompt(prompt))
    return (str(question_id), image, _normal_prompt(prompt))


def match_predictions(
    samples: Sequence[Sample], rows: Sequence[Record], match_key: MatchKey
) -> tuple[list[str | None], Problems]:
    """Find each question's answer by its match key, never by order.

    A file that names no images is matched without them; questions that only their image tells apart are then
    duplicates. Questions the data repeats word for word may be answered as often, if always alike.

    Returns:
        The text for each sample, None where there is none (or several); and what was wrong.
    """
    problems = Problems()
    if match_key == "id+image+prompt" and not any("image" in row for row in rows):
        match_key = "id+prompt"
    asked = Counter(_keys(match_key, s.question_id, s.image, s.prompt) for s in samples)
    found: dict[Key, list[str | None]] = {}
    for row in rows:
        text = None if "error" in row else row["text"]
        found.setdefault(_keys(match_key, row["question_id"], row.get("image"), row.get("prompt")), []).append(text)
    answers: dict[Key, str | None] = {}
    for key, count in asked.items():
        texts, name = found.get(key, []), str(key[0])
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
    problems.extra = [str(key[0]) for key in found if key not in asked]
    return [answers[_keys(match_key, s.question_id, s.image, s.prompt)] for s in samples], problems


def _image_checksum(sample: Sample) -> str | None:
    """Return the CRC-32 of a question's image file; None where its image is in no file."""
    source = sample.image_source
    if not isinstance(source, Path) or not source.is_file():
        return None
    return _file_checksum(source, source.stat().st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _file_checksum(file: Path, modified: int) -> str:
    return f"{zlib.crc32(file.read_bytes()):08x}"


class PredictionStore:
    """Predictions in a run folder: a shard per rank during the run, `predictions.jsonl` when complete.

    A prediction is identified by its question's position, so a run resumes with any number of ranks. What is damaged,
    or belongs to another question or other contents of the image file, is passed over, with a warning, and its
    question is asked again.
    """

    def __init__(self, out: Path, samples: Sequence[Sample], rank: Rank, model_name: str):
        self.samples = samples
        self.rank = rank
        self.model_name = model_name
        self.whole = out / "predictions.jsonl"
        self.shards = out / "shards"
        self.shard = self.shards / f"rank{rank.index}.jsonl"
        self.shards.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock this rank's shard and drop a partial last line of a killed process.

        Raises:
            ValueError: another run of this rank writes into the folder.
        """
        with lock_folder(self.shard, beside=True):
            drop_partial_line(self.shard)
            yield

    def read(self, report: bool = False) -> dict[int, Record]:
        """Return all predictions so far by position; an answer takes precedence over a failed image.

        Args:
            report: warn of damaged lines.
        """
        rows: dict[int, Record] = {}
        for path in (*sorted(self.shards.glob("*.jsonl")), self.whole):
            if not path.exists():
                continue
            found, damaged = read_rows(path)
            about_others = 0
            if damaged and not path.read_bytes().endswith(b"\n"):
                damaged.pop()  # partial line: another rank is writing it, or was killed while writing
            for row in found:
                index = row.get("index")
                if type(index) is not int or not self._is_answer_to(row, index):
                    damaged.append(f"index {index!r}")
                elif not self._is_about_image(row, index):
                    about_others += 1
                elif index not in rows or "error" in rows[index]:
                    rows[index] = row
            if damaged and report:
                names = ", ".join(damaged[:3])
                warn(f"{path}: {len(damaged)} damaged predictions are asked for again ({names})")
            if about_others and report:
                warn(f"{path}: {about_others} answers are about other image files: they are asked for again")
        return rows

    def _is_answer_to(self, row: Record, index: int) -> bool:
        if not 0 <= index < len(self.samples):
            return False
        sample = self.samples[index]
        return row["question_id"] == sample.question_id and row.get("prompt") == sample.prompt

    def _is_about_image(self, row: Record, index: int) -> bool:
        checksum = (row.get("metadata") or {}).get(IMAGE_CHECKSUM)
        return checksum is None or checksum == _image_checksum(self.samples[index])

    def append(self, answers: Iterable[tuple[int, str, str | None, AnswerProbability | None]]) -> None:
        """Append predictions to this rank's shard and wait until they are on disk.

        Args:
            answers: position, text, error (None for an answer) and probability (None if unknown) of each.
        """
        append_rows(self.shard, (self._row(*answer) for answer in answers))

    def _row(self, index: int, text: str, error: str | None, probability: AnswerProbability | None) -> Record:
        """Return a prediction in the fields of LLaVA's loader, plus the question's match key."""
        sample = self.samples[index]
        row: Record = {
            "question_id": sample.question_id,
            "prompt": sample.prompt,
            "text": text,
            "answer_id": f"{sample.question_id}-{index}",
            "model_id": self.model_name,
            "metadata": {},
            "image": sample.image,
            "index": index,
        }
        if error is not None:
            row["error"] = error
        if probability is not None:
            row["metadata"][PROBABILITIES["mean"]] = round(probability.mean, 6)
            row["metadata"][PROBABILITIES["product"]] = float(f"{probability.product:.6g}")
        if (checksum := _image_checksum(sample)) is not None:
            row["metadata"][IMAGE_CHECKSUM] = checksum
        row["metadata"][CHECKSUM] = row_checksum(row)
        return row

    def collect(self) -> list[Record]:
        """Return all predictions in the order of the data, once every rank has written its own.

        Raises:
            ValueError: no new prediction arrives for an hour.
        """
        last_change, last_count = time.monotonic(), -1
        while True:
            rows = self.read()
            if len(rows) == len(self.samples):
                return [rows[index] for index in range(len(self.samples))]
            if self.rank.count == 1:
                raise ValueError(
                    f"{len(rows)} of {len(self.samples)} answers are in {self.shards}: does another run write there?"
                )
            if len(rows) != last_count:
                last_change, last_count = time.monotonic(), len(rows)
            if time.monotonic() - last_change > _STALL:
                raise ValueError(
                    f"{len(rows)} of {len(self.samples)} answers after {_STALL} s of waiting for other ranks"
                )
            time.sleep(_POLL)

    def merge(self, rows: Sequence[Record]) -> None:
        """Write all predictions into one file, in the order of the data, and remove the shards."""
        write_atomically(self.whole, "".join(map(dump_row, rows)))
        for shard in self.shards.glob("*.jsonl"):
            shard.unlink()
