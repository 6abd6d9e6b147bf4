"""Result files: scores in both modes, what was wrong, the protocol, and every row. The same input, the same bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmarks import Benchmark
from .metrics import METRICS
from .predictions import Problems, write_atomically
from .samples import Sample

Result = dict[str, Any]
OFFICIAL, PUBLISHED = "official", "llava-uhd"
# Problems that make a number another one, unless the user allows them; then those rows score 0.
_FATAL = ("unreadable", "duplicate", "missing", "extra", "image")


def check_problems(
    problems: Problems, num_samples: int, what: str, *, allow_missing: bool, own_answers: bool = False
) -> None:
    """Refuse a set of predictions with problems.

    Args:
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
    benchmark: Benchmark,
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    problems: Problems,
    protocol: Mapping[str, Any],
) -> Result:
    """Score a benchmark's answers in both modes and gather what a reader needs to trust the number."""
    # Officially an answer without text is no answer, even where a metric would read one into it (POPE: "yes").
    spoken = [text if text is not None and text.strip() else None for text in texts]
    warnings = [f"scored 0: {line}" for line in problems.lines()]
    if benchmark.count is not None and len(samples) != benchmark.count:
        warnings.append(f"{len(samples)} questions instead of the {benchmark.count} of the split {benchmark.split}")
    result: Result = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "questions": len(samples),
        "headline": None,
        "warnings": warnings,
        "scores": {},
        "problems": problems.counts(),
        "comparable": benchmark.comparable,
        "protocol": dict(protocol),
    }
    row_scores: dict[str, list[float]] = {}
    if benchmark.metric is not None:
        metric = METRICS[benchmark.metric]
        for mode, scores in (
            (OFFICIAL, metric(samples, spoken, None)),
            (PUBLISHED, metric(samples, texts, "llava-uhd")),
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
            "published_score": row_scores[PUBLISHED][index] if row_scores else None,
        }
        for index, (sample, text) in enumerate(zip(samples, texts, strict=True))
    ]
    return result


def headline(result: Result) -> str:
    """The number to quote, with what limits it."""
    scores = result["scores"][OFFICIAL]
    value = scores["values"][scores["headline"]]
    text = f"{result['benchmark']}: {scores['headline']} {show(value)} over {result['questions']} questions"
    limits = result["warnings"] + scores["notes"]
    return f"{text} ({'; '.join(limits)})" if limits else text


def show(value: float | int | None) -> str:
    """A score for reading: two decimals, counts as they are, a dash where undefined."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def save_result(path: Path, result: Result) -> None:
    """Write a result file as a whole."""
    write_atomically(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def load_result(path: Path) -> Result:
    """Read a result file, or the one in a folder.

    Raises:
        ValueError: there is none, or it is another kind of file.
    """
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no result file {file}")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no result file: {error}") from error
    if not isinstance(result, dict) or "rows" not in result or "protocol" not in result:
        raise ValueError(f"{file} is no result file: it lacks rows or protocol")
    return result
