"""Documents of many kinds, fonts, sizes and conditions, for training a model that reads pages of other programs.

Data flow: content (names, goods, dates) -> layout (texts and boxes at exact places) -> facts ->
questions; the page is rendered and degraded only when its pixels are requested. Needs the extra `synthetic`.
"""

from .documents import KINDS, PICTURE, SCRIBBLE, Glyphs, VariedDocument, make_varied
from .questions import NOT_A_DOCUMENT, NOT_THERE, Asked

__all__ = [
    "KINDS",
    "NOT_A_DOCUMENT",
    "NOT_THERE",
    "PICTURE",
    "SCRIBBLE",
    "Asked",
    "Glyphs",
    "VariedDocument",
    "make_varied",
]
