"""What becomes of a benchmark's answers: result, reports, and the file for a server or a judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmarks import Benchmark
from .predictions import Problems, write_atomically
from .report import html_report, markdown_report
from .results import Result, build_result, save_result
from .samples import Sample
from .submission import WRITERS


def write_outcome(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    problems: Problems,
    protocol: Mapping[str, Any],
    out: Path,
    data: Path | None,
) -> Result:
    """Score answers and write result, reports and submission file into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    result = build_result(benchmark, samples, texts, problems, protocol)
    save_result(out / "result.json", result)
    write_atomically(out / "report.md", markdown_report([result]))
    write_atomically(out / "report.html", html_report(result, samples))
    if benchmark.submission is not None:
        assert data is not None, f"{benchmark.name} was read from a folder"
        WRITERS[benchmark.submission](out, benchmark.root(data), samples, [text or "" for text in texts])
    return result
