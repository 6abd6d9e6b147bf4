"""Measures a network in training on pages of another seed.

    python -m experiments.tiny.measure --out runs/next --phase slots           # characters named, by size of print
    python -m experiments.tiny.measure --out runs/next --phase reader-small    # tokens of answers that are right

Of a phase that trains the tower a row is for a size of print. Of one that trains the language model a row is for the
first, second, third, fourth and all later tokens of what is printed: how many are right, and how much attention each
taught head pays to the image token that they name. A second table says how near the places are that answers begin
with: the first, and those after it. The last line is about all answers, printed or not: how many are right in every
token.
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from .copying import LATER, NEARNESS, count_copied, count_places, predict_pages
from .legibility import measure_legibility
from .network import Network
from .setting import PLAN, Phase, load_plan
from .trainer import CHECKPOINT

SEED = 77


def load_network(network: Network, out: Path, phase: str) -> None:
    """Load the last checkpoint of a phase that is running, or the network after the finished ones."""
    running = get_last_checkpoint(out / phase) if (out / phase).is_dir() else None
    if running is None:
        network.load_state_dict(torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")["network"])
    else:
        network.load_state_dict(load_file(Path(running) / "model.safetensors"))


def print_legibility(network: Network, phase: Phase, pages: int) -> None:
    print("| page | print, pixels | characters | named | placed |\n|---|---|---|---|---|")
    counts = measure_legibility(network, phase, pages, SEED)
    for (is_random, least, end), (named, placed, characters) in counts.items():
        page = "random characters" if is_random else "text"
        print(f"| {page} | {least} to {end} | {characters:,} | {named / characters:.2f} | {placed / characters:.2f} |")


def print_copying(network: Network, phase: Phase, pages: int) -> None:
    read = list(predict_pages(network, phase, pages, SEED))
    copied: dict[int, list[list[float]]] = defaultdict(list)
    located: dict[int, Counter[str]] = defaultdict(Counter)
    for page in read:
        for place, rows in count_copied(page).items():
            copied[place] += rows
        for place, counts in count_places(page, network.setting.query_grid).items():
            located[place] += counts
    heads = " | ".join(f"layer {layer} head {head}" for layer, head in network.heads)
    print(f"| token | count | right | {heads} |\n|{'---|' * (3 + len(network.heads))}")
    for place, rows in sorted(copied.items()):
        name = f"{place} and later" if place == LATER else str(place)
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        print(f"| {name} | {len(rows)} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    print(f"\n| place | count | {' | '.join(NEARNESS)} |\n|{'---|' * (2 + len(NEARNESS))}")
    for place, counts in sorted(located.items()):
        shares = " | ".join(f"{counts[nearness] / counts.total():.2f}" for nearness in NEARNESS)
        print(f"| {('first', 'next')[place - 1]} | {counts.total()} | {shares} |")
    right, answers = sum(page.right_answers for page in read), sum(page.answers for page in read)
    print(f"\n{right} of {answers} answers are right in every token")


MEASURES = {"tower": print_legibility, "reader": print_copying, "frozen": print_copying, "joint": print_copying}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tiny.measure", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument(
        "--phase", required=True, help="phase whose pages are read, and whose checkpoint if it is running"
    )
    parser.add_argument("--pages", type=int, default=60)
    options = parser.parse_args(arguments)
    plan = load_plan(options.plan)
    phases = {phase.name: phase for phase in plan.phases if phase.kind in MEASURES}
    if options.phase not in phases:
        parser.error(f"--phase must be one of {list(phases)}")
    network = Network(plan.setting)
    load_network(network, options.out, options.phase)
    MEASURES[phases[options.phase].kind](network, phases[options.phase], options.pages)


if __name__ == "__main__":
    main()
