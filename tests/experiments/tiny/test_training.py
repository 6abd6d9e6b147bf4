"""Training of the next built-in model: losses, phases, pieces of a run, measures."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("faker", reason="varied documents need the extra synthetic")

from experiments.common.attention import BLOCK, attention, write_out_attention
from experiments.common.trainer import Stop, append_log
from experiments.tiny import symbols as symbol_names
from experiments.tiny.calculation import describe_plan
from experiments.tiny.copying import Page, count_copied, count_places, predict_pages
from experiments.tiny.legibility import count_named, measure_legibility
from experiments.tiny.locations import FOUND_ID, LOCATION_ID, first_note_id
from experiments.tiny.losses import FINDING, SCORES, codes_of, finding_weights, reading_score
from experiments.tiny.measure import SEED, main
from experiments.tiny.network import Network, assemble
from experiments.tiny.samples import IGNORED, collate, make_sample, make_samples
from experiments.tiny.setting import Phase, Plan, load_plan
from experiments.tiny.symbols import (
    SYMBOL_OF,
)
from experiments.tiny.trainer import LANGUAGE, VISION, Options, begin_with, export, phase_groups, train
from experiments.tiny_v1.losses import answer_loss
from experiments.tiny_v1.tokenizer import EOS_ID, byte_id

from .small import READER, SMALL, TOWER


def test_every_kind_of_phase_gives_gradients_to_what_it_trains():
    network = Network(SMALL)
    for phase in (
        TOWER,
        Phase("slots", "tower", 1, 40, views=1, scribble=0.5, crops=2, named="slots"),
        Phase("projector", "vision", 1, 40, views=1),
        READER,
        Phase("frozen", "frozen", 1, 400, views=2, questions=2),
        Phase("joint", "joint", 1, 400, views=2, symbols=0.5, questions=2),
    ):
        network.zero_grad(set_to_none=True)
        phase_groups(network, phase)
        samples = [sample for index in range(3) for sample in make_samples(SMALL, phase, 0, index)]
        score = SCORES[phase.kind](network, phase, samples, "cpu")
        score.loss.backward()
        assert torch.isfinite(score.loss)
        trained = {
            "tower": network.tower.encoder.layers[0].mlp.fc1.weight.grad is not None,
            "language model": network.language_model.layers[0].mlp.up_proj.weight.grad is not None,
            "projector": network.projector.proj.grad is not None,
        }
        assert trained["tower"] == (phase.kind in ("tower", "vision", "joint"))
        assert trained["language model"] == (phase.kind in ("reader", "frozen", "joint"))
        assert trained["projector"] == (phase.kind in ("vision", "joint"))


def test_reading_counts_characters_and_windows():
    symbols = torch.tensor([[5, 0], [6, 7], [0, 0]])
    scores = torch.nn.functional.one_hot(torch.tensor([[5, 0], [6, 1], [0, 3]]), 9).float()
    measures = reading_score(scores, symbols)[1]
    assert measures == {"characters": (2, 3), "windows": (1, 2)}


def test_what_finds_an_answer_weighs_more_than_what_repeats_it():
    note = first_note_id(4, 4)
    place, digit, lead, letter = LOCATION_ID + 3, note + 2, note + 10, byte_id("a")
    found = [FOUND_ID, place, place + 1, letter, byte_id(" "), place, letter, EOS_ID]
    in_slice = note - 1
    compared = [FOUND_ID, place, digit, lead, place + 1, digit, lead, in_slice, place, letter, place, EOS_ID]
    declined = [letter, letter, EOS_ID]
    labels = [IGNORED, IGNORED, *found, IGNORED, *compared, IGNORED, *declined]
    weights = finding_weights(torch.tensor([labels, labels[::-1]]), note)
    # Of notes the length and the comparison, and the place after them; spaces and ends.
    finds = [0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 0, *[1] * 9, 0, 0, 1, 0, 1, 0, 1]
    assert weights[0].tolist() == [FINDING if each else 1.0 for each in finds]
    assert weights.shape == (2, len(labels)) and weights[1, labels[::-1].index(2)] == FINDING  # it begins there


@torch.no_grad()
def test_the_loss_of_the_answers_is_weighted_so():
    network = Network(SMALL)
    samples = [make_sample(SMALL, READER, 0, index) for index in range(3)]
    input_ids, labels, pointers, positions = collate(samples)
    assert all(sample.kept is None for sample in samples)
    outputs = network.hidden_states(input_ids, codes_of(network, samples), pointers, positions)
    weights = finding_weights(labels, first_note_id(SMALL.query_grid, SMALL.max_slices))
    expected, *_ = answer_loss(outputs.hidden, labels, network.model.lm_head, weights)
    plain, *_ = answer_loss(outputs.hidden, labels, network.model.lm_head)
    found, _ = SCORES["reader"](network, READER, samples, "cpu").measures["answer_loss"]
    assert found == pytest.approx(expected.item(), rel=1e-5) and abs(found - plain.item()) > 1e-3 * found


@torch.no_grad()
def test_a_projector_begins_as_the_head_of_the_slots():
    network = Network(replace(SMALL, vision_width=32))
    patches = torch.randn(2, 16, 3 * 14 * 14)
    expected = network.window_tokens(network.patch_features(patches))
    network.begin_projector()
    found = network.model.model.project_views(patches, (4, 4))
    similarity = torch.cosine_similarity(found, expected, dim=-1)
    assert similarity.min() > 0.7 and similarity.mean() > 0.9
    # Attention to the patches alone gives the tokens themselves.
    network.projector.projections["1x"].bin_embedding[4] *= 10
    torch.testing.assert_close(network.model.model.project_views(patches, (4, 4)), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_assembling_keeps_the_tokens():
    network = Network(SMALL)
    patches = torch.randn(2, 16, 3 * 14 * 14)
    expected = network.code_map(network.model.model.project_views(patches, (4, 4)))
    found = assemble(network).eval().model.project_views(patches, (4, 4))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_run_in_pieces_is_the_run_in_one_piece(tmp_path):
    plan, whole, pieces = Plan(SMALL, (READER,)), tmp_path / "whole", tmp_path / "pieces"
    assert train(plan, whole, Options(workers=0))
    # Time is up at once: one step each time.
    assert [train(plan, pieces, Options(workers=0, stop=Stop(minutes=0.0))) for _ in range(3)] == [False, False, True]
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, pieces)]
    assert states[0]["finished"] == states[1]["finished"] == ["reader"]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    (logged,) = [line for line in lines if "loss" in line]
    assert logged["step"] == 3 and logged["stage"] == "reader" and 0 <= logged["exact"] <= 1
    steps = [json.loads(line) for line in (pieces / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]


def test_copying_is_measured_by_character(tmp_path, capsys):
    setting = {name: value for name, value in vars(SMALL).items() if name != "levels"}
    phases = [{"name": "reader", "kind": "reader", "steps": 1, "tokens": 300, "views": 1, "questions": 4}]
    (tmp_path / "plan.yaml").write_text(json.dumps({"setting": setting, "phases": phases}))
    plan = load_plan(tmp_path / "plan.yaml")
    assert train(plan, tmp_path, Options(workers=0))
    pages = list(predict_pages(Network(SMALL), plan.phases[0], 12, SEED))
    assert 0 <= sum(page.right_answers for page in pages) < sum(page.answers for page in pages)
    for index, page in enumerate(pages):
        sample = make_sample(SMALL, plan.phases[0], SEED, index)
        assert page.labels == sample.labels and len(page.predicted) == sample.length
        asked = zip(sample.pointers, sample.labels[1:], strict=False)
        rows = [row for each in count_copied(page).values() for row in each]
        assert len(rows) == sum(pointer >= 0 and label != IGNORED for pointer, label in asked)
        assert all(len(row) == 1 + len(Network(SMALL).heads) and 0 <= min(row) <= max(row) <= 1 for row in rows)
    assert sum(len(page.points) for page in pages) > 20
    main(["--out", str(tmp_path), "--plan", str(tmp_path / "plan.yaml"), "--phase", "reader", "--pages", "6"])
    printed = capsys.readouterr().out
    assert "| 5 and later |" in printed and "answers are right in every token" in printed
    assert re.search(r"\| first \| \d+ \| \d\.\d\d \|", printed)


def test_places_are_counted_by_how_near_they_are():
    def place(half, side):
        return LOCATION_ID + 8 * half + side

    grid, letter = 4, byte_id("a")
    of_key, of_answer = place(2, 1), place(5, 3)
    labels = [IGNORED, FOUND_ID, of_key, of_answer, letter, of_key, letter, IGNORED, FOUND_ID, of_answer, letter]
    found = [IGNORED, FOUND_ID, place(2, 2), of_answer, letter, letter, letter, IGNORED, FOUND_ID, letter, letter]
    counts = count_places(Page(labels, found, [], torch.zeros(0, 0), 0, 2), grid)
    assert counts == {1: {"beside": 1, "none": 1}, 2: {"right": 1}}  # the third place is within the answer
    for half, column, nearness in ((3, 0, "beside"), (1, 3, "same row"), (5, 0, "same column"), (7, 3, "elsewhere")):
        page = Page([IGNORED, FOUND_ID, of_key], [IGNORED, FOUND_ID, place(half, column)], [], torch.zeros(0, 0), 0, 1)
        assert count_places(page, grid) == {1: {nearness: 1}}


def test_copying_is_measured_on_drawn_pages():
    phase = Phase("frozen", "frozen", 1, 300, views=1, questions=2)
    pages = list(predict_pages(Network(SMALL), phase, 4, SEED))
    assert sum(page.answers for page in pages) > 2 and sum(len(page.points) for page in pages) > 2


def test_characters_are_counted_by_size_of_print(tmp_path, capsys):
    a, b = SYMBOL_OF["a"], SYMBOL_OF["b"]
    symbols = torch.zeros(4, 4, dtype=torch.int64)  # 2 x 2 windows of 2 x 2 slots
    symbols[0, 1], symbols[1, 0], symbols[3, 2] = a, b + symbol_names.BEGINS, a
    symbols[0, 0] = a + symbol_names.CONTINUED  # not counted again
    found = torch.zeros(4, 4, symbol_names.NUM_SYMBOLS)
    assert count_named(found, symbols, 2) == (0, 0, 3)
    found[0, 1, a], found[1, 1, b], found[3, 2, b] = 0.9, 0.8, 1.0
    assert count_named(found, symbols, 2) == (2, 2, 3)
    found[0, 1, a] = found[0, 3, a] = 0.3  # a line between two halves: placed, but in neither more probable than not
    assert count_named(found, symbols, 2) == (1, 2, 3)
    found[0, 3, a + symbol_names.CONTINUED] = 0.3  # named by what it is, wherever its middle may be
    assert count_named(found, symbols, 2) == (2, 2, 3)
    found[0, 1, a] = 0.1
    assert count_named(found, symbols, 2) == (2, 1, 3)
    phase = replace(TOWER, named="slots", scribble=1.0, views=2)
    network = Network(SMALL)
    torch.nn.init.zeros_(network.patch_heads["slots"][1].weight)  # names nothing: all are missed
    counts = measure_legibility(network, phase, 6, SEED)
    assert all(named == placed == 0 < total and random for (random, *_), (named, placed, total) in counts.items())
    setting = {name: value for name, value in vars(SMALL).items() if name != "levels"}
    phases = [{"name": "slots", "kind": "tower", "named": "slots", "steps": 1, "tokens": 40, "views": 1, "crops": 2}]
    (tmp_path / "plan.yaml").write_text(json.dumps({"setting": setting, "phases": phases}))
    assert train(load_plan(tmp_path / "plan.yaml"), tmp_path, Options(workers=0))
    main(["--out", str(tmp_path), "--plan", str(tmp_path / "plan.yaml"), "--phase", "slots", "--pages", "4"])
    assert "| text | " in capsys.readouterr().out


def test_a_stage_that_is_run_again_replaces_its_lines(tmp_path):
    log, stage = tmp_path / "all.jsonl", tmp_path / "reader"
    stage.mkdir()
    log.write_text('{"stage": "tower", "step": 9}\n')
    for step in (1, 2):
        (stage / "log.jsonl").write_text(json.dumps({"step": step}) + "\n")
        append_log(stage, "reader", log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"stage": "tower", "step": 9}, {"stage": "reader", "step": 2}]


def test_a_phase_leaves_what_it_does_not_train(tmp_path):
    before = Network(SMALL).state_dict()
    assert train(Plan(SMALL, (TOWER,)), tmp_path, Options(workers=0))
    after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    changed = {
        name.split(".")[2 if name.startswith("model.model") else 0]
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert changed == {"vision_tower", "patch_heads"}
    assert torch.equal(before["patch_heads.slots.1.weight"], after["patch_heads.slots.1.weight"])


def test_the_plan_fits_the_wheel_and_names_every_phase():
    plan = load_plan()
    text = describe_plan(plan)
    assert all(f"| {phase.name} |" in text for phase in plan.phases)
    megabytes = float(text.split("; ")[1].split(" MB")[0])
    assert megabytes <= 20
    assert len({phase.name for phase in plan.phases}) == len(plan.phases)


def test_the_weights_that_are_shipped_take_up_the_plan():
    plan = load_plan()
    finished = begin_with(Network(plan.setting), plan, [Path("experiments/tiny/begun.pt")])
    assert finished[-1] == "joint"


def test_a_plan_with_the_former_name_of_the_slots_loads(tmp_path):
    (tmp_path / "plan.yaml").write_text("setting: {places: 4}\nphases: []")
    assert load_plan(tmp_path / "plan.yaml").setting.slots == 4


def test_an_unknown_name_in_a_plan_is_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text("setting: {}\nphases: [{name: a, kind: reader, steps: 1, token: 9}]")
    with pytest.raises(ValueError, match="phase a: unknown token"):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(ValueError, match="families must be one of all, half, wheel, got 'some'"):
        replace(READER, families="some")


def test_attention_written_out_is_that_of_pytorch():
    network = Network(SMALL)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(2, 9, SMALL.width)
    views = torch.randn(2, 3, SMALL.view_size, SMALL.view_size)

    def run():
        text = network.language_model(inputs_embeds=inputs).last_hidden_state
        return text, network.tower(views).last_hidden_state

    fused = run()
    write_out_attention(network.tower, network.language_model)
    for expected, found in zip(fused, run(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_causal_attention_in_blocks_and_its_gradients_are_those_of_pytorch():
    length, layer = 2 * BLOCK + 9, SimpleNamespace(is_causal=True)
    sizes = ((2, 4, length, 16), (2, 2, length, 16), (2, 2, length, 16))
    inputs = [torch.randn(*size, requires_grad=True) for size in sizes]
    found, _ = attention(layer, *inputs, None, 0.25)
    expected = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(found)
    gradients = (torch.autograd.grad((attended * towards).sum(), inputs) for attended in (found, expected))
    torch.testing.assert_close(*gradients)


def test_pixels_of_half_precision_train_under_autocast():
    plan = Plan(SMALL, (TOWER, Phase("projector", "vision", 1, 40, views=1)))
    network = Network(SMALL)
    for phase in plan.phases:
        samples = make_samples(SMALL, phase, 0, 0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(SCORES[phase.kind](network, phase, samples, "cpu").loss)


def test_the_halves_of_the_network_can_be_trained_by_two_runs(tmp_path):
    plan = Plan(SMALL, (TOWER, READER))
    halves = []
    for name in ("tower", "reader"):
        assert train(plan, tmp_path / name, Options(workers=0, only=(name,)))
        export(tmp_path / name, tmp_path / f"{name}.pt")
        halves.append(tmp_path / f"{name}.pt")
    assert train(plan, tmp_path / "both", Options(workers=0, begin=tuple(halves)))  # nothing is left to do
    assert torch.load(tmp_path / "both" / "checkpoint.pt", weights_only=True)["finished"] == ["tower", "reader"]
    network = Network(SMALL, seed=1)
    assert begin_with(network, plan, halves) == ["tower", "reader"]
    vision, language = (torch.load(half, weights_only=True)["network"] for half in halves)
    for name, value in network.state_dict().items():
        half = language if name.startswith(LANGUAGE) else vision if name.startswith(VISION) else None
        assert half is None or torch.equal(value, half[name].to(value.dtype)), name
    # A second run of the same phase on other pages: the mean of both.
    assert train(plan, tmp_path / "again", Options(workers=0, only=("reader",), seed=5, begin=(halves[0],)))
    replica = tmp_path / "again" / "checkpoint.pt"
    assert begin_with(network, plan, [*halves, replica]) == ["tower", "reader"]
    others = torch.load(replica, weights_only=True)["network"]
    embeddings = "model.model.language_model.embed_tokens.weight"
    assert not torch.equal(others[embeddings], language[embeddings].float())
    expected = (others[embeddings] + language[embeddings].float()) / 2
    assert torch.allclose(network.state_dict()[embeddings], expected)
    assert all(
        torch.allclose(value, vision[name].float())
        for name, value in network.state_dict().items()
        if name.startswith(VISION)
    )
    with pytest.raises(ValueError, match=r"another plan: .* is \(64,\), not \(32,\)"):
        begin_with(Network(replace(SMALL, vision_width=32)), plan, halves)
    with pytest.raises(ValueError, match=r"another plan: it finished \['reader'\], the plan has \['tower'\]"):
        begin_with(Network(SMALL), Plan(SMALL, (TOWER,)), halves)
