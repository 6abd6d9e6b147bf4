"""The decision between an answer and "not in the document", moved by a constant."""

import json
import re

import pytest
import torch

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.tiny.decision import deciding_states, main, move_decision
from experiments.tiny.locations import FOUND_ID, doubtful_id
from experiments.tiny.network import Network
from experiments.tiny.samples import IGNORED, make_sample
from experiments.tiny.setting import load_plan
from experiments.tiny.trainer import Options, train

from .small import READER, SMALL


@torch.no_grad()
@pytest.mark.parametrize("token", [FOUND_ID, doubtful_id(SMALL.query_grid, SMALL.max_slices)])
def test_one_logit_moves_by_the_same_amount_in_all_states(token):
    torch.manual_seed(0)
    network = Network(SMALL)
    # As those of a trained model, the states have much in common.
    states = torch.randn(SMALL.width) + 0.3 * torch.randn(400, SMALL.width)
    before = network.model.lm_head(states)
    move_decision(network, states, token, 0.8)
    moved = network.model.lm_head(states) - before
    others = torch.arange(moved.shape[1]) != token
    assert (moved[:, others] == 0).all()
    assert moved[:, token].mean() == pytest.approx(0.8, abs=0.02) and moved[:, token].std() < 0.1


def test_states_are_those_before_the_first_token_of_each_answer():
    answers = 0
    for index in range(5):
        labels = make_sample(SMALL, READER, 78, index).labels
        answers += sum(a == IGNORED != b for a, b in zip(labels, labels[1:], strict=False))
    assert deciding_states(Network(SMALL), READER, 5).shape == (answers, SMALL.width)


def test_the_checkpoint_of_a_run_is_changed(tmp_path, capsys):
    setting = {name: value for name, value in vars(SMALL).items() if name != "levels"}
    phases = [{"name": "reader", "kind": "reader", "steps": 1, "tokens": 300, "views": 1, "questions": 4}]
    (tmp_path / "plan.yaml").write_text(json.dumps({"setting": setting, "phases": phases}))
    assert train(load_plan(tmp_path / "plan.yaml"), tmp_path, Options(workers=0))
    before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    plan = ["--out", str(tmp_path), "--plan", str(tmp_path / "plan.yaml"), "--pages", "20"]
    main([*plan, "--phase", "reader", "--toward-found", "-1.5", "--toward-doubt", "0.5"])
    printed = capsys.readouterr().out
    assert re.search(r"\d+ decisions: log odds of an answer moved by -1\.\d\d", printed)
    assert re.search(r"\d+ decisions: log odds of doubt moved by 0\.[45]\d", printed)
    after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert after["finished"] == before["finished"] == ["reader"]
    changed = [name for name, value in after["network"].items() if not torch.equal(value, before["network"][name])]
    assert changed == ["model.lm_head.weight"]
    with pytest.raises(SystemExit):
        main([*plan, "--phase", "drawn", "--toward-found", "1"])
