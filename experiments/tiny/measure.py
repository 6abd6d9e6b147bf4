"""Measures how far a language model in training copies what it should, by the token of an answer.

    python -m experiments.tiny.measure --out runs/next --phase reader-small

The tokens of an answer, characters and places, are given up to the one that is asked, on pages of another seed, given
as codes. A row is for the first, second, third, fourth and all later tokens of what is printed: how many are right,
and how much attention each taught head pays to the image token that they name. The last line is about all answers,
printed or not: how many are right in every token.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from ..tiny_v1.losses import answer_loss
from .losses import codes_of
from .network import Network
from .samples import IGNORED, collate, make_sample
from .setting import PLAN, Phase, load_plan
from .trainer import CHECKPOINT

SEED = 77
LATER = 5


def load_network(network: Network, out: Path, phase: str) -> None:
    """Load the last checkpoint of a phase that is running, or the network after the finished ones."""
    running = get_last_checkpoint(out / phase) if (out / phase).is_dir() else None
    if running is None:
        network.load_state_dict(torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")["network"])
    else:
        network.load_state_dict(load_file(Path(running) / "model.safetensors"))


@torch.no_grad()
def measure(network: Network, phase: Phase, pages: int) -> tuple[dict[int, list[float]], int, int]:
    """Return for each place in an answer the count, and the means of right tokens and of each head's attention.

    After them the number of answers that are right in every token, and of all.

    Args:
        network: the network.
        phase: phase whose pages are read.
        pages: number of pages.
    """
    rows: dict[int, list[list[float]]] = defaultdict(list)
    right_answers = answers = 0
    for index in range(pages):
        sample = make_sample(network.setting, phase, SEED, index)
        codes = codes_of(network, sample.symbols, [sample])
        input_ids, labels, pointers, positions = collate([sample])
        hidden, attention, _ = network.hidden_states(
            input_ids, codes if sample.kept is None else codes[sample.kept], pointers, positions
        )
        _, exact, asked = answer_loss(hidden, labels, network.model.lm_head)
        right_answers, answers = right_answers + exact, answers + asked
        predicted = network.model.lm_head(hidden[0]).argmax(dim=-1)
        points = (pointers[0] >= 0).nonzero().flatten().tolist()
        for point, looked in zip(points, attention.T.tolist(), strict=True):
            start = point
            while labels[0, start] != IGNORED:
                start -= 1
            right = float(predicted[point] == labels[0, point + 1])
            rows[min(point - start + 1, LATER)].append([right, *looked])
    means = {place: [len(found), *torch.tensor(found).mean(dim=0).tolist()] for place, found in sorted(rows.items())}
    return means, right_answers, answers


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
    phases = {phase.name: phase for phase in plan.phases}
    if options.phase not in phases or phases[options.phase].kind != "reader":
        parser.error(f"--phase must be one of {[name for name, phase in phases.items() if phase.kind == 'reader']}")
    network = Network(plan.setting)
    load_network(network, options.out, options.phase)
    heads = " | ".join(f"layer {layer} head {head}" for layer, head in network.heads)
    print(f"| token | count | right | {heads} |\n|{'---|' * (3 + len(network.heads))}")
    rows, right, answers = measure(network, phases[options.phase], options.pages)
    for place, (count, *means) in rows.items():
        name = f"{place} and later" if place == LATER else str(place)
        print(f"| {name} | {count} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    print(f"{right} of {answers} answers are right in every token")


if __name__ == "__main__":
    main()
