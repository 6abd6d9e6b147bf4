"""The measurements, most important questions first, each with the time that it may take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import transformers

from llava_uhd.benchmark.measure import machine

from . import language, training, vision
from .setting import Cells, Setting, copy_rate

# Seconds of the whole command on an accelerator, and of a dry run.
BUDGET = 470.0
SMALL_BUDGET = 285.0
SECTIONS = ("Device", "Vision path", "Language model and serving", "Training", "Evaluation and input")


@dataclass(frozen=True)
class Measurement:
    """One measurement in a process of its own.

    Attributes:
        name: name of its log file.
        section: section of the table.
        limit: seconds until its process is killed, start and warm-up included.
        rows: function that yields the cells of its rows.
    """

    name: str
    section: str
    limit: float
    rows: Callable[[Setting], Iterator[Cells]]


def rates(setting: Setting) -> Iterator[Cells]:
    """Rate of a matrix product and of a copy, and what they were measured on."""
    rate = setting.rate()
    yield {"measured": "matrix product", "TFLOP/s": rate / 1e12}
    yield {
        "measured": "copy within the device's memory",
        "GB/s": copy_rate(setting) / 1e9,
        "machine": {**machine(setting.device), "transformers": transformers.__version__},
    }


def _vision(views: int, limits: tuple[float, float, float, float]) -> list[Measurement]:
    """Measurements at some number of views; limits of eager, graph, compiled projector and compiled whole path."""
    rows = {
        f"vision-{views}-eager": partial(vision.eager, views=views),
        f"vision-{views}-graph": partial(vision.graph, views=views),
        f"projector-{views}-compiled": partial(vision.compiled, views=views, name="projector"),
        f"vision-{views}-compiled": partial(vision.compiled, views=views, name="vision"),
    }
    return [
        Measurement(name, "Vision path", limit, function)
        for (name, function), limit in zip(rows.items(), limits, strict=True)
    ]


def plan() -> list[Measurement]:
    """Return all measurements in the order in which they run: what matters most comes first."""
    text, train, rest = SECTIONS[2:]
    return [
        Measurement("rates", "Device", 15, rates),
        *_vision(7, (26, 15, 34, 57)),
        Measurement("generate", text, 28, language.generate),
        Measurement("stage-2", train, 26, training.stage_2),
        Measurement("stage-1", train, 18, training.stage_1),
        *[
            Measurement(f"engine-{requests}", text, limit, partial(language.serve, requests=requests))
            for requests, limit in ((1, 14), (8, 15), (32, 20))
        ],
        Measurement("lora", train, 17, partial(training.lora, quantized=False)),
        Measurement("qlora", train, 20, partial(training.lora, quantized=True)),
        Measurement("stage-0", train, 11, training.stage_0),
        Measurement("eval", rest, 22, language.evaluation),
        Measurement("input", rest, 9, training.input_pipeline),
        *_vision(1, (12, 9, 12, 22)),
        *_vision(10, (20, 11, 14, 23)),
    ]


def device_of(name: str | None) -> torch.device:
    """Return the device to measure: the named one, or CUDA."""
    return torch.device(name or "cuda:0")
