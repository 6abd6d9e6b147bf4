"""Tile-by-tile 2x upsampling against its definition: a bicubic map, then a sum over 49 neighbors."""

import pytest
import torch
from torch.nn import functional as F

from llava_uhd.model import upsample_2x as module
from llava_uhd.model.upsample_2x import upsample_2x


def by_definition(source: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    shape = kernels.shape[-2:]
    upsampled = F.interpolate(source, size=tuple(shape), mode="bicubic", align_corners=False)
    padded = F.pad(upsampled, (3,) * 4, mode="reflect" if min(shape) > 3 else "replicate")
    neighbors = F.unfold(padded, 7).view(*source.shape[:2], 49, *shape)
    return (neighbors * kernels[:, None]).sum(dim=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (4, 4), (5, 9), (13, 2), (8, 8)])
@pytest.mark.parametrize("piece", [1, 2**21])
def test_equals_its_definition(shape, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", {"cpu": piece})
    torch.manual_seed(0)
    source = torch.randn(2, 3, *shape, dtype=torch.double)
    kernels = torch.randn(2, 49, 2 * shape[0], 2 * shape[1], dtype=torch.double)
    torch.testing.assert_close(upsample_2x(source, kernels), by_definition(source, kernels))


@pytest.mark.parametrize("shape", [(1, 3), (3, 5)])
def test_gradients(shape):
    torch.manual_seed(0)
    source = torch.randn(2, 3, *shape, dtype=torch.double, requires_grad=True)
    kernels = torch.randn(2, 49, 2 * shape[0], 2 * shape[1], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(upsample_2x, (source, kernels), fast_mode=True)


def test_backward_keeps_neither_49_maps_nor_an_unfolded_one():
    source, kernels = torch.randn(1, 64, 16, 16, requires_grad=True), torch.randn(1, 49, 32, 32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        out = upsample_2x(source, kernels)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) < 4 * out.nbytes


def test_what_inference_mode_left_behind_serves_training():
    source, kernels = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(1, 49, 10, 10, requires_grad=True)
    module.sliding_matrices.cache_clear()
    with torch.inference_mode():
        upsample_2x(source, kernels)
    upsample_2x(source, kernels).sum().backward()
    assert source.grad is not None and kernels.grad is not None
