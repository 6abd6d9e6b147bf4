"""Markdown reports, and HTML pages with the worst answers and their images."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from .results import OFFICIAL, PUBLISHED, Result, show
from .samples import Sample, open_image

_THUMBNAIL = 480  # longest side in pixels
_WORST = 20

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.limits { background: #fff4d6; padding: .5rem 1rem; }
.row { display: flex; gap: 1rem; border-top: 1px solid #ddd; padding: 1rem 0; }
.row img { max-width: 20rem; max-height: 20rem; object-fit: contain; }
.row div { min-width: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; margin: 0; font: inherit; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e6e6e6; } .limits { background: #4a3b10; } }
"""


def _cells(result: Result) -> list[tuple[str, str, str]]:
    """Return the rows of the score table: name, official, as published."""
    modes = [result["scores"].get(mode, {"values": {}})["values"] for mode in (OFFICIAL, PUBLISHED)]
    names = list(dict.fromkeys(name for values in modes for name in values))
    return [(name, *(show(values[name]) if name in values else "" for values in modes)) for name in names]


def _limits(result: Result) -> list[str]:
    notes = [f"{mode}: {note}" for mode, scores in result["scores"].items() for note in scores["notes"]]
    return result["warnings"] + notes


def _title(result: Result) -> str:
    return result["headline"] or f"{result['benchmark']}: {result['questions']} answers, scored elsewhere"


def model_name(result: Result) -> str:
    """Return the model's name, or that of the prediction file."""
    protocol = result["protocol"]
    return str(protocol.get("model") or protocol.get("predictions") or "unknown")


def markdown_report(results: Sequence[Result], sources: Sequence[str] | None = None) -> str:
    """Return a Markdown report of all results: headline, model, scores in both modes, limits, protocol.

    Args:
        results: results to list, in this order.
        sources: path of each result, to distinguish results of one model and task; None omits paths.
    """
    lines = ["# Evaluation", ""]
    if len(results) > 1:
        lines += ["| model | benchmark | questions | official | as published |", "|---|---|---|---|---|"]
        lines += [
            f"| {_text(model_name(r))} | {_text(r['benchmark'])} | {r['questions']} | {_quote(r, OFFICIAL)} "
            f"| {_quote(r, PUBLISHED)} |"
            for r in results
        ]
        lines.append("")
    for index, result in enumerate(results):
        lines += [f"## {_text(_title(result))}", "", f"- model: {_text(model_name(result))}"]
        if sources is not None:
            lines.append(f"- result: {_text(sources[index])}")
        lines += [f"- **{_text(limit)}**" for limit in _limits(result)]
        lines += [f"- comparable: {_text(result['comparable'])}", *_confidence(result), ""]
        if result["scores"]:
            lines += ["| score | official | as published |", "|---|---|---|"]
            lines += [f"| {_text(name)} | {official} | {published} |" for name, official, published in _cells(result)]
            lines.append("")
        lines += ["| protocol | |", "|---|---|"]
        lines += [f"| {_text(name)} | {_code(value)} |" for name, value in result["protocol"].items()]
        lines.append("")
    return "\n".join(lines)


def _confidence(result: Result) -> list[str]:
    """Return the line on the confidence in the answers, where the model has a calibration."""
    report = result.get("confidence")
    if report is None:
        return []
    auroc = show(report["auroc"])
    return [
        f"- confidence: wrong and not marked as a guess {show(report['wrong_unmarked'])} % of all answers; "
        f"right ones marked {show(report['right_marked'])} %; AUROC {auroc}"
    ]


def _quote(result: Result, mode: str) -> str:
    if mode not in result["scores"]:
        return "-"
    scores = result["scores"][mode]
    return f"{_text(scores['headline'])} {show(scores['values'][scores['headline']])}"


# Characters that Markdown or HTML parse as markup in text or table cells.
_ESCAPES = str.maketrans(
    {"<": "&lt;", "&": "&amp;", "|": "\\|", "`": "\\`", "[": "\\[", "]": "\\]", "*": "\\*", "\n": " ", "\r": " "}
)


def _text(value: Any) -> str:
    """Escape text for Markdown."""
    return str(value).translate(_ESCAPES)


def _code(value: Any) -> str:
    """Format inline code in a table cell, fenced by more backticks than it contains."""
    text = str(value).replace("\n", "\\n").replace("\r", "\\r").replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def html_report(result: Result, samples: Sequence[Sample], worst: int = _WORST) -> str:
    """Return an HTML page of one result: scores, limits, protocol and the worst answers with their images.

    Args:
        result: result to show.
        samples: samples of the task, in the order of the result's rows.
        worst: number of answers to show.
    """
    escape = html.escape
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in _limits(result))
    scores = "".join(
        f"<tr><td>{escape(name)}</td><td class=number>{official}</td><td class=number>{published}</td></tr>"
        for name, official, published in _cells(result)
    )
    protocol = "".join(
        f"<tr><td>{escape(name)}</td><td><pre>{escape(str(value))}</pre></td></tr>"
        for name, value in result["protocol"].items()
    )
    rows = "".join(_html_row(row, sample) for row, sample in _worst_rows(result, samples, worst))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(result["benchmark"])}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{escape(_title(result))}</h1>\n"
        + (f"<ul class=limits>{limits}</ul>\n" if limits else "")
        + f"<p>Model: {escape(model_name(result))}.</p>\n"
        + f"<p>Comparable: {escape(result['comparable'])}.</p>\n"
        + (f"<table><tr><th>score<th>official<th>as published</tr>{scores}</table>\n" if scores else "")
        + f"<h2>Worst answers</h2>\n{rows or '<p>None is wrong.</p>'}\n"
        + f"<h2>Protocol</h2>\n<table>{protocol}</table>\n</html>\n"
    )


def _worst_rows(result: Result, samples: Sequence[Sample], worst: int) -> Iterable[tuple[dict[str, Any], Sample]]:
    pairs = [
        pair for pair in zip(result["rows"], samples, strict=True) if pair[0]["score"] is None or pair[0]["score"] < 1
    ]
    return sorted(pairs, key=lambda pair: pair[0]["score"] or 0.0)[:worst]


def _html_row(row: dict[str, Any], sample: Sample) -> str:
    fields = {
        "question": row["prompt"],
        "answer": "(none)" if row["text"] is None else row["text"],
        "references": " | ".join(row["answers"]) or "(secret)",
        "score": show(row["score"]),
        "id": f"{row['question_id']} {row['image'] or ''}",
    }
    cells = "".join(f"<tr><th>{name}<td><pre>{html.escape(value)}</pre></tr>" for name, value in fields.items())
    return f"<div class=row>{_thumbnail(sample)}<div><table>{cells}</table></div></div>\n"


def _thumbnail(sample: Sample) -> str:
    """Return the embedded thumbnail, or the error message if the image cannot be read."""
    if sample.image_source is None:
        return ""
    try:
        with open_image(sample.image_source) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return f"<p>no image: {html.escape(str(error))}</p>"
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
