"""Relaxed accuracy, the metric of ChartQA: numbers within 5 %, any other text exactly but for its case."""

from .compat import as_list

_TOLERANCE = 0.05


def _as_number(text: str) -> float | None:
    """Read what Python's float reads; a trailing "%" divides by 100. No comma, currency or unit is understood."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def is_number(text: str) -> bool:
    """Return whether relaxed accuracy compares a text as a number."""
    return _as_number(text) is not None


def _relaxed_match(prediction: str, answer: str) -> bool:
    number, target = _as_number(prediction), _as_number(answer)
    # A target of 0 admits no relative error, so it is compared as text: "0.0" does not match "0".
    if number is not None and target:
        return abs(number - target) / abs(target) <= _TOLERANCE
    return prediction.lower() == answer.lower()


def relaxed_accuracy(prediction: str, answers: str | list[str]) -> float:
    """Score one prediction 1.0 if it matches any reference, else 0.0 (ChartQA, section 5.1; the pix2struct form)."""
    return float(any(_relaxed_match(prediction, answer) for answer in as_list(answers)))
