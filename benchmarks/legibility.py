"""Accuracy of the built-in model by the height at which it sees print; calibrates `inspection.legibility`.

    python benchmarks/legibility.py --count 300

Held-out synthetic documents are reduced by a random factor and placed on a blank page of their size: layout and words
are those of the training, and the print alone is smaller.
"""

import argparse
import math
import random

from PIL import Image

from llava_uhd.evaluation.synthdoc import choose_question
from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.inspection.legibility import seen_size
from llava_uhd.loading import load
from llava_uhd.planning import ImagePlanner
from llava_uhd.synthetic import held_out_documents, render

SCALES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4)
LIMITS = (6, 8, 9, 10, 11, 12, 14, 17, 22, 1000)  # pixels
MAX_NEW_TOKENS = 32


def reduce_on_page(image: Image.Image, scale: float) -> Image.Image:
    """Return the image reduced by a factor in the middle of a page of its first color and its size."""
    width, height = image.size
    small = image.resize((max(round(width * scale), 1), max(round(height * scale), 1)))
    page = Image.new("RGB", image.size, image.getpixel((0, 0)))
    page.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return page


def main() -> None:
    """Print a row per range of print heights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="Number of documents.")
    count = parser.parse_args().count
    model, processor = load("tiny", "cpu")
    planner = ImagePlanner.from_processor(processor)
    outcomes: list[tuple[float, bool]] = []
    for index, document in enumerate(held_out_documents(count)):
        question, scale = choose_question(document, index), random.Random(index).choice(SCALES)
        image = render(document.page).convert("RGB")
        (width, height), (seen_width, seen_height) = image.size, seen_size(planner, *image.size)
        print_height = question.source.size * scale * math.sqrt(seen_width * seen_height / (width * height))
        message = question_message([reduce_on_page(image, scale)], question.text)
        text = answer(model, processor, prepare(model, processor, [message], MAX_NEW_TOKENS), MAX_NEW_TOKENS)
        outcomes.append((print_height, text == question.answer))
    print("| print as seen | questions | right |\n|---|---|---|")
    for low, high in zip((0, *LIMITS), LIMITS, strict=False):
        right = [is_right for print_height, is_right in outcomes if low <= print_height < high]
        if right:
            name = f"{low} px and more" if high == LIMITS[-1] else f"{low} to {high} px"
            print(f"| {name} | {len(right)} | {100 * sum(right) / len(right):.0f} % |")


if __name__ == "__main__":
    main()
