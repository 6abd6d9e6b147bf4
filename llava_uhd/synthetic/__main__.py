"""Draws one document and prints its questions and answers.

python -m llava_uhd.synthetic --kind receipt --index 0 --scale 3.5 --out examples/receipt.png
"""

import argparse
import json
from pathlib import Path

from .documents import HELD_OUT_SEED, KINDS, SCALES, make_document
from .render import render


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llava_uhd.synthetic", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="image file to write")
    parser.add_argument(
        "--seed", type=int, default=HELD_OUT_SEED, help="seed of the documents; default: that of the held-out set"
    )
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--slices", type=int, choices=range(1, 7), help="about how many slices of 112 pixels show it")
    parser.add_argument("--scale", type=float, help=f"how large it is drawn; {SCALES[0]} to {SCALES[1]} if not given")
    options = parser.parse_args(arguments)
    scales = SCALES if options.scale is None else (options.scale, options.scale)
    document = make_document(options.seed, options.index, kind=options.kind, num_slices=options.slices, scales=scales)
    render(document.page).save(options.out)
    for question in document.questions:
        print(json.dumps({"question": question.text, "answer": question.answer}))


if __name__ == "__main__":
    main()
