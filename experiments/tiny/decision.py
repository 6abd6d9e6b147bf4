"""Moves the decision between an answer, "not in the document", and declining for doubt.

    python -m experiments.tiny.decision --out runs/next --toward-found 1.2 --toward-doubt -0.4

The first token of an answer decides it: `FOUND_ID`, the first letter of "not in the document", or the token of doubt.
The shares of questions without an answer, and of those that are answered wrong, are others in the training than in
what a model is for, and classes are weighed anew by constants in their log odds. The head of the language model has no
constants, so the rows of the two tokens are moved along the direction that is most nearly the same in all states in
which it is decided; elsewhere these tokens are far from being named.
"""

import argparse
from pathlib import Path

import torch

from .copying import read_alone
from .locations import FOUND_ID, doubtful_id
from .network import Network
from .samples import IGNORED, make_sample
from .setting import PLAN, Phase, load_plan
from .trainer import CHECKPOINT, save

SEED = 78
# Part of the states' mean square by which the least squares are kept from following single states.
RIDGE = 1e-2


@torch.no_grad()
def deciding_states(network: Network, phase: Phase, pages: int) -> torch.Tensor:
    """States of the language model before the first token of answers, (answers, E).

    Args:
        network: the network.
        phase: phase whose pages are asked about.
        pages: number of pages.
    """
    found = []
    for index in range(pages):
        outputs, labels, _ = read_alone(network, make_sample(network.setting, phase, SEED, index))
        asked = labels[0] != IGNORED
        found.append(outputs.hidden[0, :-1][asked[1:] & ~asked[:-1]])
    return torch.cat(found)


@torch.no_grad()
def move_decision(network: Network, states: torch.Tensor, token: int, amount: float) -> None:
    """Add an amount to the logit of a token in all states, as nearly as a vector can.

    Args:
        network: network whose head is changed.
        states: result of `deciding_states`.
        token: `FOUND_ID`, or the token of doubt.
        amount: summand of the log odds.
    """
    products = states.T @ states
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products))
    direction = torch.linalg.solve(products + ridge, states.sum(dim=0))
    network.model.lm_head.weight[token] += amount * direction


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tiny.decision", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, whose checkpoint is changed")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--phase", default="drawn", help="phase whose pages are asked about")
    parser.add_argument("--pages", type=int, default=30)
    parser.add_argument("--toward-found", type=float, default=0.0, help="summand of the log odds of an answer")
    parser.add_argument("--toward-doubt", type=float, default=0.0, help="summand of those of declining for doubt")
    options = parser.parse_args(arguments)
    plan = load_plan(options.plan)
    phases = {phase.name: phase for phase in plan.phases}
    if options.phase not in phases:
        parser.error(f"--phase must be one of {list(phases)}")
    state = torch.load(options.out / CHECKPOINT, weights_only=True, map_location="cpu")
    network = Network(plan.setting)
    network.load_state_dict(state["network"])
    states = deciding_states(network, phases[options.phase], options.pages)
    doubtful = doubtful_id(plan.setting.query_grid, plan.setting.max_slices)
    before = network.model.lm_head(states)
    for token, amount in ((FOUND_ID, options.toward_found), (doubtful, options.toward_doubt)):
        move_decision(network, states, token, amount)
    after = network.model.lm_head(states)
    save(network, state["finished"], options.out)
    for name, token in (("an answer", FOUND_ID), ("doubt", doubtful)):
        moved = after[:, token] - before[:, token]
        print(
            f"{len(states)} decisions: log odds of {name} moved by {moved.mean():.2f}, "
            f"from {moved.min():.2f} to {moved.max():.2f}"
        )


if __name__ == "__main__":
    main()
