"""Task on held-out synthetic documents, generated from a seed; exact match by kind and size.

    llava-uhd eval run synthdoc --model tiny --out results
    llava-uhd eval run synthdoc --model tiny --max-slices 1 --out results/overview

A seed of their own keeps the documents apart from all that was trained on. Each is asked one of its questions. The
second command shows the model the overview alone: the fall is what the slices are for.
"""

import random
from functools import partial
from pathlib import Path

from ..synthetic import Document, Question, held_out_documents, render
from .samples import Sample

NUM_DOCUMENTS = 1000
# Upper limits of the font size in pixels, and the names of the groups.
TEXT_SIZES = ((24, "text below 24 px"), (40, "text of 24 to 39 px"))
LARGE_TEXT = "text of 40 px and more"


def choose_question(document: Document, index: int) -> Question:
    """Return the question about the document of this index, the same in every run."""
    return random.Random(f"question:{index}").choice(document.questions)


def read_synthdoc(root: Path) -> list[Sample]:
    """Return all documents with their questions; images are rendered lazily, without a data folder."""
    samples = []
    for index, document in enumerate(held_out_documents(NUM_DOCUMENTS)):
        question = choose_question(document, index)
        size = next((name for limit, name in TEXT_SIZES if question.source.size < limit), LARGE_TEXT)
        samples.append(
            Sample(
                index,
                question.text,
                image=f"{document.kind}-{index}",
                image_source=partial(render, document.page),
                image_size=document.page.size,
                answers=(question.answer,),
                category=document.kind,
                details={"text_size": size},
            )
        )
    return samples
