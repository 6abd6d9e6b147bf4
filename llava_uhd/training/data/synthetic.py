"""`llava-uhd data synthetic`: rendered documents as LLaVA data, for the recipes of the built-in model.

Documents give conversations, the questions about each (`questions.jsonl`, pages in `images`). Stage 1 sees overviews
alone, so its captions are of pages so small that they can be read there (`captions.jsonl`, pages in `overviews`): what
the page says from top to bottom.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from ...synthetic import Document, Question, make_document, render
from ...synthetic.charts import COMPARISONS

CAPTION_LENGTH = 160  # characters
COMPRESSION = 3  # of PNG: to write a noisy page takes less than half as long as by default, and it is no larger


def write_documents(folder: Path, count: int, seed: int, *, kinds: Sequence[str] | None = None) -> None:
    """Write `count` pages of each split and their two annotation files.

    Args:
        folder: folder to write.
        count: number of pages of each split.
        seed: seed of the documents.
        kinds: document kinds, used in turn; None draws a kind for each document.
    """
    for sort in ("images", "overviews"):
        (folder / sort).mkdir(parents=True, exist_ok=True)
    with (folder / "captions.jsonl").open("w") as captions, (folder / "questions.jsonl").open("w") as questions:
        for index in range(count):
            name = f"{index:06}.png"
            document = make_document(seed, index, kind=kinds[index % len(kinds)] if kinds else None)
            render(document.page).save(folder / "images" / name, compress_level=COMPRESSION)
            turns = _in_turn(document, random.Random(f"questions:{seed}:{index}"))
            asked = [said for question in turns for said in (question.text, question.answer)]
            questions.write(_record(f"{seed}-{index}", name, asked))
            small = make_document(f"{seed}:overview", index, num_slices=1)
            render(small.page).save(folder / "overviews" / name, compress_level=COMPRESSION)
            captions.write(_record(f"{seed}-overview-{index}", name, ["Read the text.", _caption(small)]))


def _in_turn(document: Document, rng: random.Random) -> list[Question]:
    """A document's questions in an order that leaves the page as the only place to find an answer.

    In the page's own order the next cell of a table differs from the one just asked for, and the highest of bars
    from the values named before it: a model learns that, and fails where the question comes alone.
    """
    questions = [*document.questions, *document.hints]
    rng.shuffle(questions)
    # Not always: the others, too, must be answered without any before them.
    if rng.random() < 0.75:
        questions.sort(key=lambda question: question.text not in COMPARISONS)
    return questions


def _caption(document: Document) -> str:
    texts = sorted(document.page.texts, key=lambda text: (round(text.baseline), text.x))
    return " ".join(text.text for text in texts)[:CAPTION_LENGTH]


def _record(name: str, image: str, said: list[str]) -> str:
    said = [f"<image>{said[0]}", *said[1:]]
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]
    return json.dumps({"id": name, "image": image, "conversations": turns}, ensure_ascii=False) + "\n"
