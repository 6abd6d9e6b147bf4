"""The counts of `benchmarks/accelerator.py`."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import torch

from llava_uhd.benchmark.sizes import Sizes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accelerator.py"
SPEC = importlib.util.spec_from_file_location("accelerator_script", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
accelerator = importlib.util.module_from_spec(SPEC)
sys.modules["accelerator_script"] = accelerator
SPEC.loader.exec_module(accelerator)

SMALL = Sizes(
    levels=(1, 2), query_grid=2, hidden=128, vision_hidden=64, vision_layers=3, vision_intermediate=128,
    vision_heads=1, view_size=56, text_layers=1, vocabulary=512,
)  # fmt: skip


def test_views_and_allocations_are_no_launches():
    a = torch.ones(4, 4)
    assert accelerator.launches(lambda: (a.t().view(16) if a.t().is_contiguous() else a.view(16), torch.empty(3))) == 0
    assert accelerator.launches(lambda: torch.relu(a @ a) + 1) == 3


def test_layers_add_launches_operations_and_bytes():
    parts = accelerator.count(SMALL, (168, 112))
    deeper = accelerator.count(replace(SMALL, vision_layers=5, text_layers=2), (168, 112))
    for index in (0, 2, 3):  # encoder, prefill, one new token
        assert deeper[index].launches > parts[index].launches > 0
        assert deeper[index].operations > parts[index].operations > 0
        assert deeper[index].bytes > parts[index].bytes > 0
    assert deeper[1] == parts[1]
    assert parts[1].launches > 0
