"""Score an existing prediction file, ours or one the published scripts wrote."""

import json
from pathlib import Path

from .benchmarks import Benchmark
from .outcome import write_outcome
from .predictions import join_predictions, read_rows
from .results import Result, build_result, check_problems


def score_file(
    benchmark: Benchmark, predictions: Path, data: Path | None, out: Path | None, allow_missing: bool
) -> Result:
    """Join a prediction file to its questions and score it.

    The protocol is that of the run if the file lies in a run's folder; of another file nothing is known but its name.

    Args:
        out: folder for result, reports and submission file; None writes nothing.
        allow_missing: score duplicate, missing and empty answers 0 instead of failing.

    Raises:
        ValueError: there is no such file; or it has such answers, or answers to other questions.
    """
    samples = benchmark.load(data)
    rows, unreadable = read_rows(predictions)
    texts, problems = join_predictions(samples, rows, benchmark.join)
    problems.unreadable = unreadable
    check_problems(problems, len(samples), str(predictions), allow_missing=allow_missing)
    beside = predictions.with_name("protocol.json")
    protocol = json.loads(beside.read_text()) if beside.exists() else {"predictions": predictions.name}
    if out is None:
        return build_result(benchmark, samples, texts, problems, protocol)
    return write_outcome(benchmark, samples, texts, problems, protocol, out, data)
