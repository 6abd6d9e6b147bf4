"""Toy size of each command of the guides, or the reason why it is not executed here.

A rule is the beginning of a command and what is appended to it: a later option or override replaces an earlier one.
"""

import re
import shlex
from collections.abc import Callable

from tests.guides.blocks import Block
from tests.reproducing import SMALL_PARTS, SMALL_RUN, SMALL_STAGE0

ANSWERS = "--limit 2 --beams 1 --max-new-tokens 2 --workers 1".split()
TINY_PARTS = ("model.vision_tower", "data.images=", "data.image_size")
BOOTSTRAP = [option for option in SMALL_STAGE0 if not option.startswith(TINY_PARTS)]
SOURCES = ["data.train.0.path=samples.json", "data.train.0.images=flat"]
SHORT = ["schedule.max_steps=1", "data.workers=0"]

CLIP = "openai/clip-vit-large-patch14-336"

# Blocks that another file of the repository executes, or the reason why none does, by page and beginning.
ELSEWHERE: dict[tuple[str, str], str] = {
    ("README.md", "$ make demo"): "tests/test_readme.py",
    ("README.md", "make test"): ".ci/run",
    ("README.md", "pip install -e '.[vllm]'"): "tests/ecosystem/vllm/__main__.py",
    ("README.md", "python examples/finetune_own_data"): "tests/training/test_own_data.py",
    ("README.md", "from transformers"): "tests/test_readme.py",
    ("evaluation.md", "hf download"): "needs the hub",
    ("evaluation.md", "python -m venv lmms"): "tests/ecosystem/lmms_eval.py",
    ("evaluation.md", "git clone"): "needs GitHub and the hub",
    ("many-nodes.md", "#!/bin/bash"): "tests/training/test_launch_files.py",
    ("many-nodes.md", "srun"): "tests/training/test_launch_files.py",
    ("own-data.md", "python examples/finetune_own_data"): "tests/training/test_own_data.py",
    ("own-data.md", "test: "): "tests/training/test_own_data.py",
    ("own-models.md", "python examples/own_encoder"): "tests/model/test_assembly.py",
    ("reproducing.md", "llava-uhd"): "tests/test_reproducing.py",
    ("serving.md", "defaults\n"): "tests/serving/test_docs.py",
    ("tiny.md", "python -m experiments.tiny_v1"): "tests/experiments/tiny_v1/test_training.py",
    ("trl.md", ""): "tests/ecosystem/trl.py",
    ("vllm.md", "make test-ecosystem"): "tests/ecosystem/__main__.py",
    ("vllm.md", "pip install"): "tests/ecosystem/vllm/__main__.py",
    ("vllm.md", "vllm serve FOLDER    "): "needs several GPUs and nodes",
    ("vllm.md", "from ray"): "tests/ecosystem/ray_serve.py",
}
# Commands of other blocks, by their beginning.
NOT_HERE = {
    "pip install": "needs a package index: `python -m tests.guides --install FOLDER`",
    "xargs apt-get": "needs root and Debian's index",
}


def elsewhere(block: Block) -> str | None:
    """Return the file that executes a block, or the reason why none does; None if it is executed here."""
    keys = [key for key in ELSEWHERE if key[0] == block.page and block.text.startswith(key[1])]
    return ELSEWHERE[keys[0]] if keys else None


def tune(words: list[str]) -> list[str]:
    """Return the command of a training stage on toy parts, its ranks on the CPU."""
    recipe = words[words.index("run") + 1]
    words = [*words, *SMALL_RUN, *SOURCES]
    words = [*words, *SMALL_PARTS] if recipe.endswith("align") else words
    return ranks(words) if words[0] in ("torchrun", "accelerate") else words


def ranks(words: list[str]) -> list[str]:
    """Return a launcher's command with two ranks on the CPU, between which a global batch of 2 divides."""
    words = [*words, "optimization.micro_batch=1"] if "run" in words else words
    command = shlex.join(words).replace("--nproc-per-node 8", "--nproc-per-node 2")
    return shlex.split(command.replace("accelerate launch", "accelerate launch --cpu --num_processes 2"))


def first_of_each_axis(words: list[str]) -> list[str]:
    """Return a sweep over the first value of every axis."""
    words = [re.sub(r"=\[([^],]+),.*\]", r"=[\1]", word) for word in words]
    return words if "--slurm" in words else [*words, *SHORT, "--seeds", "0"]


def small_ablation(words: list[str]) -> list[str]:
    """Return the ablation with two rows and one step a run; of a whole table, which has up-samplers, no run."""
    if "--report" in words:  # of the runs that the page's first command makes
        return ["runs/ablation" if word.startswith("experiments/") else word for word in words]
    extra = ["--minutes", "0"] if "--table" in words else ["--rows", "mlp", "hiwin-1"]
    extra += ["--seconds", "0.1"] if "--seconds" in words else []
    return [*words, *"--steps 1 --pages 2 --held-out 2 --batch 2 --seeds 0".split(), *extra]


def tiny_stages() -> list[str]:
    """Return the overrides that make both stages of the built-in model a step long."""
    return [f"{stage}.{override}" for stage in ("align", "instruct") for override in SHORT]


RULES: list[tuple[str, Callable[[list[str]], list[str]]]] = [
    ("llava-uhd ask page.png", lambda words: [*words, "--max-new-tokens", "2"]),
    ("llava-uhd ask report.pdf", lambda words: [*words, "--max-slices", "3"]),
    ("llava-uhd chat report.pdf", lambda words: [*words, "--max-slices", "1"]),
    ("llava-uhd convert LLaVA", lambda words: [*words, "--projector-heads", "2"]),
    ("llava-uhd data synthetic", lambda words: [*words, "--count", "6", "--held-out", "2"]),
    ("llava-uhd eval all", lambda words: [*words, *"--max-new-tokens 2 --workers 1".split()]),
    ("llava-uhd eval run my.jsonl", lambda words: [*words, "--workers", "1"]),
    ("llava-uhd eval run docvqa_val", lambda words: [*words, *"--max-new-tokens 2 --workers 1".split()]),
    ("llava-uhd eval run", lambda words: [*words, *ANSWERS]),
    ("llava-uhd probe levels --count", lambda words: [*words, "--count", "8"]),
    ("llava-uhd train all tiny", lambda words: [*words, *tiny_stages(), "--eval-limit", "2"]),
    ("llava-uhd train run tiny-", lambda words: [*words, *BOOTSTRAP]),
    ("llava-uhd train run clip-l", lambda words: [*words, *SMALL_STAGE0, f"model.vision_tower={CLIP}"]),
    ("llava-uhd train run", tune),
    ("llava-uhd train sweep", first_of_each_axis),
    ("llava-uhd upsampler quality", lambda words: [*words, "--limit", "2"]),
    ("torchrun", tune),
    ("accelerate launch --config_file llava_uhd/training/launch/fsdp2.yaml -m llava_uhd.cli train all",
     lambda words: [*ranks(words), "--eval-limit", "1"]),
    ("accelerate launch", tune),
    ("python -m experiments.ablation", small_ablation),
    ("python -m experiments.tiny ", lambda words: [*words, *"--shorten 100000 --minutes 0.05".split()]),
    ("python benchmarks/serving_load.py", lambda words: [*words, *"--clients 4 --seconds 6 --questions 8".split()]),
]  # fmt: skip


def smaller(command: str) -> str:
    """Return a command at toy size, for a shell."""
    for beginning, change in RULES:
        if command.startswith(beginning):
            return shlex.join(change(shlex.split(command, comments=True)))
    return command
