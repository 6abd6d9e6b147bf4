"""The same predictions scored officially and as the reference scripts score, side by side.

    python benchmarks/scoring_modes.py

The predictions are the test cases under `tests/goldens/evaluation/`: answers chosen to lie where scorers differ (case,
spaces, punctuation, units, several references, sentences around a letter). So the differences here are larger than on
a model's answers; what a model's own are, every result file of `llava-uhd eval run` says.
"""

import json
from collections.abc import Callable
from pathlib import Path

from llava_uhd.evaluation.scorers import Compat, ai2d_match, anls, pope_scores, relaxed_accuracy
from llava_uhd.evaluation.scorers.refcoco import refcoco_scores

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens" / "evaluation"
PUBLISHED: Compat = "llava-uhd"


def cases(name: str) -> list[dict]:
    return json.loads((GOLDENS / f"{name}.json").read_text())["cases"]


def mean(name: str, score: Callable[[dict], float]) -> float:
    scores = [score(case) for case in cases(name)]
    return 100 * sum(scores) / len(scores)


def answers_of(case: dict) -> list[str]:
    answers = case["answers"] if "answers" in case else case["answer"]
    return [answers] if isinstance(answers, str) else answers


def mean_f1(compat: Compat) -> float:
    whole = [case for case in cases("pope_aggregate") if len(case["answers"]) == len(case["labels"])]
    return 100 * sum(pope_scores(case["answers"], case["labels"], compat).f1 for case in whole) / len(whole)


def rec_accuracy(compat: Compat) -> float:
    return (
        100
        * refcoco_scores(
            [(case["text"], case["label"]) for case in cases("refcoco_rec") if "text" in case], compat
        ).accuracy
    )


ROWS = [
    (
        "DocVQA",
        "ANLS over all references / over the first one, spaces kept",
        mean("anls_official", lambda case: anls(case["prediction"], case["answers"])),
        mean("anls_official", lambda case: anls(case["prediction"], case["answers"][0], PUBLISHED)),
    ),
    (
        "ChartQA",
        "relaxed accuracy / single-reference ANLS",
        mean("chartqa_relaxed_official", lambda case: relaxed_accuracy(case["prediction"], answers_of(case))),
        mean(
            "chartqa_relaxed_official",
            lambda case: anls(case["prediction"], answers_of(case)[0], PUBLISHED) if answers_of(case)[0] else 0.0,
        ),
    ),
    (
        "AI2D",
        'a leading letter counts / the whole answer must be the letter ("D." is wrong)',
        mean("ai2d_exact_match", lambda case: ai2d_match(case["prediction"], answers_of(case))),
        mean("ai2d_exact_match", lambda case: ai2d_match(case["prediction"], answers_of(case), PUBLISHED)),
    ),
    ("POPE", "mean F1; where undefined, 0 / a crash of the script", mean_f1(None), mean_f1(PUBLISHED)),
    (
        "RefCOCO",
        "answers without a box are wrong / are left out of the mean",
        rec_accuracy(None),
        rec_accuracy(PUBLISHED),
    ),
]


def main() -> None:
    print("| benchmark | official / as published | official | published | difference |")
    print("|---|---|---|---|---|")
    for name, what, official, published in ROWS:
        print(f"| {name} | {what} | {official:.2f} | {published:.2f} | {published - official:+.2f} |")


if __name__ == "__main__":
    main()
