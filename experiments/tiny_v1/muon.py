"""Muon (Jordan et al. 2024): momentum whose matrices are brought near the closest orthogonal one before each step.

PyTorch's own iterates in bfloat16, which a CPU without it imitates, and one matrix at a time. This one iterates in
float32 over all matrices of a shape at once; on such a CPU it is twenty times faster.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

# Of the quintic iteration, chosen by its author for a steep slope at zero: singular values end between 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Singular values brought near one, vectors kept: (N, rows, columns) to the same."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if wide else x.transpose(1, 2)


class Muon(torch.optim.Optimizer):
    """Muon for matrices only. Steps are as long as those of AdamW at the same learning rate (Liu et al. 2025)."""

    def __init__(self, matrices: Sequence[torch.Tensor], rate: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    of_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in of_shape.items():
                gradients = [self._nesterov(matrix, group["momentum"]) for matrix in matrices]
                updates = orthogonalize(torch.stack(gradients))
                length = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=length)

    def _nesterov(self, matrix: torch.Tensor, momentum: float) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["mean"] = torch.zeros_like(matrix)
        state["mean"].lerp_(matrix.grad, 1 - momentum)
        return torch.lerp(matrix.grad, state["mean"], momentum)
