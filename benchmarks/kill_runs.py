"""The kinds of runs that `kill_operations.py` kills, and whose files `damage.py` damages."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "finetune_own_data")]


@dataclass
class Run:
    """A kind of run.

    Attributes:
        start: runs to its end below a folder; raises ValueError where its product is there already.
        product: contents of the folder that must be equal, by name.
    """

    start: Callable[[Path], None]
    product: Callable[[Path], dict[str, bytes]]


def files_of(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Return the files below a folder that match one of the patterns, by name."""
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(found)}


def steps_of_log(file: Path) -> bytes:
    """Return steps and losses of a log, without what depends on the clock and without the summaries of attempts."""
    kept = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "epoch")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line for line in lines if "train_runtime" not in line]
    return json.dumps([{key: line[key] for key in kept if key in line} for line in lines]).encode()


def training(folder: Path, lora: bool) -> Run:
    """Three steps of a small model on 8 generated images, with a checkpoint at each, two of them kept."""
    from make_data import write
    from transformers import AutoTokenizer

    from llava_uhd import LlavaUhdProcessor
    from llava_uhd.training.recipe import build_recipe
    from llava_uhd.training.tuning import train_stage
    from tests.conftest import build_model, small_config
    from tests.golden import GOLDENS

    write(folder, train=8, test=2)
    config, tokenizer = small_config(), AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    build_model(config).save_pretrained(folder / "model")
    LlavaUhdProcessor.from_config(config, tokenizer, "qwen").save_pretrained(folder / "model")
    source = {"path": str(folder / "train.jsonl"), "images": str(folder / "images")}
    recipe: dict[str, Any] = {
        "stage": "instruct",
        "model": {"start": str(folder / "model")},
        "data": {"train": [source], "held_out": [source], "template": "qwen", "workers": 0},
        "optimization": {
            "learning_rates": {} if lora else {"projector": 1e-3},
            "global_batch": 4,
            "micro_batch": 4,
            "max_steps": 3,
            "epochs": 2,
            "precision": "fp32",
            "checkpoint_activations": False,
        },
        "watch": {"save_every": 1, "log_every": 1, "eval_every": 2, "keep": 2},
    }
    if lora:
        recipe |= {"lora": {"rank": 2}}
        recipe["optimization"]["learning_rates"] = {"language_model": 1e-3}

    def start(place: Path) -> None:
        train_stage(build_recipe({**recipe, "out": str(place / "out")}))

    def product(place: Path) -> dict[str, bytes]:
        return {**files_of(place / "out" / "model", "**/*"), "log": steps_of_log(place / "out" / "log.jsonl")}

    return Run(start, product)


def upsampler(folder: Path, objective: str) -> Run:
    """Four steps of stage 0 on small images, with a state at every second."""
    from PIL import Image
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from llava_uhd.training.recipe import build_recipe
    from llava_uhd.training.upsampler.training import train_upsampler

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=56, patch_size=14)).save_pretrained(folder / "tower")
    (folder / "images").mkdir()
    for index in range(6):
        Image.effect_noise((120, 90), 40 + index).convert("RGB").save(folder / "images" / f"{index}.png")
    recipe = {
        "stage": "upsampler",
        "vision_tower": str(folder / "tower"),
        "images": str(folder / "images"),
        "objective": objective,
        "held_out": 1,
        "image_size": 56,
        "max_pad": 6,
        "batch": 2,
        "epochs": 2,
        "projection": 5,
        "crf_samples": 20,
        "save_every": 2,
        "log_every": 1,
        "workers": 0,
    }

    def start(place: Path) -> None:
        train_upsampler(build_recipe({**recipe, "out": str(place / "out")}))  # type: ignore[arg-type]

    def product(place: Path) -> dict[str, bytes]:
        found = files_of(place / "out", "upsampler.safetensors", "quality.json")
        return {**found, "log": steps_of_log(place / "out" / "log.jsonl")}

    return Run(start, product)


def conversion(folder: Path, to_released: bool) -> Run:
    """Convert a small original checkpoint of two shards, or the built-in model back to that layout."""
    from llava_uhd.checkpoints.convert import Options, convert_to_hf
    from llava_uhd.checkpoints.export import convert_to_original
    from llava_uhd.checkpoints.sources import Parts
    from llava_uhd.checkpoints.variants import Overrides
    from tests.checkpoints.layouts import write_original, write_tower_config

    source, tower = write_original(folder / "in"), write_tower_config(folder / "tower")
    parts, options = Parts(str(source), vision_tower=str(tower)), Options(Overrides(projector_heads=2))
    if to_released:
        convert_to_hf(parts, folder / "hf", options)

    def start(place: Path) -> None:
        if to_released:
            convert_to_original(folder / "hf", place / "out")
        else:
            convert_to_hf(parts, place / "out", options)

    return Run(start, lambda place: files_of(place / "out", "**/*"))


def evaluation(folder: Path) -> Run:
    """Four questions about generated documents, answered one at a time by the built-in model."""
    from llava_uhd.evaluation.pipeline import RunOptions, evaluate_task
    from llava_uhd.evaluation.tasks import TASKS
    from llava_uhd.loading import load

    model, processor = load("tiny", "cpu")

    def start(place: Path) -> None:
        options = RunOptions(batch_size=1, limit=4, max_new_tokens=4, max_slices=1)
        evaluate_task(TASKS["synthdoc"], model, processor, None, place / "out", options, "tiny")

    names = ("predictions.jsonl", "result.json", "protocol.json", "report.md", "report.html")
    return Run(start, lambda place: files_of(place / "out", *names))


def manifest(folder: Path) -> Run:
    """The manifest of a small set of training data."""
    from make_data import write

    from llava_uhd.training.data.check import check_source
    from llava_uhd.training.recipe import Source

    write(folder, train=8, test=1)

    def start(place: Path) -> None:
        source = Source(str(folder / "train.jsonl"), images=str(folder / "images"))
        check_source(source, manifest=place / "out" / "manifest.jsonl")

    return Run(start, lambda place: files_of(place / "out", "*.jsonl"))


RUNS: dict[str, Callable[[Path], Run]] = {
    "train": lambda folder: training(folder, lora=False),
    "lora": lambda folder: training(folder, lora=True),
    "upsampler": lambda folder: upsampler(folder, "reconstruction"),
    "closer_look": lambda folder: upsampler(folder, "closer_look"),
    "convert": lambda folder: conversion(folder, to_released=False),
    "export": lambda folder: conversion(folder, to_released=True),
    "evaluate": evaluation,
    "manifest": manifest,
}
