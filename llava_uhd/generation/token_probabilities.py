"""Probabilities of generated tokens, recorded while `generate` runs."""

import torch
from transformers import LogitsProcessor


class TokenProbabilities(LogitsProcessor):
    """Record the probability of every generated token without keeping the logits of every step.

    A step's logits are kept until the next step shows which token was chosen. For greedy decoding and sampling; beams
    change rows between steps, so use their scores instead.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []
        self._log_probabilities: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, vocabulary) unchanged."""
        if self._log_probabilities is not None:
            self._record(input_ids[:, -1])
        self._log_probabilities = scores.float().log_softmax(dim=-1)
        return scores

    def finish(self, new_tokens: torch.Tensor, end_ids: frozenset[int]) -> list[list[float]]:
        """Return the probabilities of each row's tokens up to its end token.

        Args:
            new_tokens: (B, T) generated tokens; those after a row's end token are padding.
            end_ids: token ids that end an answer.
        """
        self._record(new_tokens[:, -1])
        self._log_probabilities = None
        rows = torch.stack(self._steps, dim=1).exp().tolist()
        return [row[: answer_length(tokens, end_ids)] for row, tokens in zip(rows, new_tokens.tolist(), strict=True)]

    def _record(self, tokens: torch.Tensor) -> None:
        assert self._log_probabilities is not None
        tokens = tokens.to(self._log_probabilities.device)
        self._steps.append(self._log_probabilities.gather(1, tokens[:, None])[:, 0])


def answer_length(tokens: list[int], end_ids: frozenset[int]) -> int:
    """Return the number of tokens up to the first end token, which counts."""
    return next((place + 1 for place, token in enumerate(tokens) if token in end_ids), len(tokens))
