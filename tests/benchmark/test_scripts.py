"""The scripts in `benchmarks/` that no other test runs, in miniature."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_uhd.benchmark.compare import published_forward
from llava_uhd.loading import BUILT_IN
from tests.conftest import build_model, small_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def output(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@torch.no_grad()
def test_the_published_formulas_take_the_projectors_place():
    projector = build_model(small_config()).model.multi_modal_projector
    channels, patch = projector.projections["1x"].linear.in_features, 14
    shapes = [(3, 4), (2, 2)]
    features = [torch.randn(2, channels, *shape) for shape in shapes]
    pixels = [torch.randn(2, 3, patch * rows, patch * columns) for rows, columns in shapes]
    published = published_forward(projector)
    groups = [(features, pixels), ([features[0]], [pixels[0]])]
    for group in groups:
        for fused, formula in zip(projector(*group), published(*group), strict=True):
            assert torch.allclose(fused, formula, atol=1e-4)
    assert torch.allclose(projector(features[0], pixels[0]), published(features[0], pixels[0]), atol=1e-4)


def test_the_published_formulas_learn_as_the_projector_does():
    projector = build_model(small_config()).model.multi_modal_projector.eval()
    channels = projector.projections["1x"].linear.in_features
    features, pixels = [torch.randn(2, channels, 3, 4)], [torch.randn(2, 3, 42, 56)]
    gradients = []
    for forward in (projector, published_forward(projector)):
        projector.zero_grad()
        (forward(features, pixels)[0] * torch.linspace(-1, 1, projector.proj.shape[1])).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in projector.named_parameters() if p.grad is not None})
    fused, published = gradients
    assert fused.keys() == published.keys() and "queries" in fused
    for name, gradient in fused.items():
        assert torch.allclose(gradient, published[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_training_step_gives_both_loops_the_same_loss(stage):
    sizes = ["--width", "256", "--vision-width", "64", "--layers", "1", "--samples", "2", "--repeats", "1"]
    packed, plain = output("training_step.py", "--stage", stage, *sizes)[-2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (packed, plain)]
    assert [row[0] for row in cells] == ["packed", "plain"]
    assert float(cells[0][-1]) == pytest.approx(float(cells[1][-1]), abs=2e-4)


@pytest.mark.slow
def test_the_ways_to_ask_give_one_answer():
    lines = output("ask_latency.py", "--runs", "1")
    assert [line.split(":")[0] for line in lines[1:]] == ["folded", "layer by layer", "published"]
    assert {line.split("answer ")[1] for line in lines[1:]} == {"'$42.69'"}


def test_every_question_of_synthdoc_is_of_one_sort():
    lines = output("synthdoc_questions.py", str(BUILT_IN["tiny"] / "synthdoc.json"))
    right, asked = zip(*(map(int, line.rsplit(": ", 1)[1].split(" of ")) for line in lines), strict=True)
    assert len(lines) == 7 and sum(asked) == 1000
    scores = json.loads((BUILT_IN["tiny"] / "synthdoc.json").read_text())["scores"]["official"]["values"]
    assert sum(right) == pytest.approx(10 * scores["exact match"])


def test_startup_measures_commands_and_names_the_bounds_that_are_exceeded():
    lines = output("startup.py", "--runs", "1", "--json", "--commands", "version", "import llava_uhd")
    measured = json.loads(lines[0])
    assert set(measured) == {"version", "import llava_uhd"}
    assert 0 < measured["import llava_uhd"]["cpu_seconds"] < 10
    sys.path.insert(0, str(BENCHMARKS))
    import startup

    medians = {"reference": (6.0, 6.0), "ask": (6.8, 7.0), "explain": (0.7, 0.7)}
    assert startup.exceeded(medians) == []
    assert startup.exceeded(medians | {"ask": (7.0, 7.0)}) == ["ask takes 1.17 times the reference, more than 1.15"]
    assert startup.exceeded({"explain": (2.5, 1.0)}) == ["explain takes 2.50 CPU seconds, more than 2.0"]
