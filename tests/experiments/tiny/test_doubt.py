"""Answers that are taught to be declined, by hand."""

import pytest
import torch

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.tiny.doubt import DECLINED, decline_doubtful
from experiments.tiny.locations import FOUND_ID, LOCATION_ID, first_slice_id
from experiments.tiny.losses import sequence_score
from experiments.tiny.network import Network
from experiments.tiny.samples import IGNORED, make_sample
from experiments.tiny.setting import Phase
from experiments.tiny_v1.tokenizer import EOS_ID, byte_id

from .small import READER, SMALL

GRID = 4
SIDE = 2 * GRID
PLACE = LOCATION_ID + 3 * SIDE + 5
A, B = byte_id("a"), byte_id("b")
ANSWER = [FOUND_ID, PLACE, A, EOS_ID]


@pytest.mark.parametrize(
    "predicted, is_doubtful",
    [
        (ANSWER, False),
        ([DECLINED, PLACE, A, EOS_ID], False),
        ([FOUND_ID, PLACE, B, EOS_ID], True),
        ([FOUND_ID, PLACE, A, B], True),
        ([FOUND_ID, PLACE + SIDE + 1, A, EOS_ID], False),
        ([FOUND_ID, PLACE - SIDE, A, EOS_ID], False),
        ([FOUND_ID, PLACE + 2, A, EOS_ID], True),
        ([FOUND_ID, PLACE - 2 * SIDE, A, EOS_ID], True),
        ([FOUND_ID, first_slice_id(GRID), A, EOS_ID], True),
        ([FOUND_ID, A, A, EOS_ID], True),
    ],
)
def test_an_answer_with_a_wrong_token_is_declined(predicted, is_doubtful):
    absent = [DECLINED, byte_id("o"), EOS_ID]
    between = [IGNORED] * 3
    labels = torch.tensor(
        [[IGNORED, *ANSWER, *between, *ANSWER, IGNORED, *absent], [*between, *ANSWER, *[IGNORED] * 9]]
    )
    guessed = labels.clone()
    guessed[0, 1:5] = torch.tensor(predicted)
    guessed[0, -2] = A  # an error in what declines
    decided = decline_doubtful(labels, guessed, GRID)
    expected = labels.clone()
    if is_doubtful:
        expected[0, 1] = DECLINED
    assert torch.equal(decided, expected)


def test_a_new_network_doubts_every_answer():
    torch.manual_seed(0)
    network = Network(SMALL)
    samples = [make_sample(SMALL, READER, 3, index) for index in range(4)]
    labels = [label for sample in samples for label in sample.labels]
    printed = sum(before == IGNORED and label == FOUND_ID for before, label in zip(labels, labels[1:], strict=False))
    scores = [
        sequence_score(network, Phase(**{**vars(READER), "doubted": doubted}), samples, "cpu")
        for doubted in (False, True)
    ]
    assert printed > 0 and [score.measures["doubted"][0] for score in scores] == [0, printed]
    assert scores[0].loss != scores[1].loss
