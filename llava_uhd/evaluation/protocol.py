"""The protocol: all that a number depends on, written into every result."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from .benchmarks import Benchmark
from .generation import Answerer
from .samples import Sample, fingerprint

Protocol = dict[str, Any]


def model_fingerprint(model: torch.nn.Module) -> str:
    """Short hash of all weights, by name, in their own precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def describe_protocol(
    benchmark: Benchmark, samples: Sequence[Sample], answerer: Answerer, model_name: str, seed: int, limit: int | None
) -> Protocol:
    """Gather what was asked, how, of which model, with which software.

    Neither time nor the number of ranks is part of it: they must not change a result.
    """
    example = answerer.batches.prompt(samples[0]).replace(samples[0].prompt, "{question}")
    options = asdict(answerer.options)
    if options["max_slices"] is None:
        options["max_slices"] = answerer.processor.image_processor.max_slices
    return {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "limit": limit,
        "data": fingerprint(list(samples)),
        "prompt": example,
        "suffix": benchmark.suffix,
        **options,
        "do_sample": False,
        "seed": seed,
        "model": model_name,
        "model_fingerprint": model_fingerprint(answerer.model),
        "dtype": str(answerer.model.dtype).removeprefix("torch."),
        "device": answerer.model.device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("llava-uhd", "torch", "transformers", "tokenizers", "pillow")},
        },
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields in which two protocols differ, with both values."""
    names = dict.fromkeys([*old, *new])
    return [f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
