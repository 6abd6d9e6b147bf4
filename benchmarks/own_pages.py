"""Ask a model about six pages of this package, and show whether it is wrong without saying so.

    python benchmarks/own_pages.py --model small

The pages: the receipt of the README, a receipt of 30 goods and more, an A4 invoice at 300 dpi, a spreadsheet, a bar
chart, and a photograph. An answer is right, declined, marked as a guess, or wrong; the exit code is 1 if one is wrong
without a mark. Seconds are those from the image to the answer, after loading. Needs the extra `synthetic`.
"""

import argparse
import sys
import time
from pathlib import Path

import matplotlib
from PIL import Image

from llava_uhd.generation.generator import Generator
from llava_uhd.generation.prompt import build_prompt, question_message
from llava_uhd.generation.sampling import MAX_NEW_TOKENS, Sampling
from llava_uhd.loading import load, load_calibration
from llava_uhd.synthetic.varied import NOT_A_DOCUMENT, NOT_THERE, VariedDocument, make_varied
from llava_uhd.synthetic.varied.facts import Entries

SEED = "own pages"
A4_WIDTH = 2481  # pixels at 300 dpi
QUESTIONS = 6
DECLINED = (NOT_THERE, NOT_A_DOCUMENT)

Page = tuple[str, Image.Image, list[tuple[str, str]]]


def draw(kind: str, goods: int = 0) -> tuple[Image.Image, list[tuple[str, str]]]:
    """The first page of a kind with at least so many goods, and questions about it."""
    index = 0
    while _num_goods(document := make_varied(SEED, index, kind=kind, fonts=())) < goods:
        index += 1
    return document.render(), [(asked.text, asked.answer) for asked in document.questions[:QUESTIONS]]


def _num_goods(document: VariedDocument) -> int:
    facts = document.sheet.facts if document.sheet is not None else []
    return max((len(fact.names) for fact in facts if isinstance(fact, Entries)), default=0)


def make_pages() -> list[Page]:
    """Names, images and questions of the six pages."""
    receipt = Image.open(Path(__file__).parents[1] / "examples" / "receipt.png").convert("RGB")
    invoice, invoice_questions = draw("invoice")
    scanned = invoice.resize((A4_WIDTH, round(A4_WIDTH * invoice.height / invoice.width)), Image.Resampling.BICUBIC)
    photograph = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    about_it = [(text, NOT_A_DOCUMENT) for text in ("What is the total?", "What is the date?", "Who signed it?")]
    return [
        ("receipt", receipt, [("What is the total?", "$42.69"), ("What is the price of bread?", NOT_THERE)]),
        ("long receipt", *draw("receipt", 30)),
        ("A4 invoice", scanned, invoice_questions),
        ("spreadsheet", *draw("spreadsheet")),
        ("chart", *draw("bars")),
        ("photograph", photograph, about_it),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="small")
    options = parser.parse_args()
    model, processor = load(options.model, "cpu")
    calibration, generator = load_calibration(options.model), Generator(model, processor)
    unmarked = 0
    for name, image, questions in make_pages():
        for question, expected in questions:
            start = time.perf_counter()
            prompt = build_prompt(processor, [question_message([image], question)], None)
            answer = [
                event for event in generator.generate(prompt, Sampling(MAX_NEW_TOKENS)) if not isinstance(event, str)
            ][-1]
            seconds = time.perf_counter() - start
            confidence = answer.confidence(calibration)
            if answer.text.lower() == expected.lower():
                verdict = "right"
            elif answer.text in DECLINED:
                verdict = "declined"
            else:
                verdict = "a guess" if confidence.is_guess else "wrong"
            unmarked += verdict == "wrong"
            shown = "not calibrated" if confidence.confidence is None else f"{confidence.confidence:.2f}"
            print(f"{name}: {question} {answer.text} ({expected}): {verdict}, confidence {shown}, {seconds:.2f} s")
    sys.exit(int(unmarked > 0))


if __name__ == "__main__":
    main()
