"""The folded projector over two processes: gradients are those of one process over both shares of the views."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llava_uhd.model.pyramid import JointBilateralUpsampler
from tests.model.test_hiwin_fused import build, view

SHAPE = (5, 6)


def shares() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Features, pixels and the direction of the loss, for each process."""
    torch.manual_seed(7)
    return [(*view(SHAPE), torch.randn(2, 9, 32)) for _ in range(2)]


def expected_gradients() -> dict[str, torch.Tensor]:
    projector = build()
    for features, pixels, direction in shares():
        (projector(features, pixels) * direction / 2).sum().backward()
    return {name: p.grad for name, p in projector.named_parameters() if p.grad is not None}


def work(rank: int, kind: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    projector = build()
    if kind == "ddp":
        model = DistributedDataParallel(projector)
    else:
        mesh = dist.init_device_mesh("cpu", (2,))
        for module in projector.modules():
            if isinstance(module, JointBilateralUpsampler):
                fully_shard(module, mesh=mesh)
        model = fully_shard(projector, mesh=mesh)
        assert isinstance(projector.attention.k_proj.weight, DTensor)
    features, pixels, direction = shares()[rank]
    for _ in range(2):  # twice: a parameter without a gradient would be noticed at the second step
        model.zero_grad()
        (model(features, pixels) * direction).sum().backward()
    expected = expected_gradients()
    for name, parameter in projector.named_parameters():
        if parameter.requires_grad and "k_proj.bias" not in name:
            gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
            error = (gradient - expected[name]).norm() / (expected[name].norm() + 1e-3)
            assert error < 1e-2 if "range_" in name else error < 1e-4, f"{name}: {error}"
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind, port", [("ddp", 29521), ("fsdp2", 29522)])
def test_gradients_over_two_processes(kind, port):
    multiprocessing.spawn(work, args=(kind, port), nprocs=2)
