"""Time of `llava-uhd ask` to the first byte of its answer, beside that of its imports alone.

    python benchmarks/first_token.py --runs 7

Each run is a process of its own; the two take turns, so that a busy machine slows both. The floor is a process that
imports torch and transformers' Llama and ends.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

IMPORTS = "import torch; from transformers import LlamaForCausalLM; print('ready')"


def seconds_to_first_byte(command: list[str]) -> float:
    """Return the seconds from the start of a process to the first byte that it prints."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        waited = time.perf_counter() - start
        process.stdout.read()
    if not first:
        raise RuntimeError(f"{' '.join(command)} printed nothing")
    return waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="examples/receipt.png")
    parser.add_argument("--question", default="What is the total?")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    tool = shutil.which("llava-uhd", path=str(Path(sys.executable).parent))
    if tool is None:
        raise ValueError(f"llava-uhd is not installed beside {sys.executable}")
    ask = [tool, "ask", options.image, options.question, "--model", options.model]
    floors, asks = [], []
    for _ in range(options.runs):
        floors.append(seconds_to_first_byte([sys.executable, "-c", IMPORTS]))
        asks.append(seconds_to_first_byte(ask))
    floor, asked = statistics.median(floors), statistics.median(asks)
    row = {"imports_s": round(floor, 3), "ask_s": round(asked, 3), "ratio": round(asked / floor, 3)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
