"""Rendered documents with exact answers, for the demo, the tests and small training runs."""

from .canvas import Question
from .documents import HELD_OUT_SEED, KINDS, Document, held_out_documents, make_document, make_scribble
from .page import Box, Page, Text
from .render import render

__all__ = [
    "HELD_OUT_SEED",
    "KINDS",
    "Box",
    "Document",
    "Page",
    "Question",
    "Text",
    "held_out_documents",
    "make_document",
    "make_scribble",
    "render",
]
