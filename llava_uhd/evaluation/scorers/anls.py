"""Average normalized Levenshtein similarity (ANLS), the metric of DocVQA.

Both modes keep a similarity of exactly 0.5 and drop what is below it. They differ in what is compared and in what
the distance is divided by; see `anls`.
"""

from functools import lru_cache

from .compat import Compat, as_list, is_published

try:
    from rapidfuzz.distance import Levenshtein
except ImportError as error:
    raise ImportError("scoring needs the edit distances of rapidfuzz: pip install 'llava-uhd[eval]'") from error

_THRESHOLD = 0.5


@lru_cache(maxsize=1 << 16)
def _collapse(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(text: str, reference: str, length: int) -> float:
    """Return 1 - distance / length; two empty texts are equal."""
    if length == 0:
        return 1.0
    similarity = 1 - Levenshtein.distance(text, reference) / length
    return similarity if similarity >= _THRESHOLD else 0.0


def anls(prediction: str, answers: str | list[str], compat: Compat = None) -> float:
    """Score one prediction by its most similar reference.

    Official (DocVQA challenge): lower case, runs of white space count as one space, the distance is divided by the
    longer of the two raw texts in upper case. Reference scripts (m4c_evaluator.py): lower case, stripped, white
    space inside counts, divided by the longer of the two compared texts.

    Args:
        prediction: answer to score.
        answers: all references; the reference scripts were only ever given one.
        compat: None for the official metric, else that of the reference scripts.

    Returns:
        A similarity of at least 0.5, or 0. An empty prediction to an empty reference scores 1 (the published
        script divides by zero there).
    """
    references = as_list(answers)
    if is_published(compat):
        text = prediction.lower().strip()
        stripped = [reference.lower().strip() for reference in references]
        return max(_similarity(text, reference, max(len(text), len(reference))) for reference in stripped)
    text, length = _collapse(prediction), len(prediction.upper())
    return max(
        _similarity(text, _collapse(reference), max(length, len(reference.upper()))) for reference in references
    )
