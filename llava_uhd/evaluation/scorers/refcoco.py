"""RefCOCO, RefCOCO+ and RefCOCOg: one box per expression, right above an overlap of one half.

Boxes are (left, top, right, bottom) as fractions of the image's size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .compat import Compat, is_published

Box = tuple[float, float, float, float]
_OVERLAP = 0.5
# The reference script scales boxes before it takes areas, in single precision; both matter at the border.
_SCALE = 1000


@dataclass(frozen=True)
class RefcocoScores:
    """Accuracy and mean overlap in [0, 1]; the number of texts that hold no box."""

    accuracy: float
    mean_iou: float
    unparsable: int


def parse_box(text: str) -> Box | None:
    """Read four comma-separated numbers, brackets allowed, up to the first blank line; None if it is no such list."""
    fields = text.split("\n\n")[0].replace("[", "").replace("]", "").strip(" ").split(",")
    if len(fields) != 4:
        return None
    try:
        left, top, right, bottom = (float(field) for field in fields)
    except ValueError:
        return None
    return (left, top, right, bottom)


def box_iou(box: Box, other: Box) -> float:
    """Intersection over union of two boxes, in single precision; 0 where their union has no area."""
    if not all(map(math.isfinite, box + other)):
        return 0.0
    first, second = np.asarray(box, np.float32) * _SCALE, np.asarray(other, np.float32) * _SCALE
    extent = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    intersection = np.prod(np.maximum(extent, 0))
    union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - intersection
    return float(intersection / union) if union > 0 else 0.0


def refcoco_match(prediction: str, label: str) -> float:
    """Score 1.0 if the predicted box overlaps the label's by more than one half; a text without a box scores 0.

    Raises:
        ValueError: the label holds no box.
    """
    return float(_overlap(prediction, label) > _OVERLAP)


def _overlap(prediction: str, label: str) -> float:
    target = parse_box(label)
    if target is None:
        raise ValueError(f"a label is four numbers, got {label!r}")
    box = parse_box(prediction)
    return 0.0 if box is None else box_iou(box, target)


def refcoco_scores(pairs: Iterable[tuple[str, str]], compat: Compat = None) -> RefcocoScores:
    """Aggregate (prediction, label) pairs of one split.

    A prediction without a box is wrong; the reference script drops it from numerator and denominator alike.
    """
    rows = list(pairs)
    unparsable = sum(parse_box(prediction) is None for prediction, _ in rows)
    if is_published(compat):
        rows = [(prediction, label) for prediction, label in rows if parse_box(prediction) is not None]
    overlaps = [_overlap(prediction, label) for prediction, label in rows]
    if not overlaps:
        return RefcocoScores(accuracy=0.0, mean_iou=0.0, unparsable=unparsable)
    return RefcocoScores(
        accuracy=sum(overlap > _OVERLAP for overlap in overlaps) / len(overlaps),
        mean_iou=sum(overlaps) / len(overlaps),
        unparsable=unparsable,
    )
