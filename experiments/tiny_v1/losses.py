"""Loss of the answers."""

import torch
from torch import nn
from torch.nn import functional as F

from .samples import IGNORED


def answer_loss(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Linear, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, int, int]:
    """Mean loss over the answers' tokens, and how many of how many answers every token of is the likeliest.

    Args:
        hidden: (B, length, E), the decoder's output.
        labels: (B, length), not yet shifted.
        head: language model head.
        weights: (B, length), of the labels in the mean; all alike by default.
    """
    targets = labels[:, 1:]
    asked = targets != IGNORED
    logits = head(hidden[:, :-1][asked]).float()
    if weights is None:
        loss = F.cross_entropy(logits, targets[asked])
    else:
        weighted = weights[:, 1:][asked]
        loss = (F.cross_entropy(logits, targets[asked], reduction="none") * weighted).sum() / weighted.sum()
    right = torch.ones_like(asked)
    right[asked] = logits.detach().argmax(dim=-1) == targets[asked]
    starts = asked & ~F.pad(asked, (1, 0))[:, :-1]
    answer = starts.flatten().cumsum(0)[asked.flatten()] - 1
    num_answers = int(starts.sum())
    wrong = torch.zeros(num_answers).index_add_(0, answer.cpu(), (~right[asked]).float().cpu())
    return loss, int((wrong == 0).sum()), num_answers
