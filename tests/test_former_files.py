"""Files written by an earlier revision of this repository, by its own code, and read by this one.

The revision is unpacked by `git archive`; where git does not know it, as in a shallow clone, the tests are skipped.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
REVISION = "cd161ef"  # before the packages were rearranged
STEPS, SAVED = 4, 2
SECONDS = 300  # of a command

pytestmark = pytest.mark.slow


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def run(checkout: Path, *arguments: str) -> str:
    """Run the command line of a checkout; return what it prints."""
    command = [sys.executable, "-m", "llava_uhd.cli", *arguments]
    # In the checkout: `python -m` looks for the package in the working directory first.
    done = subprocess.run(
        command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr[-3000:]}"
    return done.stdout


def kill_after(checkout: Path, written: Path, *arguments: str) -> None:
    """Run the command line of a checkout and kill it as soon as a file is there."""
    command = [sys.executable, "-m", "llava_uhd.cli", *arguments]
    with subprocess.Popen(
        command, cwd=checkout, env=environment(checkout), stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + SECONDS
        while not written.exists():
            assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()[-3000:]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    """The checkout of the earlier revision."""
    archive = subprocess.run(["git", "archive", REVISION], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"git does not know {REVISION}: {archive.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def data(former, tmp_path_factory):
    """Rendered documents, written by the earlier revision."""
    folder = tmp_path_factory.mktemp("data")
    run(former, "data", "synthetic", "--out", str(folder), "--count", "48", "--held-out", "2")
    return folder


def tuning(data: Path, out: Path) -> list[str]:
    """The earlier recipe, in the words of its revision."""
    train = {"path": f"{data}/train/questions.jsonl", "images": f"{data}/train/images"}
    held_out = {"path": f"{data}/held-out/questions.jsonl", "images": f"{data}/held-out/images"}
    return [
        "tiny-instruct",
        f"out={out}",
        "model.start=tiny",
        f"data.train=[{json.dumps(train)}]",
        f"data.held_out=[{json.dumps(held_out)}]",
        "optimization.global_batch=2",
        "optimization.micro_batch=1",
        f"optimization.max_steps={STEPS}",
        f"watch.save_every={SAVED}",
        "watch.log_every=1",
    ]


def assert_close(found: Path, expected: Path, names: set[str] | None = None) -> None:
    """Weights of two runs that are the same, but for what rounds differently in another order of operations."""
    before, after = load_file(expected), load_file(found)
    assert before.keys() == after.keys() if names is None else names <= before.keys() & after.keys()
    for name in names or before:
        assert torch.allclose(after[name].float(), before[name].float(), atol=2e-4), name


def test_a_killed_training_and_its_model(former, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(former, "train", *tuning(data, whole))
    kill_after(former, killed / f"checkpoint-{SAVED}/complete", "train", *tuning(data, killed))
    run(ROOT, "train", "run", *tuning(data, killed))
    steps = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == [1, 2, 3, 4]
    assert_close(killed / "model/model.safetensors", whole / "model/model.safetensors")
    question = ("ask", str(ROOT / "examples/receipt.png"), "What is the total?", "--device", "cpu", "--model")
    answers = [run(checkout, *question, str(whole / "model")) for checkout in (former, ROOT)]
    assert answers[0].split() == answers[1].split() != []


def test_a_killed_stage_0(former, data, tmp_path):
    def arguments(out: Path) -> list[str]:
        return [
            "tiny-upsampler",
            f"out={out}",
            f"images={data}/train/images",
            "batch=2",
            "max_steps=4",
            "save_every=2",
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(former, "train", *arguments(whole))
    kill_after(former, killed / "state.pt", "train", *arguments(killed))
    run(ROOT, "train", "run", *arguments(killed))
    for file in whole.glob("*.safetensors"):
        assert_close(killed / file.name, file)
    assert list(whole.glob("*.safetensors"))
    # Stage 1 of today takes the up-sampler of the earlier revision.
    run(ROOT, "train", "plan", "tiny-align", f"model.upsampler={whole}", f"out={tmp_path / 'align'}")


def test_results_of_an_evaluation(former, tmp_path):
    out = tmp_path / "results"
    arguments = ["eval", "run", "synthdoc", "--model", "tiny", "--limit", "6", "--out", str(out), "--json"]
    before = json.loads(run(former, *arguments))
    predictions = sorted(out.rglob("predictions*"))
    written = [file.read_bytes() for file in predictions]
    assert predictions
    after = json.loads(run(ROOT, *arguments))
    assert [file.read_bytes() for file in predictions] == written  # nothing is answered again

    assert after["results"][0]["scores"] == before["results"][0]["scores"]
    assert "synthdoc" in run(ROOT, "eval", "report", str(out))


def test_shipped_recipes(former):
    """Every recipe of the earlier revision, as a file of the user's, is a recipe of today."""
    for file in sorted((former / "llava_uhd/training/recipes").glob("*.yaml")):
        from llava_uhd.training.recipe import load_recipe

        assert load_recipe(str(file), []).out, file.name
