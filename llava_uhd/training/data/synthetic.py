"""`llava-uhd data synthetic`: rendered documents as LLaVA data, for the recipes of the built-in model.

A document gives a caption, what its page says from top to bottom (`captions.jsonl`), and a conversation of questions
about it (`questions.jsonl`).
"""

import json
from pathlib import Path
from typing import Any

from ...synthetic import Document, make_document, render

CAPTION_LENGTH = 160  # characters


def write_documents(folder: Path, count: int, seed: int) -> None:
    """Writes `count` pages and the two files about them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "captions.jsonl").open("w") as captions, (folder / "questions.jsonl").open("w") as questions:
        for index in range(count):
            document = make_document(seed, index)
            name = f"{index:06}.png"
            render(document.page).save(folder / "images" / name)
            asked = [turn for question in document.questions for turn in (question.text, question.answer)]
            for file, said in ((captions, ["Read the text.", _caption(document)]), (questions, asked)):
                file.write(json.dumps(_record(f"{seed}-{index}", name, said), ensure_ascii=False) + "\n")


def _caption(document: Document) -> str:
    texts = sorted(document.page.texts, key=lambda text: (round(text.baseline), text.x))
    return " ".join(text.text for text in texts)[:CAPTION_LENGTH]


def _record(name: str, image: str, said: list[str]) -> dict[str, Any]:
    said = [f"<image>{said[0]}", *said[1:]]
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]
    return {"id": name, "image": image, "conversations": turns}
