"""Run VLMEvalKit itself with this model on data sets made here, and compare every answer with the model's own.

    python -m tests.ecosystem.vlmevalkit

OCRBench with one image a question, and multiple choice with one image and with two.
"""

import base64
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from llava_uhd.answering import answer, prepare
from llava_uhd.evaluation.images import load_image
from llava_uhd.evaluation.samples import LETTER_ANSWER, Sample
from llava_uhd.loading import load
from llava_uhd.synthetic import make_document, render

MAX_TOKENS = 1024
BEAMS = 3
MAX_SIDE = 1024
RUN = """
import json, sys
from pathlib import Path
from llava_uhd.evaluation.adapters import vlmevalkit as adapter
generator = adapter.load_generator({model!r}, "cpu", "auto", adapter.OPTIONS)
scores = {{}}
for name, options in {sets!r}.items():
    found = adapter.evaluate(generator, name, Path({out!r}), "model", **options)
    scores[name] = found if isinstance(found, dict) else found.to_dict()
Path({out!r}, "scores.json").write_text(json.dumps(scores, default=str))
"""


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def write_sets(folder: Path) -> dict[str, list[tuple[list[Path], str]]]:
    """Write two data sets in VLMEvalKit's form; return images and prompts of their questions."""
    documents = [make_document("ecosystem", index) for index in range(8)]
    paths = []
    for index, document in enumerate(documents):
        paths.append(folder / f"{index}.png")
        render(document.page).save(paths[-1])
    questions = [document.questions[0] for document in documents]
    open_rows = [
        {
            "index": index,
            "image": encoded(path),
            "question": question.text,
            "answer": json.dumps([question.answer]),
            "category": "Doc-oriented VQA",
        }
        for index, (path, question) in enumerate(zip(paths, questions, strict=True))
    ]
    choices = [
        {
            "index": index,
            "image": encoded(paths[index]),
            "question": questions[index].text,
            "A": questions[index].answer,
            "B": "None of these",
            "answer": "A",
        }
        for index in range(4)
    ]
    for name, rows in (("MiniOCRBench", open_rows), ("MiniChoice", choices)):
        with (folder / f"{name}.tsv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
    return {
        "MiniOCRBench": [([path], question.text) for path, question in zip(paths, questions, strict=True)],
        "MiniChoice": [
            (
                [paths[index]],
                f"Question: {row['question']}\nOptions:\nA. {row['A']}\nB. {row['B']}" + LETTER_ANSWER,
            )
            for index, row in enumerate(choices)
        ],
    }


def own_answers(model_name: str, sets: dict[str, list[tuple[list[Path], str]]]) -> dict[str, list[str]]:
    """Answers of the model by itself, one question at a time."""
    model, processor = load(model_name, "cpu")
    answers = {}
    for name, questions in sets.items():
        answers[name] = []
        for paths, prompt in questions:
            images = [load_image(Sample(0, "", image_source=path), MAX_SIDE) for path in paths]
            content = [{"type": "image", "image": image} for image in images]
            message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
            inputs = prepare(model, processor, [message], 1)
            room = model.config.text_config.max_position_embeddings - inputs["input_ids"].shape[1]
            text = answer(model, processor, inputs, min(MAX_TOKENS, room), do_sample=False, num_beams=BEAMS)
            answers[name].append(text)
    return answers


def main() -> None:
    model_name = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = write_sets(folder)
        expected = own_answers(model_name, sets)
        out = folder / "out"
        code = RUN.format(model=model_name, out=str(out), sets={name: {} for name in sets})
        environment = os.environ | {"LMUData": str(folder), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=sys.stderr)
        import pandas

        for name, answers in expected.items():
            (file,) = [path for path in out.glob(f"model_{name}.*") if path.suffix in (".xlsx", ".tsv", ".json")]
            table = {".xlsx": pandas.read_excel, ".json": pandas.read_json}.get(file.suffix, pandas.read_table)(file)
            found = [str(text) for text in table.sort_values("index")["prediction"]]
            if found != answers:
                sys.exit(f"{name}: VLMEvalKit has {found}, the model itself answers {answers}")
        total = sum(map(len, expected.values()))
        print(f"{total} of {total} answers in {len(expected)} data sets are the model's own")


if __name__ == "__main__":
    main()
