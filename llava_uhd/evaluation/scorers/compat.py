"""The two ways to score: the official metric, or the published LLaVA-UHD scripts with their quirks."""

from typing import Literal

Compat = Literal["llava-uhd"] | None


def is_published(compat: Compat) -> bool:
    """Return whether to reproduce the reference scripts.

    Raises:
        ValueError: `compat` is neither None nor "llava-uhd".
    """
    if compat not in (None, "llava-uhd"):
        raise ValueError(f'compat is {compat!r}; it is either None (the official metric) or "llava-uhd"')
    return compat is not None


def as_list(answers: str | list[str]) -> list[str]:
    """Accept one reference answer or a list of them.

    Raises:
        ValueError: there is no reference answer.
    """
    references = [answers] if isinstance(answers, str) else list(answers)
    if not references:
        raise ValueError("a prediction needs at least 1 reference answer, got 0")
    return references
