"""Run lmms-eval itself with this model on one rank and on two, and compare every answer with the model's own.

    python -m tests.ecosystem.lmms_eval

Eight questions about one document each, four about two documents, whose places in the text are marked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare
from llava_uhd.loading import load
from llava_uhd.synthetic import make_document, render

MAX_TOKENS = 16
TASK = f"""task: documents
dataset_path: json
dataset_kwargs:
  data_files:
    test: FOLDER/questions.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answers
generation_kwargs:
  max_new_tokens: {MAX_TOKENS}
  temperature: 0
  do_sample: false
metric_list:
  - metric: anls
    aggregation: mean
    higher_is_better: true
"""
UTILS = """from PIL import Image


def visual(doc):
    return [Image.open(path) for path in doc["images"]]


def text(doc, **kwargs):
    return doc["question"]
"""


def write_task(folder: Path) -> list[dict]:
    """Write a task of lmms-eval into a folder; return its questions."""
    documents = [make_document("ecosystem", index) for index in range(8)]
    paths = []
    for index, document in enumerate(documents):
        paths.append(str(folder / f"{index}.png"))
        render(document.page).save(paths[-1])
    rows = [
        {"images": [path], "question": document.questions[0].text, "answers": [document.questions[0].answer]}
        for path, document in zip(paths, documents, strict=True)
    ]
    rows += [
        {
            "images": paths[index : index + 2],
            "question": f"Here is <image> and <image>. {rows[index]['question']}",
            "answers": rows[index]["answers"],
        }
        for index in range(4)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "documents.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    (folder / "utils.py").write_text(UTILS)
    return rows


def own_answers(model_name: str, rows: list[dict]) -> list[str]:
    """Answers of the model by itself, one question at a time."""
    model, processor = load(model_name, "cpu")
    answers = []
    for row in rows:
        texts = row["question"].split("<image>") if "<image>" in row["question"] else ["", row["question"]]
        content = [{"type": "text", "text": texts[0]}] if texts[0] else []
        for path, text in zip(row["images"], texts[1:], strict=True):
            content += [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": text}]
        inputs = prepare(model, processor, [{"role": "user", "content": content}], MAX_TOKENS)
        answers.append(answer(model, processor, inputs, MAX_TOKENS, do_sample=False))
    return answers


def run(folder: Path, model_name: str, ranks: int) -> list[str]:
    """Answers that lmms-eval writes into its log of samples."""
    out = folder / f"out{ranks}"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(ranks)] if ranks > 1 else []
    options = ["--model", "llava_uhd", "--model_args", f"pretrained={model_name},device=cpu", "--tasks", "documents"]
    options += ["--include_path", str(folder), "--batch_size", "4", "--log_samples", "--output_path", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, *launch, "-m", "lmms_eval", *options]
    subprocess.run(command, check=True, env=os.environ | offline, stdout=sys.stderr, cwd=folder)
    (samples,) = out.rglob("*samples_documents.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    by_document = {row["doc_id"]: row["filtered_resps"] for row in rows}
    return [by_document[index] for index in range(len(by_document))]


def main() -> None:
    model_name = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = write_task(folder)
        expected = own_answers(model_name, rows)
        for ranks in (1, 2):
            found = run(folder, model_name, ranks)
            if found != expected:
                sys.exit(f"{ranks} ranks: lmms-eval has {found}, the model itself answers {expected}")
    several = sum(len(row["images"]) > 1 for row in rows)
    print(f"{len(rows)} of {len(rows)} answers are the model's own on 1 and on 2 ranks, {several} about two images")


if __name__ == "__main__":
    main()
