"""Runs as users start them, in processes of their own: killed and resumed, and on two ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_uhd import LlavaUhdProcessor
from tests.conftest import build_model, small_config

pytestmark = pytest.mark.slow

LAUNCH = Path(__file__).parents[2] / "llava_uhd" / "training" / "launch"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
TRAIN = ["-m", "llava_uhd.cli", "train"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]


@pytest.fixture
def start(recipe_values, tmp_path):
    """Writes the recipe with some changes and starts a command on it."""

    def start(out, *command, **optimization):
        recipe_values["out"] = str(tmp_path / out)
        recipe_values["optimization"] |= optimization
        file = tmp_path / f"{out}.yaml"
        file.write_text(yaml.safe_dump(recipe_values))
        command = [*(command or (sys.executable,)), *TRAIN, str(file)]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(process):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]


def trained(tmp_path, out):
    return load_file(tmp_path / out / "model" / "model.safetensors")


def test_kill_9_and_resume_is_bitwise(start, tmp_path):
    finish(start("whole", epochs=2))
    process = start("killed", epochs=2)
    until = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-4" / "complete").is_file():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "model").is_dir()
    finish(start("killed", epochs=2))
    whole, resumed = trained(tmp_path, "whole"), trained(tmp_path, "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_lost_rank_ends_the_run_and_costs_no_more_than_a_checkpoint(start, tmp_path, without_dropout):
    finish(start("whole", *TWO_RANKS, epochs=2))
    process = start("lost", *TWO_RANKS, epochs=2)
    until = time.monotonic() + 180
    while not (tmp_path / "lost" / "checkpoint-2" / "complete").is_file():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"llava_uhd.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "exitcode: -9" in " ".join(err.split()).replace(" :", ":")
    assert not (tmp_path / "lost" / "model").is_dir()
    finish(start("lost", *TWO_RANKS, epochs=2))
    whole, resumed = trained(tmp_path, "whole"), trained(tmp_path, "lost")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.fixture
def without_dropout(recipe_values, tmp_path, qwen_tokenizer):
    """A model that draws nothing while it trains: the up-sampler's dropout would differ between ranks."""
    config = small_config(upsampler="bilinear")
    config.row_separator_id = 13
    build_model(config).save_pretrained(tmp_path / "bilinear")
    LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen").save_pretrained(tmp_path / "bilinear")
    recipe_values["model"]["start"] = str(tmp_path / "bilinear")
    del recipe_values["optimization"]["learning_rates"]["upsampler_fixup"]


def difference(first, second):
    """The largest, key biases of the vision half apart.

    They add the same to every score of a query, so their gradient is zero, and Adam moves them by its rounding alone.
    """
    names = [n for n in first if not (n.endswith("k_proj.bias") and "language_model" not in n)]
    assert len(first) - len(names) == 4
    return max((first[name].float() - second[name].float()).abs().max().item() for name in names)


def test_two_ranks_agree_with_one(start, tmp_path, without_dropout):
    """Train with DDP, from the start, and continued on two ranks after a beginning on one."""
    finish(start("one"))
    finish(start("two", *TWO_RANKS))
    moved = difference(load_file(tmp_path / "bilinear" / "model.safetensors"), trained(tmp_path, "one"))
    assert difference(trained(tmp_path, "one"), trained(tmp_path, "two")) < 1e-3 * moved
    # The end of the first run is taken back, so that two ranks continue from its fourth step.
    (tmp_path / "one" / "model").rename(tmp_path / "whole")
    (tmp_path / "one" / "checkpoint-5" / "complete").unlink()
    finish(start("one", *TWO_RANKS))
    continued = load_file(tmp_path / "whole" / "model.safetensors")
    assert difference(continued, trained(tmp_path, "one")) < 1e-3 * moved


def test_fsdp2_agrees_with_one_rank(start, tmp_path, without_dropout):
    finish(start("one"))
    options = ["--config_file", str(LAUNCH / "fsdp2.yaml"), "--num_processes", "2", "--mixed_precision", "no", "--cpu"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "29612"]
    finish(start("sharded", *launch))
    moved = difference(load_file(tmp_path / "bilinear" / "model.safetensors"), trained(tmp_path, "one"))
    assert difference(trained(tmp_path, "one"), trained(tmp_path, "sharded")) < 1e-3 * moved
    # Its last step taken back and done again, from the shards of the fourth.
    (tmp_path / "sharded" / "model").rename(tmp_path / "whole")
    (tmp_path / "sharded" / "checkpoint-5" / "complete").unlink()
    assert (tmp_path / "sharded" / "checkpoint-4" / "complete").is_file()
    finish(start("sharded", *launch))
    assert difference(trained(tmp_path, "one"), trained(tmp_path, "sharded")) < 1e-3 * moved
