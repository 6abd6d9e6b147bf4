"""Precision of the projector's own computation, whatever autocast is on around it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def matmul_dtype(features: torch.Tensor) -> torch.dtype:
    """Dtype of the weighted sums and of their product with the value matrices: that of the features, float32 on a CPU.

    The maps before them stay float32: in bf16 the error would exceed that of the formula in bf16. Few CPUs multiply
    half precision faster than float32; most only emulate it.
    """
    device = features.device.type
    if device == "cpu":
        return torch.float32
    has_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if has_autocast else features.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which nothing is autocast; devices such as meta have no autocast to turn off."""
    return (
        torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()
    )
