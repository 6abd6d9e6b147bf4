"""Metrics that map samples and answers to scores, official and as in the reference.

A metric returns one score per question, in [0, 1], for comparing and for finding the worst rows, and the aggregate
scores, of which one is the number to quote. An answer of None is missing and scores 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .samples import Sample
from .scorers import (
    Compat,
    GqaAnswer,
    MmbenchAnswer,
    MmeAnswer,
    OcrbenchAnswer,
    ScienceQaAnswer,
    SeedAnswer,
    ai2d_match,
    anls,
    gqa_match,
    gqa_scores,
    judge_answer,
    mmbench_circular,
    mmbench_match,
    mme_scores,
    ocrbench_match,
    ocrbench_scores,
    parse_mme,
    parse_pope,
    pope_scores,
    refcoco_match,
    refcoco_scores,
    relaxed_accuracy,
    scienceqa_match,
    scienceqa_scores,
    seed_match,
    seed_scores,
    vqa_soft_accuracy,
)


@dataclass(frozen=True)
class Scores:
    """Result of a metric.

    Attributes:
        headline: name of the number to quote.
        values: aggregate scores by name, the headline among them; None where undefined.
        rows: score in [0, 1] of each question.
        notes: caveats about the values.
    """

    headline: str
    values: Mapping[str, float | int | None]
    rows: list[float]
    notes: list[str] = field(default_factory=list)


Texts = Sequence[str | None]
Metric = Callable[[Sequence[Sample], Texts, Compat], Scores]


def _percent(scores: Sequence[float]) -> float | None:
    return 100 * sum(scores) / len(scores) if scores else None


def _score_rows(samples: Sequence[Sample], texts: Texts, score: Callable[[str, Sample], float]) -> list[float]:
    return [0.0 if text is None else score(text, sample) for sample, text in zip(samples, texts, strict=True)]


def _by_category(samples: Sequence[Sample], rows: Sequence[float]) -> dict[str, float | int | None]:
    """Return percentages by category, in order of first appearance; empty if there is only one."""
    groups: dict[str, list[float]] = {}
    for sample, row in zip(samples, rows, strict=True):
        groups.setdefault(sample.category, []).append(row)
    return {name: _percent(scores) for name, scores in groups.items()} if len(groups) > 1 else {}


def _score_anls(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Score ANLS; the reference scripts use only the first reference answer."""
    if compat is None:
        rows = _score_rows(samples, texts, lambda text, sample: anls(text, list(sample.answers)))
        single = all(len(sample.answers) == 1 for sample in samples)
        notes = ["every question has a single reference: a lower bound of the official number"] if single else []
        return Scores("ANLS", {"ANLS": _percent(rows)}, rows, notes)
    rows = _score_rows(samples, texts, lambda text, sample: anls(text, sample.answers[0], compat))
    return Scores("single-reference ANLS", {"single-reference ANLS": _percent(rows)}, rows)


def _score_chartqa(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Relaxed accuracy, officially the mean over the human and the augmented half; the reference scripts take ANLS."""
    if compat is not None:
        return _score_anls(samples, texts, compat)
    rows = _score_rows(samples, texts, lambda text, sample: relaxed_accuracy(text, list(sample.answers)))
    halves = _by_category(samples, rows)
    if set(halves) != {"human", "augmented"}:
        note = "the data does not tell the human from the augmented questions: the mean is over all questions"
        return Scores("relaxed accuracy", {"relaxed accuracy": _percent(rows)}, rows, [note])
    mean = sum(value for value in halves.values() if value is not None) / len(halves)
    return Scores("relaxed accuracy", {"relaxed accuracy": mean, **halves}, rows)


def _score_vqa(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    rows = _score_rows(samples, texts, lambda text, sample: vqa_soft_accuracy(text, list(sample.answers), compat))
    return Scores("soft accuracy", {"soft accuracy": _percent(rows)}, rows)


def _score_ai2d(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    rows = _score_rows(samples, texts, lambda text, sample: ai2d_match(text, list(sample.answers), compat))
    return Scores("accuracy", {"accuracy": _percent(rows)}, rows)


def _score_gqa(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    rows = _score_rows(samples, texts, lambda text, sample: gqa_match(text, sample.answers[0]))
    # No reference is a lone newline, so a missing answer never matches.
    answers = [
        GqaAnswer("\n" if text is None else text, sample.answers[0], sample.category)
        for sample, text in zip(samples, texts, strict=True)
    ]
    scores = gqa_scores(answers)
    return Scores("accuracy", {"accuracy": scores.accuracy, "binary": scores.binary, "open": scores.open}, rows)


def _score_scienceqa(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    answers = [
        ScienceQaAnswer(text, sample.details["num_choices"], sample.details["answer_index"], sample.image is not None)
        for sample, text in zip(samples, texts, strict=True)
    ]
    rows = [scienceqa_match(answer.text, answer.num_choices, answer.answer_index) for answer in answers]
    scores = scienceqa_scores(answers, compat)
    return Scores(
        "image accuracy",
        {"image accuracy": scores.image_accuracy, "accuracy": scores.accuracy, "images": scores.num_images},
        rows,
    )


def _score_mme(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    answers = [
        MmeAnswer(sample.category, sample.image or "", sample.answers[0], text or "")
        for sample, text in zip(samples, texts, strict=True)
    ]
    rows = [float(parse_mme(answer.text) == answer.label.lower()) for answer in answers]
    scores = mme_scores(answers, compat)
    values: dict[str, float | int | None] = {"perception": scores.perception, "cognition": scores.cognition}
    values |= {name: category.score for name, category in scores.categories.items()}
    missing = scores.missing
    notes = [f"{len(missing)} of MME's 14 categories are missing: {', '.join(missing)}"] if missing else []
    return Scores("perception", values, rows, notes)


def _score_pope(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """F1 by category and its mean; a missing answer counts as the wrong label."""
    by_category: dict[str, tuple[list[str], list[str]]] = {}
    rows = []
    for sample, text in zip(samples, texts, strict=True):
        label = sample.answers[0]
        judged = text if text is not None else ("no" if label == "yes" else "yes")
        rows.append(float(parse_pope(judged) == label))
        group = by_category.setdefault(sample.category, ([], []))
        group[0].append(judged)
        group[1].append(label)
    values: dict[str, float | int | None] = {"mean F1": None}
    notes = []
    for name, (given_texts, labels) in by_category.items():
        scores = pope_scores(given_texts, labels, compat)
        values |= {
            f"{name} F1": 100 * scores.f1,
            f"{name} accuracy": 100 * scores.accuracy,
            f"{name} precision": 100 * scores.precision,
            f"{name} recall": 100 * scores.recall,
            f"{name} yes": 100 * scores.yes_ratio,
        }
        if scores.undefined:
            notes.append(f"{name}: {', '.join(scores.undefined)} undefined (no such answers), reported as 0")
    values["mean F1"] = sum(values[f"{name} F1"] or 0.0 for name in by_category) / len(by_category)
    return Scores("mean F1", values, rows, notes)


def _score_seed(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    answers = [
        SeedAnswer(text, sample.answers[0], sample.category, sample.details["data_type"])
        for sample, text in zip(samples, texts, strict=True)
    ]
    scores = seed_scores(answers)
    kinds: dict[str, float | int | None] = {f"{kind} accuracy": value for kind, value in scores.by_data.items()}
    headline = "image accuracy" if "image accuracy" in kinds else "accuracy"
    return Scores(
        headline,
        {"accuracy": scores.total, **kinds, **scores.by_type},
        [seed_match(answer.text, answer.answer) for answer in answers],
    )


def _score_mmbench(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    if not all(sample.answers for sample in samples):
        raise ValueError("this MMBench file has no answers: its labels are the server's; write the submission file")
    answers = [
        MmbenchAnswer(int(sample.question_id), text or "", sample.details["choices"], sample.answers[0])
        for sample, text in zip(samples, texts, strict=True)
    ]
    rows = [mmbench_match(answer.text, answer.choices, answer.answer) for answer in answers]
    return Scores(
        "circular accuracy", {"circular accuracy": mmbench_circular(answers), "accuracy": _percent(rows)}, rows
    )


def _score_refcoco(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Accuracy by split and its mean over splits."""
    rows = _score_rows(samples, texts, lambda text, sample: refcoco_match(text, sample.answers[0]))
    splits: dict[str, list[tuple[str, str]]] = {}
    for sample, text in zip(samples, texts, strict=True):
        splits.setdefault(sample.category or "all", []).append((text or "", sample.answers[0]))
    scores = {name: refcoco_scores(pairs, compat) for name, pairs in splits.items()}
    values: dict[str, float | int | None] = {
        "mean accuracy": 100 * sum(split.accuracy for split in scores.values()) / len(scores)
    }
    values |= {f"{name} accuracy": 100 * split.accuracy for name, split in scores.items()}
    values["answers without a box"] = sum(split.unparsable for split in scores.values())
    return Scores("mean accuracy", values, rows)


def _score_relaxed(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    rows = _score_rows(samples, texts, lambda text, sample: relaxed_accuracy(text, list(sample.answers)))
    return Scores("relaxed accuracy", {"relaxed accuracy": _percent(rows)}, rows)


def _normal(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().lower()


def _score_accuracy(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Equality with any reference, case, outer spaces and a final period aside."""
    rows = _score_rows(
        samples, texts, lambda text, sample: float(_normal(text) in [_normal(answer) for answer in sample.answers])
    )
    return Scores("accuracy", {"accuracy": _percent(rows)}, rows)


def _own(metric: Metric) -> Metric:
    """A metric for a user's data: with the scores of each category, without notes on published numbers."""

    def score(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
        scores = metric(samples, texts, compat)
        by_category = _by_category(samples, scores.rows)
        if scores.headline in by_category:
            by_category[f"category {scores.headline}"] = by_category.pop(scores.headline)
        return replace(scores, values={**scores.values, **by_category}, notes=[])

    return score


def _score_ocrbench(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Count correct answers, in total and by group; a missing answer is wrong."""
    answers = [
        OcrbenchAnswer(text or "", list(sample.answers), sample.category)
        for sample, text in zip(samples, texts, strict=True)
    ]
    rows = _score_rows(
        samples, texts, lambda text, sample: ocrbench_match(text, list(sample.answers), sample.category)
    )
    values: dict[str, float | int | None] = {name: int(value) for name, value in ocrbench_scores(answers).items()}
    values["Final Score Norm"] = sum(rows) / 10
    return Scores("Final Score", values, rows)


def _score_exact(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Exact match by document kind and by font size of the answer."""
    rows = _score_rows(samples, texts, lambda text, sample: float(text == sample.answers[0]))
    by_size = _by_category([replace(sample, category=sample.details["text_size"]) for sample in samples], rows)
    values = {"exact match": _percent(rows), **_by_category(samples, rows), **dict(sorted(by_size.items()))}
    return Scores("exact match", values, rows)


def _score_declining(samples: Sequence[Sample], texts: Texts, compat: Compat) -> Scores:
    """Right answers by kind, ability and size of print; how often declined; how often wrong without saying so.

    A missing answer is neither right nor declined.
    """
    declinable = [sample.details["ability"] in ("unanswerable", "no document") for sample in samples]
    outcomes = [
        judge_answer(text or "", sample.answers, may)
        for sample, text, may in zip(samples, texts, declinable, strict=True)
    ]
    rows = [float(kind == "right") for kind in outcomes]
    answerable = [place for place, may in enumerate(declinable) if not may]
    asked, right = [samples[place] for place in answerable], [rows[place] for place in answerable]
    declined = [float(outcomes[place] == "declined") for place in answerable]
    values: dict[str, float | int | None] = {
        "answered right": _percent(right),
        "declined though answerable": _percent(declined),
        "declined rightly": _percent([row for row, may in zip(rows, declinable, strict=True) if may]),
        "wrong without saying so": _percent([float(kind == "wrong") for kind in outcomes]),
    }
    values |= _by_category(asked, right)
    for detail in ("ability", "print"):
        prefix = "ability " if detail == "ability" else ""
        named = [replace(sample, category=prefix + (sample.details[detail] or "not printed")) for sample in asked]
        values |= dict(sorted(_by_category(named, right).items()))
    return Scores("answered right", values, rows)


METRICS: dict[str, Metric] = {
    "ai2d": _score_ai2d,
    "anls": _score_anls,
    "chartqa": _score_chartqa,
    "declining": _score_declining,
    "exact": _score_exact,
    "gqa": _score_gqa,
    "mmbench": _score_mmbench,
    "mme": _score_mme,
    "ocrbench": _score_ocrbench,
    "pope": _score_pope,
    "refcoco": _score_refcoco,
    "scienceqa": _score_scienceqa,
    "seed": _score_seed,
    "vqa": _score_vqa,
    "own_accuracy": _own(_score_accuracy),
    "own_anls": _own(_score_anls),
    "own_letter": _own(_score_ai2d),
    "own_relaxed": _own(_score_relaxed),
    "own_vqa": _own(_score_vqa),
}
