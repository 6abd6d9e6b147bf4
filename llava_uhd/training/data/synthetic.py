"""`llava-uhd data synthetic`: rendered documents as LLaVA data, for the recipes of the built-in model.

Documents give conversations, the questions about each (`questions.jsonl`, pages in `images`). Stage 1 sees overviews
alone, so its captions are of pages so small that they can be read there (`captions.jsonl`, pages in `overviews`): what
the page says from top to bottom.
"""

import json
from pathlib import Path

from ...synthetic import Document, make_document, render

CAPTION_LENGTH = 160  # characters
COMPRESSION = 3  # of PNG: to write a noisy page takes less than half as long as by default, and it is no larger


def write_documents(folder: Path, count: int, seed: int) -> None:
    """Writes `count` pages of each sort and the two files about them."""
    for sort in ("images", "overviews"):
        (folder / sort).mkdir(parents=True, exist_ok=True)
    with (folder / "captions.jsonl").open("w") as captions, (folder / "questions.jsonl").open("w") as questions:
        for index in range(count):
            name = f"{index:06}.png"
            document = make_document(seed, index)
            render(document.page).save(folder / "images" / name, compress_level=COMPRESSION)
            asked = [turn for question in document.questions for turn in (question.text, question.answer)]
            questions.write(_record(f"{seed}-{index}", name, asked))
            small = make_document(f"{seed}:overview", index, num_slices=1)
            render(small.page).save(folder / "overviews" / name, compress_level=COMPRESSION)
            captions.write(_record(f"{seed}-overview-{index}", name, ["Read the text.", _caption(small)]))


def _caption(document: Document) -> str:
    texts = sorted(document.page.texts, key=lambda text: (round(text.baseline), text.x))
    return " ".join(text.text for text in texts)[:CAPTION_LENGTH]


def _record(name: str, image: str, said: list[str]) -> str:
    said = [f"<image>{said[0]}", *said[1:]]
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]
    return json.dumps({"id": name, "image": image, "conversations": turns}, ensure_ascii=False) + "\n"
