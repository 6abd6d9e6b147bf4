"""Linear probes of the pyramid's levels (as in Figure 8 of the LLaVA-UHD v2 paper).

A multinomial logistic regression is fitted on the frozen features of each level and measured on held-out images. Three
tasks: the character at a point, the label of a pixel, the class of an image. Features at a point are interpolated
bilinearly from the level's map, so the row of 1x is the paper's bilinear up-sampling, and all levels are asked at the
same points. Classes are probed on the mean and the maximum of a map.

Shapes: C channels, H W map of a level, P points, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from .figure import view_pyramid

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

# Every such image is held out.
HELD_OUT_EVERY = 4
# Penalty on the squared weights, relative to the mean loss; features are standardized.
PENALTY = 1e-3
ITERATIONS = 100
DRAWS = 2000


@dataclass(frozen=True)
class Sample:
    """An image with labels.

    Attributes:
        image: anything that the image processor takes.
        points: (P, 2), x and y from 0 to 1; None for a label of the whole image.
        labels: (P,) class ids, or one of them for the whole image.
    """

    image: Any
    points: np.ndarray | None
    labels: np.ndarray


@dataclass(frozen=True)
class LevelScore:
    """Held-out accuracy of a probe.

    Attributes:
        level: factor of the level.
        accuracy: share of held-out labels that are predicted correct_counts.
        low: lower end of the 95 % bootstrap interval over images.
        high: upper end.
        difference: accuracy minus that of the first level.
        difference_low: lower end of the interval of the paired difference.
        difference_high: upper end.
    """

    level: int
    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class ProbeResult:
    """Scores of a task.

    Attributes:
        task: name of the task.
        images: number of images fitted on.
        held_out: number of held-out images.
        labels: number of held-out labels.
        classes: number of classes.
        majority: held-out accuracy of the class that is most frequent in the fitted images.
        levels: score of each level.
    """

    task: str
    images: int
    held_out: int
    labels: int
    classes: int
    majority: float
    levels: list[LevelScore]


def sample_points(map_: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """Interpolate a map (C, H, W) bilinearly at points (P, 2) in 0..1: (P, C)."""
    grid = torch.from_numpy(points).to(map_.device, torch.float32)[None, None] * 2 - 1  # 1, 1, P, 2
    sampled = F.grid_sample(map_[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T


def image_feature(map_: torch.Tensor) -> torch.Tensor:
    """Pool a map (C, H, W) to the mean and the maximum of its channels: (1, 2·C)."""
    flat = map_.float().flatten(1)
    return torch.cat([flat.mean(dim=1), flat.amax(dim=1)])[None]


@torch.no_grad()
def level_features(
    model: "LlavaUhdForConditionalGeneration", processor: "LlavaUhdProcessor", sample: Sample
) -> dict[int, torch.Tensor]:
    """Return the features of a sample's labels by level, from the overview: (P, C), or (1, 2·C) of a whole image."""
    maps = view_pyramid(model, processor, sample.image, max_slices=1)
    return {
        level: (image_feature(map_) if sample.points is None else sample_points(map_, sample.points)).cpu()
        for level, map_ in maps.items()
    }


def fit_probe(features: torch.Tensor, labels: torch.Tensor, classes: int) -> "Probe":
    """Fit a logistic regression on standardized features, by L-BFGS from zero weights: the same on every call.

    Args:
        features: (P, C).
        labels: (P,) class ids.
        classes: number of classes, K.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    x = (features - mean) / std
    weights = torch.zeros(features.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weights[:-1] + weights[-1], labels) + PENALTY * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Probe(mean, std, weights.detach())


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        mean: (C,), subtracted from features.
        std: (C,), divides them.
        weights: (C + 1, K), the bias in the last row.
    """

    mean: torch.Tensor
    std: torch.Tensor
    weights: torch.Tensor

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class ids of features, (P, C) to (P,)."""
        return (((features - self.mean) / self.std) @ self.weights[:-1] + self.weights[-1]).argmax(dim=1)


def probe_levels(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    task: str,
    samples: Iterable[Sample],
) -> ProbeResult:
    """Fit and measure a probe on every level of the pyramid; every fourth image is held out.

    Args:
        model: loaded model with a HiWin projector.
        processor: processor of the model.
        task: name of the task, for the report.
        samples: labeled images.

    Raises:
        ValueError: the projector uses no pyramid, or there are too few images or classes.
    """
    features: dict[int, list[torch.Tensor]] = {}
    labels: list[torch.Tensor] = []
    for sample in samples:
        if not len(sample.labels):
            continue
        labels.append(torch.from_numpy(np.asarray(sample.labels)).long())
        for level, feature_map in level_features(model, processor, sample).items():
            features.setdefault(level, []).append(feature_map)
    held_out = [index for index in range(len(labels)) if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    fitted = [index for index in range(len(labels)) if index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    if not held_out:
        raise ValueError(f"{task}: {len(labels)} images have labels, at least {HELD_OUT_EVERY} are needed")
    train_labels = torch.cat([labels[index] for index in fitted])
    classes = int(torch.cat(labels).max()) + 1
    if len(train_labels.unique()) < 2:
        raise ValueError(f"{task}: the images have only one class")
    majority = train_labels.bincount().argmax()
    correct_counts: dict[int, np.ndarray] = {}
    for level, maps in features.items():
        probe = fit_probe(torch.cat([maps[index] for index in fitted]), train_labels, classes)
        correct_counts[level] = np.array([float((probe.predict(maps[i]) == labels[i]).sum()) for i in held_out])
    counts = np.array([float(len(labels[index])) for index in held_out])
    most_frequent = sum(float((labels[index] == majority).sum()) for index in held_out)
    scores = _scores(correct_counts, counts)
    return ProbeResult(
        task, len(fitted), len(held_out), int(counts.sum()), classes, most_frequent / counts.sum(), scores
    )


def _scores(correct_counts: dict[int, np.ndarray], counts: np.ndarray) -> list[LevelScore]:
    """Return accuracy of every level and its paired difference to the first, with bootstrap intervals over images."""
    drawn = np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))
    draws = {
        level: correct[drawn].sum(axis=1) / counts[drawn].sum(axis=1) for level, correct in correct_counts.items()
    }
    first = next(iter(correct_counts))
    scores = []
    for level, correct in correct_counts.items():
        accuracy = correct.sum() / counts.sum()
        low, high = np.quantile(draws[level], [0.025, 0.975])
        difference_low, difference_high = np.quantile(draws[level] - draws[first], [0.025, 0.975])
        difference = accuracy - correct_counts[first].sum() / counts.sum()
        numbers = (accuracy, low, high, difference, difference_low, difference_high)
        scores.append(LevelScore(level, *map(float, numbers)))
    return scores


def probe_table(results: Sequence[ProbeResult]) -> str:
    """Return the results as Markdown: a row for each task and level."""
    lines = [
        "| task | level | held-out accuracy, % | to the first level | majority class, % | images | held-out labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for score in result.levels:
            accuracy = f"{100 * score.accuracy:.1f} {_between(score.low, score.high, '.1f')}"
            difference = f"{100 * score.difference:+.1f} "
            difference += _between(score.difference_low, score.difference_high, "+.1f")
            difference = "" if score is result.levels[0] else difference
            lines.append(
                f"| {result.task} | {score.level}x | {accuracy} | {difference} | {100 * result.majority:.1f} "
                f"| {result.images} + {result.held_out} | {result.labels} |"
            )
    return "\n".join(lines) + "\n"


def _between(low: float, high: float, style: str) -> str:
    return f"[{100 * low:{style}}, {100 * high:{style}}]"
