"""Results: scores in both modes, problems, protocol and every row. Serialization is deterministic.

The protocol is all that a number depends on: what was asked, how, of which model, with which software.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .metrics import METRICS
from .predictions import Problems
from .samples import Sample, fingerprint
from .storage import StorageError, read_record, write_record
from .tasks import Task

if TYPE_CHECKING:
    import torch

    from .generation import BatchGenerator

Result = dict[str, Any]
Protocol = dict[str, Any]
OFFICIAL, PUBLISHED = "official", "llava-uhd"
# Options of the image processor, beside `GenerationOptions`, that decide how an image is shown.
SHOWN = ("slice_grid", "pad_to_square", "pad_to_grid", "letter_height")
# Problems that change the score: an error unless the user allows them; affected rows score 0.
_FATAL = ("unreadable", "duplicate", "missing", "extra", "image")


def model_fingerprint(model: "torch.nn.Module") -> str:
    """Return a short hash of all weights, by name, in their stored precision."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def describe_protocol(
    task: Task,
    samples: Sequence[Sample],
    generator: "BatchGenerator",
    model_name: str,
    seed: int,
    limit: int | None,
    form: str,
) -> Protocol:
    """Collect the protocol: data, generation settings, model and software versions.

    Neither time nor the number of ranks is part of it: they must not change a result.

    Args:
        task: task to run.
        samples: samples of the task.
        generator: generator of the model, with its options.
        model_name: model name in results and reports.
        seed: seed of the samples.
        limit: maximum number of samples; None for all.
        form: name of the form in which the data was read: official files or a mirror.
    """
    example = generator.batches.prompt(samples[0]).replace(samples[0].prompt, "{question}")
    options = asdict(generator.options)
    if options["max_slices"] is None:
        options["max_slices"] = generator.processor.image_processor.max_slices
    shown = {name: getattr(generator.processor.image_processor, name) for name in SHOWN}
    return {
        "benchmark": task.name,
        "split": task.split,
        "limit": limit,
        "data": fingerprint(list(samples)),
        "data_form": form,
        "prompt": example,
        "suffix": task.suffix,
        "metric": task.metric,
        **options,
        **shown,
        "do_sample": False,
        "seed": seed,
        "model": model_name,
        "model_fingerprint": model_fingerprint(generator.model),
        "dtype": str(generator.model.dtype).removeprefix("torch."),
        "device": generator.model.device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("llava-uhd", "torch", "transformers", "tokenizers", "pillow")},
        },
    }


def load_protocol(path: Path) -> Protocol | None:
    """Read a run's protocol; None if there is no such file.

    Raises:
        StorageError: the file is damaged.
    """
    return read_record(path, "protocol") if path.exists() else None


def check_protocol(path: Path, protocol: Protocol, *, write: bool) -> None:
    """Reject resuming a run of another protocol; write the protocol of a new run.

    Fields that the file does not have, since an earlier version wrote it, are not compared.

    Args:
        path: protocol file of the run.
        protocol: protocol of the present command.
        write: write the file if there is none.

    Raises:
        ValueError: the file is damaged or holds another protocol.
    """
    earlier = load_protocol(path)
    if earlier is None:
        if write:
            write_record(path, protocol)
        return
    changes = [
        f"{name} {old!r} -> {protocol.get(name)!r}" for name, old in earlier.items() if old != protocol.get(name)
    ]
    if changes:
        raise ValueError(
            f"{path.parent} holds answers of another protocol ({'; '.join(changes[:3])}): "
            "choose another --out or remove it"
        )
    if write:
        write_record(path, earlier)  # whole again, if a byte of it was lost that JSON can do without


def check_problems(
    problems: Problems, num_samples: int, what: str, *, allow_missing: bool, own_answers: bool = False
) -> None:
    """Reject a set of predictions with problems.

    Args:
        problems: problems of the predictions.
        num_samples: number of samples of the task.
        what: name of the predictions in errors.
        allow_missing: accept all of them, but for answers to none of the questions.
        own_answers: the model has just given the answers, so that an empty one is its own and no damage to the file.

    Raises:
        ValueError: names and counts them; guesses at a wrong split where hardly anything fits.
    """
    if len(problems.missing) == num_samples and problems.extra:
        raise ValueError(
            f"{what}: none of the {num_samples} questions is answered, and {len(problems.extra)} answers are to "
            f"others ({', '.join(problems.extra[:3])}): is it another split?"
        )
    if allow_missing:
        return
    fatal = _FATAL if own_answers else (*_FATAL, "empty")
    if any(getattr(problems, kind) for kind in fatal):
        raise ValueError(f"{what}: {'; '.join(problems.lines())}; --allow-missing scores them 0")


def build_result(
    task: Task,
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    problems: Problems,
    protocol: Mapping[str, Any],
) -> Result:
    """Score a task's answers in both modes and add protocol and limits."""
    # Official mode: an empty answer is missing, even if a metric would interpret it (POPE: "yes").
    non_blank = [text if text is not None and text.strip() else None for text in texts]
    warnings = [f"scored 0: {line}" for line in problems.lines()]
    if task.count is not None and len(samples) != task.count:
        warnings.append(f"{len(samples)} questions instead of the {task.count} of the split {task.split}")
    result: Result = {
        "benchmark": task.name,
        "split": task.split,
        "questions": len(samples),
        "headline": None,
        "warnings": warnings,
        "scores": {},
        "problems": problems.counts(),
        "comparable": task.comparable,
        "protocol": dict(protocol),
    }
    row_scores: dict[str, list[float]] = {}
    if task.metric is not None:
        metric = METRICS[task.metric]
        for mode, scores in (
            (OFFICIAL, metric(samples, non_blank, None)),
            *([(PUBLISHED, metric(samples, texts, "llava-uhd"))] if task.published else []),
        ):
            values = dict(scores.values)
            result["scores"][mode] = {"headline": scores.headline, "values": values, "notes": scores.notes}
            row_scores[mode] = scores.rows
        result["headline"] = headline(result)
    result["rows"] = [
        {
            "question_id": sample.question_id,
            "image": sample.image,
            "category": sample.category,
            "prompt": sample.prompt,
            "answers": list(sample.answers),
            "text": text,
            "score": row_scores[OFFICIAL][index] if row_scores else None,
            "published_score": row_scores[PUBLISHED][index] if PUBLISHED in row_scores else None,
        }
        for index, (sample, text) in enumerate(zip(samples, texts, strict=True))
    ]
    return result


def headline(result: Result) -> str:
    """Return the headline number with its limits."""
    scores = result["scores"][OFFICIAL]
    value = scores["values"][scores["headline"]]
    text = f"{result['benchmark']}: {scores['headline']} {show(value)} over {result['questions']} questions"
    limits = result["warnings"] + scores["notes"]
    return f"{text} ({'; '.join(limits)})" if limits else text


def show(value: float | int | None) -> str:
    """Format a score: two decimals, integers for counts, a dash if undefined."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


# Required fields of a result, with their types.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "benchmark": str,
    "questions": int,
    "headline": (str, type(None)),
    "warnings": list,
    "scores": dict,
    "comparable": str,
    "protocol": dict,
    "rows": list,
}


def load_result(path: Path) -> Result:
    """Read a result file, or the one in a folder.

    Raises:
        StorageError: the file is missing or damaged, or it is another kind of file.
    """
    file = path / "result.json" if path.is_dir() else path
    result = read_record(file, "result file")
    if "rows" not in result or "protocol" not in result:
        raise StorageError(f"{file} is no result file: it lacks rows or protocol")
    for name, kind in _FIELDS.items():
        if not isinstance(result.get(name), kind):
            raise StorageError(f"{file} is no whole result file: its {name} is {result.get(name)!r:.80}")
    confidence = result.get("confidence")
    if confidence is not None and not (
        isinstance(confidence, dict)
        and {"wrong_unmarked", "right_marked", "auroc"} <= confidence.keys()
        and all(isinstance(value, int | float | None) for value in confidence.values())
    ):
        raise StorageError(f"{file} is no whole result file: its confidence is {confidence!r:.80}")
    for mode, scores in result["scores"].items():
        values = scores.get("values") if isinstance(scores, dict) else None
        if (
            not isinstance(values, dict)
            or scores.get("headline") not in values
            or not isinstance(scores.get("notes"), list)
            or any(not isinstance(value, int | float | None) for value in values.values())
        ):
            raise StorageError(f"{file} is no whole result file: its scores of {mode!r} are {scores!r:.80}")
    for number, row in enumerate(result["rows"], start=1):
        is_complete = isinstance(row, dict) and {"question_id", "image", "prompt", "score"} <= row.keys()
        if not is_complete or not isinstance(row["score"], int | float | None):
            raise StorageError(f"{file} is no whole result file: its row {number} is {row!r:.80}")
    return result
