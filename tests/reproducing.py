"""Execute every command of docs/reproducing.md at toy size, in the page's order.

    python -m tests.reproducing
    python -m tests.reproducing 'probe|explain'      # commands that match

Commands run in a temporary folder on models of a few thousand weights: what a command names stays, what it would
download or take long for is replaced by what is appended to it. A later command finds the models that earlier ones
trained.
"""

import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproducing.md"


def commands() -> list[str]:
    """Return the command lines of the page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def write_toys(folder: Path) -> None:
    """Write what commands need: backbones, data, images, benchmarks."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    from experiments.tiny_v1.tokenizer import VOCABULARY_SIZE, build_tokenizer
    from tests.conftest import random_image
    from tests.evaluation import minidata

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(text).save_pretrained(folder / "language-model")
    build_tokenizer().save_pretrained(folder / "language-model")
    samples = []
    for index in range(6):
        for name in (f"images/class-{index % 2}/{index}.png", f"flat/{index}.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            random_image(70 + 9 * index, 60, seed=index).save(folder / name)
        mask = np.random.default_rng(index).integers(0, 3, (60, 70 + 9 * index), dtype=np.uint8)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"Blocks, {index}."}]
        samples.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    (folder / "samples.json").write_text(json.dumps(samples))
    names = [name for name in dir(minidata) if name in DATA]
    minidata.build(folder / "DATA", *names)


DATA = {
    "docvqa_val",
    "ocrbench",
    "chartqa",
    "textvqa",
    "ai2d",
    "scienceqa_img",
    "gqa",
    "seed",
    "mmbench",
    "mme",
    "vqav2",
    "pope",
    "vizwiz",
}
SMALL_STAGE0 = ["model.vision_tower=tower", "data.images=flat", "data.image_size=56", "data.held_out=2"]
SMALL_STAGE0 += ["data.workers=0", "optimization.global_batch=2", "schedule.max_steps=1", "loss.max_pad=3"]
SMALL_STAGE0 += ["loss.crf_samples=20", "loss.images_per_jitter=null", "monitoring.images_every=0"]
SMALL_RUN = ["data.max_length=2000", "data.workers=0", "data.labels=answers", "data.template=plain"]
SMALL_RUN += ["optimization.global_batch=2", "optimization.micro_batch=2", "optimization.max_steps=1"]
SMALL_RUN += ["optimization.precision=fp32", "optimization.checkpoint_activations=false"]
SMALL_PARTS = ["model.language_model=language-model", "model.vision_tower=tower", "model.slice_separator_id=5"]
SMALL_PARTS += [
    "model.template=vicuna",
    "model.row_separator_id=6",
    "model.projector.query_grid=2",
    "model.projector.num_attention_heads=2",
]


def smaller_training(arguments: list[str]) -> list[str]:
    """Return the overrides that make a `train run` small."""
    recipe, overrides = arguments[2], arguments[3:]
    if recipe.endswith("upsampler"):
        return [*arguments, *SMALL_STAGE0]
    sources = [f"data.train.{index}.path=samples.json" for index in range(2)]
    sources += [f"data.train.{index}.images=flat" for index in range(2)]
    named = any(override.startswith("data.train.1=") for override in overrides)
    parts = SMALL_PARTS if recipe.endswith("align") else []
    if any("unshuffle_factor=8" in override for override in overrides):
        parts = [*parts, "model.projector.unshuffle_factor=4"]  # no more than the patches along a side
    return [*arguments, *SMALL_RUN, *parts, *(source for source in sources if named or ".1." not in source)]


RULES: list[tuple[str, Callable[[list[str]], list[str]]]] = [
    ("train run", smaller_training),
    ("train plan", list),
    ("train sweep", list),
    ("data check", lambda arguments: ["data", "check", "samples.json", "--images", "flat"]),
    (
        "eval run",
        lambda arguments: [*arguments, "--limit", "2", "--beams", "1", "--max-new-tokens", "2", "--workers", "1"],
    ),
    ("ask", lambda arguments: [*arguments, "--max-new-tokens", "4"]),
    ("explain", list),
    ("probe activation", list),
    ("probe levels --count", lambda arguments: [*arguments, "--count", "8"]),
    ("probe levels --images", lambda arguments: [*arguments, "--images", "images"]),
    ("upsampler quality", lambda arguments: [*arguments, "--images", "flat", "--limit", "2"]),
    (
        "experiments.ablation",
        lambda arguments: [
            *arguments,
            *"--steps 1 --pages 2 --held-out 2 --batch 2 --seeds 0 --rows mlp hiwin-1".split(),
        ],
    ),
]


def toy_arguments(command: str) -> list[str]:
    """Return the arguments of a command at toy size, without `llava-uhd` or `python -m`.

    Raises:
        ValueError: the page has a command that no rule knows.
    """
    words = shlex.split(command)
    words = words[1:] if words[0] == "llava-uhd" else words[2:]
    for beginning, change in RULES:
        if " ".join(words).startswith(beginning):
            changed = change(words)
            if "--masks" in changed:
                changed = [*changed, "--images", "flat", "--masks", "masks"]
            return [str(ROOT / word) if word.startswith("examples/") else word for word in changed]
    raise ValueError(f"no rule makes this command small: {command}")


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Change to a folder, and back."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def execute(command: str) -> None:
    """Execute a command at toy size in this process.

    Raises:
        Exception: the command fails.
    """
    arguments = toy_arguments(command)
    if arguments[0] == "experiments.ablation":
        from experiments.ablation.__main__ import main

        main(arguments[1:])
        return
    from llava_uhd.cli import app

    app(args=arguments, standalone_mode=False)


def main() -> None:
    """Execute all commands; the first that fails ends the script."""
    sys.path.insert(0, str(ROOT))
    chosen = [command for command in commands() if re.search(sys.argv[1] if len(sys.argv) > 1 else "", command)]
    with tempfile.TemporaryDirectory() as folder, working_directory(Path(folder)):
        write_toys(Path(folder))
        for command in chosen:
            print(f"$ {command}", flush=True)
            execute(command)
    print(f"{len(chosen)} commands")


if __name__ == "__main__":
    main()
