"""Measure what starting the command line costs, beside importing PyTorch and one model class of transformers.

    python benchmarks/startup.py --runs 5

Every command runs in a process of its own, all of them in turn, `--runs` times; medians of CPU seconds (user and
system) count, wall seconds stand beside them. The reference is `import torch; from transformers import
LlamaForCausalLM`. With --check the exit code is 1 where a bound is exceeded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

REFERENCE = "import torch; from transformers import LlamaForCausalLM"
RECEIPT = Path(__file__).parent.parent / "examples" / "receipt.png"
TOOL = [sys.executable, "-m", "llava_uhd"]
COMMANDS: dict[str, list[str]] = {
    "reference": [sys.executable, "-c", REFERENCE],
    "ask": [*TOOL, "ask", str(RECEIPT), "What is the total?"],
    "explain": [*TOOL, "explain", str(RECEIPT)],
    "help": [*TOOL, "--help"],
    "version": [*TOOL, "--version"],
    "import llava_uhd": [sys.executable, "-c", "import llava_uhd"],
}
SECONDS = {"explain": 2.0, "help": 1.0, "version": 1.0, "import llava_uhd": 1.0}  # of CPU, at most
ASK_RATIO = 1.15  # times the reference, at most


def cpu_and_wall_seconds(command: list[str]) -> tuple[float, float]:
    """Run a command: its CPU seconds, those of its children included, and its wall seconds."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.perf_counter() - started


def measure(names: list[str], runs: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of each command, all of them in turn; a first round warms the file cache."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for run in range(runs + 1):
        for name in names:
            taken = cpu_and_wall_seconds(COMMANDS[name])
            if run > 0:
                seconds[name].append(taken)
    return {name: tuple(map(statistics.median, zip(*taken, strict=True))) for name, taken in seconds.items()}  # type: ignore[misc]


def exceeded(medians: dict[str, tuple[float, float]]) -> list[str]:
    """The bounds that the medians exceed, in words."""
    found = [
        f"{name} takes {medians[name][0]:.2f} CPU seconds, more than {bound}"
        for name, bound in SECONDS.items()
        if name in medians and medians[name][0] > bound
    ]
    if "ask" in medians and "reference" in medians:
        ratio = medians["ask"][0] / medians["reference"][0]
        if ratio > ASK_RATIO:
            found.append(f"ask takes {ratio:.2f} times the reference, more than {ASK_RATIO}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bound is exceeded")
    options = parser.parse_args()
    medians = measure(options.commands, options.runs)
    reference = medians.get("reference", (float("nan"),))[0]
    if options.json:
        print(json.dumps({name: {"cpu_seconds": cpu, "wall_seconds": wall} for name, (cpu, wall) in medians.items()}))
    else:
        for name, (cpu, wall) in medians.items():
            print(f"{name:18} {cpu:6.2f} s CPU {wall:6.2f} s wall {cpu / reference:6.2f} x reference")
    problems = exceeded(medians)
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.check and problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
