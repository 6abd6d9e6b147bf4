"""Muon (Jordan et al. 2024) for matrices, AdamW for everything else, as one optimizer.

Muon is momentum whose matrices are brought near the closest orthogonal one before each step. PyTorch's own iterates
in bfloat16, which a CPU without it imitates, and one matrix at a time. This one iterates over all matrices of a shape
at once, and in float32 on such a CPU, where it is twenty times faster.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

# Of the quintic iteration, chosen by its author for a steep slope at zero: singular values end between 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95
SMALLEST_SIDE = 64  # of a matrix for Muon


def has_bfloat16(device: str) -> bool:
    """Return whether a device multiplies in bfloat16: a CPU that imitates it is 25 times slower."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Bring singular values near one and keep the vectors: (N, rows, columns) to the same."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if has_bfloat16(x.device.type):
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)


def parameter_groups(
    modules: Iterable[nn.Module],
    muon_rate: float,
    adam_rate: float,
    head: nn.Module | None = None,
    patch_embedding: nn.Conv2d | None = None,
) -> list[dict[str, Any]]:
    """Return two groups of what is trained: weights of linear layers, and embeddings, norms, biases, convolutions.

    Args:
        modules: trained modules; parameters without gradients are left out.
        muon_rate: learning rate of the first group.
        adam_rate: learning rate of the second group.
        head: linear layer that belongs to the second group, as heads do.
        patch_embedding: convolution that belongs to the first group. Its kernels do not overlap, so that it is a
            linear layer; the pixels of a patch are so alike that AdamW learns brightness for a long time, and strokes
            only afterwards.
    """
    matrices: dict[int, nn.Parameter] = {}
    others: dict[int, nn.Parameter] = {}
    for module in modules:
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_linear = isinstance(layer, nn.Linear) and layer is not head
                    is_matrix = layer is patch_embedding or (is_linear and min(parameter.shape) >= SMALLEST_SIDE)
                    (matrices if is_matrix and name == "weight" else others)[id(parameter)] = parameter
    return [
        {"params": list(matrices.values()), "lr": muon_rate, "weight_decay": 0.01, "muon": True},
        {"params": list(others.values()), "lr": adam_rate, "weight_decay": 0.0, "muon": False},
    ]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with `muon`, whose steps are as long as those of AdamW (Liu et al. 2025); AdamW for the others.

    Args:
        groups: groups of `parameter_groups`.
        betas: coefficients of AdamW.
        eps: epsilon of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8):
        super().__init__([group for group in groups if group["params"]], {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        for group in self.param_groups:
            learned = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(group, learned)
            else:
                self._adamw(group, learned)

    def _muon(self, group: dict[str, Any], learned: list[torch.Tensor]) -> None:
        of_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        for matrix in learned:
            of_shape[matrix.shape].append(matrix)
        for matrices in of_shape.values():
            updates = orthogonalize(torch.stack([self._nesterov(matrix).flatten(1) for matrix in matrices]))
            length = 0.2 * max(updates.shape[1:]) ** 0.5 * group["lr"]
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(matrix), alpha=length)

    def _nesterov(self, matrix: torch.Tensor) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["mean"] = torch.zeros_like(matrix)
        state["mean"].lerp_(matrix.grad, 1 - MOMENTUM)
        return torch.lerp(matrix.grad, state["mean"], MOMENTUM)

    def _adamw(self, group: dict[str, Any], learned: list[torch.Tensor]) -> None:
        for parameter in learned:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in learned]
        adamw(
            learned,
            [parameter.grad for parameter in learned if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
