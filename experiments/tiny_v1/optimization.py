"""Optimizers, learning rate schedule, answer loss and log of all stages."""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .muon import Muon
from .samples import IGNORED


def mixed_precision(device: str) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies in it: a CPU that only imitates it is 25 times slower."""
    native = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device, torch.bfloat16, enabled=native)


def build_optimizers(
    modules: Iterable[nn.Module], muon_rate: float, adam_rate: float, head: nn.Module | None = None
) -> list[torch.optim.Optimizer]:
    """Muon for the weights of linear layers, AdamW for all else: embeddings, norms, biases, convolutions, the head."""
    matrices: dict[int, nn.Parameter] = {}
    others: dict[int, nn.Parameter] = {}
    for module in modules:
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_matrix = (
                        isinstance(layer, nn.Linear)
                        and layer is not head
                        and name == "weight"
                        and min(parameter.shape) >= 64
                    )
                    (matrices if is_matrix else others)[id(parameter)] = parameter
    muon = Muon(list(matrices.values()), rate=muon_rate, weight_decay=0.01)
    adam = torch.optim.AdamW(list(others.values()), lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def set_rate(optimizers: list[torch.optim.Optimizer], progress: float, warmed_up: float) -> None:
    """Sets the rate: a cosine from the peak down to 2 % of it, times a linear warm-up.

    Args:
        optimizers: optimizers whose learning rates are set.
        progress: progress along the cosine, from 0 to 1.
        warmed_up: progress of the warm-up; 1 and more after its end.
    """
    factor = min(warmed_up, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def optimize(loss: torch.Tensor, optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter]) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def answer_loss(hidden: torch.Tensor, labels: torch.Tensor, head: nn.Linear) -> tuple[torch.Tensor, int, int]:
    """Mean loss over the answers' tokens, and how many of how many answers every token of is the likeliest.

    Args:
        hidden: (B, length, E), the decoder's output.
        labels: (B, length), not yet shifted.
        head: language model head.
    """
    targets = labels[:, 1:]
    asked = targets != IGNORED
    logits = head(hidden[:, :-1][asked]).float()
    loss = F.cross_entropy(logits, targets[asked])
    right = torch.ones_like(asked)
    right[asked] = logits.detach().argmax(dim=-1) == targets[asked]
    starts = asked & ~F.pad(asked, (1, 0))[:, :-1]
    answer = starts.flatten().cumsum(0)[asked.flatten()] - 1
    num_answers = int(starts.sum())
    wrong = torch.zeros(num_answers).index_add_(0, answer.cpu(), (~right[asked]).float().cpu())
    return loss, int((wrong == 0).sum()), num_answers


class Log:
    """Appends one JSON object a line to a file and shows it."""

    def __init__(self, path: Path, stage: str):
        self.path, self.stage, self.start = path, stage, time.time()

    def write(self, **values: Any) -> None:
        rounded = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()
        }
        line = json.dumps({"stage": self.stage, "seconds": round(time.time() - self.start), **rounded})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
