"""Run a benchmark: answer what is not answered yet, then score.

Every rank appends to a file of its own in `shards/`, batch by batch; the first rank waits for all answers and writes
`predictions.jsonl` in the order of the data, and the result. A run that was killed goes on where it stopped, with any
number of ranks: answers are identified by their question's position, and what is answered is not asked again.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .benchmarks import Benchmark
from .generation import Answerer, GenerationOptions
from .outcome import write_outcome
from .predictions import Problems, Row, append_rows, drop_partial_line, read_rows, write_atomically
from .protocol import Protocol, changes, describe_protocol
from .results import Result, check_problems
from .samples import Sample
from .workers import Workers, default_workers

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

_POLL = 0.5  # seconds between looks at the other ranks' files
_STALL = 3600  # seconds without a new answer after which the other ranks are given up
_SAY = 30  # seconds between lines of progress where there is no terminal


@dataclass(frozen=True)
class Rank:
    """This process among those that share the work, as torchrun and accelerate say in the environment."""

    index: int = 0
    count: int = 1

    @classmethod
    def from_environment(cls) -> "Rank":
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@dataclass(frozen=True)
class RunOptions:
    """What a run may say otherwise than the benchmark's row in the table; None keeps what the table says.

    Attributes:
        max_side: 0 leaves images as they are.
        limit: only the first questions.
        workers: processes that answer side by side; None decides by the model and the work. More than one only where
            the main module can be imported again, which each process does.
        allow_missing: score questions without a readable image 0 instead of failing.
    """

    batch_size: int = 8
    max_slices: int | None = None
    max_side: int | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    limit: int | None = None
    seed: int = 0
    allow_missing: bool = False
    workers: int | None = 1

    def generation(self, benchmark: Benchmark) -> GenerationOptions:
        max_side = benchmark.max_side if self.max_side is None else (self.max_side or None)
        return GenerationOptions(
            max_side=max_side,
            max_slices=self.max_slices,
            num_beams=self.num_beams or benchmark.num_beams,
            max_new_tokens=self.max_new_tokens or benchmark.max_new_tokens,
            batch_size=self.batch_size,
        )


def run_benchmark(
    benchmark: Benchmark,
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    data: Path | None,
    out: Path,
    options: RunOptions,
    model_name: str,
) -> Result | None:
    """Answer and score one benchmark.

    Args:
        data: folder of all benchmarks' data, or of this one's.
        out: folder for this benchmark's files: predictions.jsonl, result.json, report.md, report.html, and a
            submission file where a server or a judge scores.

    Returns:
        The result on the first rank, None on the others.

    Raises:
        DataError: the data is incomplete.
        ValueError: `out` holds answers of another protocol; images failed to load and that is not allowed.
    """
    rank = Rank.from_environment()
    samples = benchmark.load(data)[: options.limit]
    answerer = Answerer(model, processor, options.generation(benchmark))
    protocol = describe_protocol(benchmark, samples, answerer, model_name, options.seed, options.limit)
    (out / "shards").mkdir(parents=True, exist_ok=True)
    _check_protocol(out / "protocol.json", protocol, rank)
    _answer_share(samples, answerer, options.workers, out, rank, model_name)
    if rank.index > 0:
        return None
    rows = _wait_for_all(samples, out, rank)
    _merge(out, rows)
    problems = Problems(
        image=[str(row["question_id"]) for row in rows if "error" in row],
        empty=[str(row["question_id"]) for row in rows if "error" not in row and not row["text"]],
    )
    check_problems(problems, len(samples), benchmark.name, allow_missing=options.allow_missing, own_answers=True)
    texts = [None if "error" in row else row["text"] for row in rows]
    return write_outcome(benchmark, samples, texts, problems, protocol, out, data)


def _check_protocol(path: Path, protocol: Protocol, rank: Rank) -> None:
    if path.exists():
        differences = changes(json.loads(path.read_text()), protocol)
        if differences:
            raise ValueError(
                f"{path.parent} holds answers of another protocol ({'; '.join(differences[:3])}): "
                "choose another --out or remove it"
            )
    elif rank.index == 0:
        write_atomically(path, json.dumps(protocol, indent=1) + "\n")


def _known_rows(out: Path) -> dict[int, Row]:
    """All answers so far by position; an answer takes precedence over a failed image."""
    rows: dict[int, Row] = {}
    for path in (*sorted((out / "shards").glob("*.jsonl")), out / "predictions.jsonl"):
        if not path.exists():
            continue
        for row in read_rows(path)[0]:
            if row["index"] not in rows or "error" in rows[row["index"]]:
                rows[row["index"]] = row
    return rows


def _answer_share(
    samples: Sequence[Sample], answerer: Answerer, workers: int | None, out: Path, rank: Rank, model_name: str
) -> None:
    """Answer this rank's batches. A batch that is not whole is answered anew, and only what is new is written."""
    shard = out / "shards" / f"rank{rank.index}.jsonl"
    drop_partial_line(shard)
    answered = {index for index, row in _known_rows(out).items() if "error" not in row}
    batches = answerer.batches.plan(samples, answerer.options.batch_size)[rank.index :: rank.count]
    pending = [positions for positions in batches if not answered.issuperset(positions)]
    total, left = sum(map(len, batches)), sum(map(len, pending))
    workers = workers or default_workers(answerer.model, len(pending))
    with ExitStack() as stack:
        if workers > 1 and pending:
            answers = stack.enter_context(Workers(answerer, samples, workers)).answer_all(pending)
        else:
            answers = answerer.answer_all(samples, pending)
        advance = stack.enter_context(_progress(out.name, total, total - left))
        for positions, of_batch in zip(pending, answers, strict=True):
            rows = [
                _row(index, samples[index], of_batch.texts.get(index, ""), model_name)
                | ({"error": of_batch.errors[index]} if index in of_batch.errors else {})
                for index in positions
                if index not in answered
            ]
            append_rows(shard, rows)
            advance(len(positions))


def _row(index: int, sample: Sample, text: str, model_name: str) -> Row:
    """A line of a prediction file, in the fields of LLaVA's loader, with what identifies the question added."""
    return {
        "question_id": sample.question_id,
        "prompt": sample.prompt,
        "text": text,
        "answer_id": f"{sample.question_id}-{index}",
        "model_id": model_name,
        "metadata": {},
        "image": sample.image,
        "index": index,
    }


def _wait_for_all(samples: Sequence[Sample], out: Path, rank: Rank) -> list[Row]:
    """All answers in the order of the data, once the other ranks have given theirs.

    Raises:
        ValueError: no new answer arrives for an hour.
    """
    last_change, last_count = time.monotonic(), -1
    while True:
        rows = _known_rows(out)
        if len(rows) == len(samples):
            return [rows[index] for index in range(len(samples))]
        assert rank.count > 1, f"{len(rows)} answers to {len(samples)} questions from a single rank"
        if len(rows) != last_count:
            last_change, last_count = time.monotonic(), len(rows)
        if time.monotonic() - last_change > _STALL:
            raise ValueError(f"{len(rows)} of {len(samples)} answers after {_STALL} s of waiting for other ranks")
        time.sleep(_POLL)


def _merge(out: Path, rows: Sequence[Row]) -> None:
    """Write all answers into one file, in the order of the data, and remove the shards."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(out / "predictions.jsonl", text)
    for shard in (out / "shards").glob("*.jsonl"):
        shard.unlink()


@contextmanager
def _progress(name: str, total: int, done: int) -> Iterator:
    """Show count, rate and remaining time on stderr: a bar on a terminal, now and then a line elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started, first, last_said = time.monotonic(), done, time.monotonic()
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, completed=done)

        def advance(count: int) -> None:
            nonlocal done, last_said
            done += count
            bar.advance(task, count)
            now = time.monotonic()
            if not console.is_terminal and (now - last_said > _SAY or done == total):
                rate = (done - first) / (now - started)
                last_said = now
                eta = (total - done) / rate
                print(f"{name}: {done} of {total}, {rate:.2f} questions/s, {eta:.0f} s left", file=sys.stderr)

        yield advance
