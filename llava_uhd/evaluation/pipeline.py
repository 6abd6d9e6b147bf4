"""Evaluate a model on a task: samples, predictions, scores, report. Entry point: `evaluate_task`.

Every rank appends to a file of its own in `shards/`, batch by batch; the first rank waits for all answers and writes
`predictions.jsonl` in the order of the data, then the result and the reports. A run that was killed resumes with any
number of ranks: what is answered is not asked again.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..confidence import Calibration
from ..distributed import Rank
from ..terminal import note, stderr_console
from .calibration import describe_confidence
from .predictions import PROBABILITIES, PredictionStore, Problems, match_predictions
from .report import html_report, markdown_report
from .results import Result, build_result, check_problems, check_protocol, describe_protocol, load_protocol
from .samples import Sample
from .storage import read_rows, warn, write_atomically, write_record
from .submission import WRITERS
from .tasks import Task

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor
    from .generation import BatchGenerator, GenerationOptions

REASONS = 3  # failed images whose reasons are said
_SAY = 30  # seconds between progress lines without a terminal


@dataclass(frozen=True)
class RunOptions:
    """Overrides of a task's settings; None keeps the task's value.

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

    def generation(self, task: Task) -> "GenerationOptions":
        from .generation import GenerationOptions

        max_side = task.max_side if self.max_side is None else (self.max_side or None)
        return GenerationOptions(
            max_side=max_side,
            max_slices=self.max_slices,
            num_beams=self.num_beams or task.num_beams,
            max_new_tokens=self.max_new_tokens or task.max_new_tokens,
            batch_size=self.batch_size,
        )


def evaluate_task(
    task: Task,
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    data: Path | None,
    out: Path,
    options: RunOptions,
    model_name: str,
    calibration: Calibration | None = None,
) -> Result | None:
    """Answer and score one task.

    Args:
        task: task to run.
        model: loaded model.
        processor: processor of the model.
        data: folder of all tasks' data, or of this one's.
        out: folder for this task's files: predictions.jsonl, result.json, report.md, report.html, and a submission
            file where a server or a judge scores.
        options: batching, slices, and handling of missing data.
        model_name: model name in results and reports.
        calibration: calibration of the model's confidence; None omits the confidence.

    Returns:
        The result on the first rank, None on the others.

    Raises:
        DataError: the data is incomplete.
        ValueError: `out` holds answers of another protocol; images failed to load and that is not allowed.
    """
    from .generation import BatchGenerator

    rank = Rank.from_environment()
    samples, form = task.read_data(data, options.allow_missing)
    samples = samples[: options.limit]
    generator = BatchGenerator(model, processor, options.generation(task))
    protocol = describe_protocol(task, samples, generator, model_name, options.seed, options.limit, form)
    predictions = PredictionStore(out, samples, rank, model_name)
    with predictions.hold():
        check_protocol(out / "protocol.json", protocol, write=rank.is_main)
        generate(generator, predictions, options.workers, out.name)
        if not rank.is_main:
            return None
        rows = predictions.collect()
        predictions.merge(rows)
    texts = [None if "error" in row else row["text"] for row in rows]
    problems = Problems(
        image=[str(row["question_id"]) for row in rows if "error" in row],
        empty=[str(row["question_id"]) for row in rows if "error" not in row and not row["text"]],
    )
    for row in [row for row in rows if "error" in row][:REASONS]:
        warn(f"{task.name}, question {row['question_id']}: {row['error']}")
    check_problems(problems, len(samples), task.name, allow_missing=options.allow_missing, own_answers=True)
    probabilities = None
    if calibration is not None:
        probabilities = [row["metadata"].get(PROBABILITIES[calibration.measure]) for row in rows]
    return finalize(task, samples, texts, problems, protocol, out, data, probabilities, calibration)


def score_file(task: Task, predictions: Path, data: Path | None, out: Path | None, allow_missing: bool) -> Result:
    """Score an existing prediction file of this package or of the reference scripts.

    The protocol is that of the run if the file lies in a run's folder; of another file nothing is known but its name.

    Args:
        task: task that the predictions answer.
        predictions: prediction file in JSON lines.
        data: folder of all tasks' data, or of this one's.
        out: folder for result, reports and submission file; None writes nothing.
        allow_missing: score duplicate, missing and empty answers 0 instead of failing.

    Raises:
        ValueError: there is no such file; or it has such answers, or answers to other questions.
    """
    samples, form = task.read_data(data, allow_missing)
    rows, unreadable = read_rows(predictions)
    texts, problems = match_predictions(samples, rows, task.match_key)
    problems.unreadable = unreadable
    check_problems(problems, len(samples), str(predictions), allow_missing=allow_missing)
    protocol = load_protocol(predictions.with_name("protocol.json")) or {
        "predictions": predictions.name,
        "data_form": form,
    }
    protocol = {**protocol, "metric": task.metric}  # the run's may be another
    return finalize(task, samples, texts, problems, protocol, out, data)


def finalize(
    task: Task,
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    problems: Problems,
    protocol: Mapping[str, Any],
    out: Path | None,
    data: Path | None,
    probabilities: Sequence[float | None] | None = None,
    calibration: Calibration | None = None,
) -> Result:
    """Score predictions and write results, reports and the submission file.

    Args:
        task: task of the samples.
        samples: all samples of the task.
        texts: answer to each sample; None for a missing one.
        problems: missing, duplicate and unreadable predictions.
        protocol: protocol to store with the result.
        out: folder for the files; None writes nothing.
        data: folder of the task's data, for the submission file.
        probabilities: the calibration's `measure` of each answer, where known.
        calibration: calibration of the model; with both, the result has a field `confidence`.
    """
    result = build_result(task, samples, texts, problems, protocol)
    if calibration is not None and probabilities is not None:
        result |= describe_confidence(result, probabilities, calibration)
    if out is None:
        return result
    out.mkdir(parents=True, exist_ok=True)
    write_record(out / "result.json", result)
    write_atomically(out / "report.md", markdown_report([result]))
    write_atomically(out / "report.html", html_report(result, samples))
    if task.submission is not None:
        assert data is not None, f"{task.name} was read from a folder"
        WRITERS[task.submission](out, task.root(data), samples, [text or "" for text in texts])
    return result


def generate(generator: "BatchGenerator", predictions: PredictionStore, workers: int | None, name: str) -> None:
    """Generate this rank's missing predictions in complete batches.

    Args:
        generator: generator of the model.
        predictions: store that holds the finished predictions and receives the new ones.
        workers: processes that answer side by side; None decides by the model and the work.
        name: name of the task in lines of progress.
    """
    from .workers import Workers, default_workers

    samples, rank = predictions.samples, predictions.rank
    answered = {index for index, row in predictions.read(report=True).items() if "error" not in row}
    batches = generator.batches.plan(samples, generator.options.batch_size)[rank.index :: rank.count]
    pending = [positions for positions in batches if not answered.issuperset(positions)]
    total, left = sum(map(len, batches)), sum(map(len, pending))
    workers = workers or default_workers(generator.model, len(pending))
    with ExitStack() as stack:
        if workers > 1 and pending:
            answers = stack.enter_context(Workers(generator, samples, workers)).generate_all(pending)
        else:
            answers = generator.generate_all(samples, pending)
        advance = stack.enter_context(_progress(name, total, total - left))
        for positions, batch in zip(pending, answers, strict=True):
            predictions.append(
                (index, batch.texts.get(index, ""), batch.errors.get(index), batch.probabilities.get(index))
                for index in positions
                if index not in answered
            )
            advance(len(positions))


@contextmanager
def _progress(name: str, total: int, done: int) -> Iterator:
    """Show count, rate and remaining time on stderr: a bar on a terminal, periodic lines elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr_console()
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
                note(f"{name}: {done} of {total}, {rate:.2f} questions/s, {eta:.0f} s left")

        yield advance
