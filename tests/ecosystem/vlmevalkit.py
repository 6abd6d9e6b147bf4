"""Run VLMEvalKit's own inference and scoring with this model, and compare every answer with the model's own.

    python -m tests.ecosystem.vlmevalkit

Eight questions in the form of OCRBench, and four with options about two documents each.
"""

import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from llava_uhd.evaluation.images import scaled_size
from llava_uhd.evaluation.samples import LETTER_ANSWER
from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.loading import load
from llava_uhd.synthetic import make_document, render

from .documents import data_url

MAX_TOKENS = 32
NUM_BEAMS = 3
LONG_SIDE = 1024  # pixels, to which the adapter scales images, up or down
SINGLE, PAIRS = 8, 4


def documents() -> list[tuple[Image.Image, str, str]]:
    """Return (image, question, answer) of each document."""
    rows = []
    for index in range(SINGLE):
        document = make_document("vlmevalkit", index, num_slices=1 + index % 6)
        rows.append((render(document.page), document.questions[0].text, document.questions[0].answer))
    return rows


def encode(image: Image.Image) -> str:
    """Return an image in base64, as VLMEvalKit's tables have it."""
    return data_url(image).partition(",")[2]


def write_tables(folder: Path, rows: list[tuple[Image.Image, str, str]]) -> list[list[str | Image.Image]]:
    """Write OCRBench.tsv and Pairs.tsv into VLMEvalKit's folder of data; return their questions in order."""
    ocrbench: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    questions: list[list[str | Image.Image]] = []
    for index, (image, text, expected) in enumerate(rows):
        row = {"index": index, "image": encode(image), "question": text, "answer": repr([expected])}
        ocrbench.append({**row, "category": "Doc-oriented VQA"})
        questions.append([image, text])
    for index in range(PAIRS):
        (first, _, _), (second, text, expected) = rows[index], rows[index + 1]
        images = [encode(first), encode(second)]
        pairs.append(
            {"index": index, "image": repr(images), "question": text, "A": expected, "B": "nothing", "answer": "A"}
        )
        options = f"Options:\nA. {expected}\nB. nothing"
        questions.append([first, second, f"Question: {text}\n{options}{LETTER_ANSWER}"])
    for name, table in (("OCRBench", ocrbench), ("Pairs", pairs)):
        with (folder / f"{name}.tsv").open("w") as file:
            writer = csv.DictWriter(file, table[0], delimiter="\t")
            writer.writeheader()
            writer.writerows(table)
    return questions


def own_answers(model_name: str, questions: list[list[str | Image.Image]]) -> list[str]:
    """Answer the questions with the model alone, one at a time."""
    model, processor = load(model_name, "cpu", "float32")
    answers = []
    for question in questions:
        images = [
            part.resize(scaled_size(*part.size, LONG_SIDE), Image.Resampling.BICUBIC)
            for part in question
            if isinstance(part, Image.Image)
        ]
        (text,) = [part for part in question if isinstance(part, str)]
        inputs = prepare(model, processor, [question_message(images, text)], MAX_TOKENS)
        answers.append(answer(model, processor, inputs, MAX_TOKENS, do_sample=False, num_beams=NUM_BEAMS).strip())
    return answers


def predictions(out: Path, name: str, dataset: str) -> list[str]:
    """Return the answers that VLMEvalKit wrote, in order."""
    from vlmeval.smp import load as load_table

    (file,) = [path for path in out.glob(f"{name}_{dataset}.*") if path.suffix in (".xlsx", ".tsv", ".json", ".pkl")]
    table = load_table(str(file)).sort_values("index")
    return [str(prediction).strip() for prediction in table["prediction"]]


def main() -> None:
    """Compare; print one line."""
    model_name = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    rows = documents()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["LMUData"] = str(folder)  # before VLMEvalKit is imported
        questions = write_tables(folder, rows)
        expected = own_answers(model_name, questions)

        from vlmeval.dataset.image_vqa import OCRBench

        from llava_uhd.evaluation.adapters import vlmevalkit

        OCRBench.DATASET_MD5 = {}  # the table of this test is not the published one
        options = replace(vlmevalkit.OPTIONS, max_new_tokens=MAX_TOKENS)
        generator = vlmevalkit.load_generator(model_name, "cpu", "float32", options)
        found, scores = [], {}
        for dataset in ("OCRBench", "Pairs"):
            score = vlmevalkit.evaluate(generator, dataset, folder / "out", "model")
            scores[dataset] = score if isinstance(score, dict) else json.loads(score.to_json())
            found += predictions(folder / "out", "model", dataset)
    if found != expected:
        sys.exit(f"VLMEvalKit has {found}, the model itself answers {expected}")
    right = sum(answer.lower() in text.lower() for (_, _, answer), text in zip(rows, found, strict=False))
    final = scores["OCRBench"]["Final Score"]
    if final != right:
        sys.exit(f"VLMEvalKit counts {final} right answers of {SINGLE}, and {right} hold the expected text")
    print(
        f"{len(found)} of {len(expected)} answers are the model's own, {PAIRS} about two images; "
        f"OCRBench scores {final} of {SINGLE}"
    )


if __name__ == "__main__":
    main()
