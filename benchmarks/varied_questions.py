"""Write questions about varied synthetic documents, to calibrate the confidence of a model not trained on them.

    python benchmarks/varied_questions.py --out runs/varied --count 600
    llava-uhd eval run runs/varied/questions.jsonl --metric accuracy --model tiny --out runs/sure
    llava-uhd eval run synthdoc webdocs --model tiny --out runs/sure
    llava-uhd eval calibrate runs/sure/questions runs/sure/synthdoc --check runs/sure/webdocs --model tiny

One question about each document; a sixth of all questions ask for what is not there. Needs the extra `synthetic`.
"""

import argparse
import json
import random
from pathlib import Path

from llava_uhd.synthetic.varied import make_varied

SEED = "confidence"
SHOWN_PIXELS = 7 * 224 * 224  # of a page whose smallest print is still legible
PRINT_SIZES = (8.5, 26.0)


def main() -> None:
    """Write images and questions.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder for questions.jsonl and the images.")
    parser.add_argument("--count", type=int, default=600, help="Number of documents.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, index = [], 0
    while len(lines) < arguments.count:
        document = make_varied(SEED, index, shown=SHOWN_PIXELS, print_sizes=PRINT_SIZES)
        index += 1
        if not document.questions:
            continue
        question = random.Random(f"{SEED}:{index}").choice(document.questions)
        name = f"{index:05}.png"
        document.render().save(arguments.out / name)
        row = {"id": index, "image": name, "question": question.text, "answer": question.answer}
        lines.append(json.dumps(row | {"category": document.kind}, ensure_ascii=False))
    (arguments.out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
