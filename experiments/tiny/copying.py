"""Measure of what a language model in training copies, by the token of an answer.

The tokens of an answer, characters and places, are given up to the one that is asked. Pages are codes, or drawn where
the phase draws them.
"""

from collections import defaultdict

import torch

from ..tiny_v1.losses import answer_loss
from .losses import codes_of, pixels_of
from .network import Network
from .samples import IGNORED, collate, make_sample
from .setting import Phase

LATER = 5


@torch.no_grad()
def measure_copying(network: Network, phase: Phase, pages: int, seed: int) -> tuple[dict[int, list[float]], int, int]:
    """Return for each place in an answer the count, and the means of right tokens and of each head's attention.

    After them the number of answers that are right in every token, and of all.

    Args:
        network: the network.
        phase: phase whose pages are read.
        pages: number of pages.
        seed: seed of the pages.
    """
    rows: dict[int, list[list[float]]] = defaultdict(list)
    right_answers = answers = 0
    for index in range(pages):
        sample = make_sample(network.setting, phase, seed, index)
        is_drawn = sample.patches is not None
        codes = network.image_tokens(*pixels_of([sample], "cpu")) if is_drawn else codes_of(network, [sample])
        input_ids, labels, pointers, positions = collate([sample])
        hidden, attention, _ = network.hidden_states(
            input_ids, codes if sample.kept is None else codes[sample.kept], pointers, positions
        )
        _, exact, asked = answer_loss(hidden, labels, network.model.lm_head)
        right_answers, answers = right_answers + exact, answers + asked
        predicted = network.model.lm_head(hidden[0]).argmax(dim=-1)
        points = (pointers[0] >= 0).nonzero().flatten().tolist()
        for point, looked in zip(points, attention.T.tolist(), strict=True):
            if labels[0, point + 1] == IGNORED:
                continue  # a letter of a question
            start = point
            while labels[0, start] != IGNORED:
                start -= 1
            right = float(predicted[point] == labels[0, point + 1])
            rows[min(point - start + 1, LATER)].append([right, *looked])
    means = {place: [len(found), *torch.tensor(found).mean(dim=0).tolist()] for place, found in sorted(rows.items())}
    return means, right_answers, answers
