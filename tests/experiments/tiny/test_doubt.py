"""Answers that are taught to be declined, by hand."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.tiny.doubt import decline_doubtful
from experiments.tiny.locations import FOUND_ID, LOCATION_ID, doubtful_id, first_slice_id, location_tokens
from experiments.tiny.losses import sequence_score
from experiments.tiny.network import Network
from experiments.tiny.samples import DOUBTFUL, IGNORED, decline_for_doubt, make_sample
from experiments.tiny.setting import Phase
from experiments.tiny_v1.tokenizer import ASSISTANT_ID, EOS_ID, USER_ID, build_tokenizer, byte_id, encode
from llava_uhd.evaluation.scorers import is_declined

from .small import READER, SMALL

GRID, MAX_SLICES = 4, 3
SIDE = 2 * GRID
DOUBT = doubtful_id(GRID, MAX_SLICES)
DECLINED = encode("not in the document")[0]
PLACE = LOCATION_ID + 3 * SIDE + 5
A, B = byte_id("a"), byte_id("b")
ANSWER = [FOUND_ID, PLACE, A, EOS_ID]


@pytest.mark.parametrize(
    "predicted, is_doubtful",
    [
        (ANSWER, False),
        ([DECLINED, PLACE, A, EOS_ID], False),
        ([DOUBT, PLACE, A, EOS_ID], False),
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
    decided = decline_doubtful(labels, guessed, GRID, MAX_SLICES)
    expected = labels.clone()
    if is_doubtful:
        expected[0, 1] = DOUBT
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


def test_the_token_of_doubt_is_left_out_and_what_follows_declines():
    tokenizer = build_tokenizer(location_tokens(GRID, MAX_SLICES))
    assert tokenizer.decode([DOUBT, *encode("no")]) == "<|doubtful|>no"
    assert tokenizer.decode([DOUBT, *encode("no")], skip_special_tokens=True) == "no"
    assert is_declined(DOUBTFUL)


def test_some_pages_end_with_declining_for_doubt_and_none_without_the_switch():
    doubted = replace(READER, doubted=True)
    pages = [make_sample(SMALL, doubted, 5, index) for index in range(30)]
    token = doubtful_id(SMALL.query_grid, SMALL.max_slices)
    ids, labels, pointers = decline_for_doubt("Who?", SMALL)
    assert ids == [USER_ID, *encode("Who?"), ASSISTANT_ID, token, *encode(DOUBTFUL), EOS_ID]
    assert labels[:7] == [IGNORED] * 7 and labels[7:] == ids[7:] and pointers == [-1] * len(ids)
    declining = [page for page in pages if token in page.input_ids]
    assert 1 <= len(declining) <= 15
    for page in declining:
        start = page.input_ids.index(token)
        assert page.input_ids[start + 1 :] == page.labels[start + 1 :] == [*encode(DOUBTFUL), EOS_ID]
        assert page.labels[start] == IGNORED
        assert len(page.input_ids) == len(page.labels) == len(page.pointers) == len(page.positions)
    assert all(token not in make_sample(SMALL, READER, 5, index).input_ids for index in range(30))
