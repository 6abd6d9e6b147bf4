"""Accuracies over normalized answers: TextVQA's soft accuracy, exact match, and the question within a prompt."""

import re
import warnings

from .compat import Compat, as_list, is_published
from .evalai import evalai_normalize

_NUM_ANNOTATORS = 10
_OCR_PROMPT = re.compile(r"OCR tokens: .*? Question: (.*?) Short answer:", re.DOTALL)
_OCR_LINE = "Reference OCR token: "


def vqa_soft_accuracy(prediction: str, answers: list[str], compat: Compat = None) -> float:
    """Agree with human annotators, of whom some may disagree (VQA challenge; TextVQA).

    Leaves out one annotator after the other; each time min(1, matches among the rest / 3), averaged. With m matches
    among 10 annotators that is 0, 0.3, 0.6, 0.9 for m = 0 to 3, and 1 from 4 on.

    Args:
        prediction: answer to score.
        answers: the annotators' answers, normally 10.
        compat: None for the official metric, else that of the reference scripts.

    Raises:
        ValueError: there is no answer; or, in the published mode, their number is not 10.
    """
    num_annotators = len(as_list(answers))
    if num_annotators != _NUM_ANNOTATORS:
        message = f"soft accuracy is defined over {_NUM_ANNOTATORS} answers, got {num_annotators}"
        if is_published(compat):
            raise ValueError(message)
        warnings.warn(f"{message}; leaving one out over {num_annotators}", stacklevel=2)
    text = evalai_normalize(prediction)
    matches = sum(evalai_normalize(answer) == text for answer in answers)
    if matches == 0:
        return 0.0
    left_out_match = min(1.0, (matches - 1) / 3)
    left_out_other = min(1.0, matches / 3)
    return (matches * left_out_match + (num_annotators - matches) * left_out_other) / num_annotators


def vqa_exact_accuracy(prediction: str, answers: str | list[str]) -> float:
    """Score 1.0 if the normalized prediction equals any normalized answer (the uncalled eval_chartqa.py; ST-VQA)."""
    text = evalai_normalize(prediction)
    return float(any(evalai_normalize(answer) == text for answer in as_list(answers)))


def textvqa_question(prompt: str) -> str:
    """Cut the question out of a TextVQA prompt, in lower case; with the image id it is the match key of annotations.

    Three layouts are known: "OCR tokens: ... Question: ... Short answer:", a question with an OCR line and an
    instruction (three lines), and a question with an instruction (two lines).

    Raises:
        ValueError: the prompt has none of these layouts.
    """
    if prompt.startswith("OCR tokens: "):
        match = _OCR_PROMPT.search(prompt)
        if match is None:
            raise ValueError(f"no question between 'Question:' and 'Short answer:' in the prompt {prompt!r}")
        return match.group(1).lower()
    lines = prompt.split("\n")
    if _OCR_LINE in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(_OCR_LINE) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"a TextVQA prompt has 2 lines, or 3 with OCR tokens; this one has {len(lines)}: {prompt!r}")
