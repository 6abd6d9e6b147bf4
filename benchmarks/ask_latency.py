"""Seconds from an image file to an answer: the projector folded, layer by layer, and by the reference formulation.

    python benchmarks/ask_latency.py --model tiny --image examples/receipt.png --question "What is the total?"

All three in one process, alternating; the median of the runs counts. Layer by layer is what the package does where it
cannot read the weights; only the projector differs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from llava_uhd.benchmark.compare import published_forward
from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.loading import load
from llava_uhd.model import hiwin
from llava_uhd.model.hiwin import HiWinProjector


def ways(projector: HiWinProjector) -> dict[str, Callable[[], None]]:
    """Functions that make the projector compute in each way."""
    choice = hiwin.reason_not_to_fuse

    def restore() -> None:
        projector.__dict__.pop("forward", None)
        hiwin.reason_not_to_fuse = choice

    def formula() -> None:
        restore()
        hiwin.reason_not_to_fuse = lambda projector: "the formula is measured"

    def published() -> None:
        restore()
        projector.__dict__["forward"] = published_forward(projector)

    return {"folded": restore, "formula": formula, "published": published}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--image", default="examples/receipt.png")
    parser.add_argument("--question", default="What is the total?")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    model, processor = load(options.model, "cpu")
    projector = model.model.multi_modal_projector
    assert isinstance(projector, HiWinProjector), "the model's projector is not HiWin"

    def ask() -> str:
        messages = [question_message([options.image], options.question)]
        inputs = prepare(model, processor, messages, options.max_new_tokens)
        return answer(model, processor, inputs, options.max_new_tokens, None)

    times: dict[str, list[float]] = {name: [] for name in ways(projector)}
    answers: dict[str, str] = {}
    with torch.inference_mode():
        for run in range(options.runs + 1):
            for name, select in ways(projector).items():
                select()
                start = time.perf_counter()
                answers[name] = ask()
                if run > 0:
                    times[name].append(time.perf_counter() - start)
                elif name == "folded":
                    # The first call also folds; what it takes beyond the median is what folding cost.
                    print(f"first answer, folding included: {time.perf_counter() - start:.3f} s")
    for name, of_way in times.items():
        print(f"{name}: {statistics.median(of_way):.3f} s, answer {answers[name]!r}")


if __name__ == "__main__":
    main()
