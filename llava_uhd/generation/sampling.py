"""Sampling parameters of a request. Imports no torch."""

from dataclasses import dataclass

# Longest answer where nothing else is asked for. Before `small` names the largest of twelve numbers, it notes all of
# them in some 250 tokens, which decoding leaves out.
MAX_NEW_TOKENS = 512
MAX_STOPS = 4
MAX_STOP_LENGTH = 1000  # characters


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters and stop conditions of a request.

    Attributes:
        max_new_tokens: maximum number of new tokens; None takes the engine's default, as far as the context allows.
        temperature: sampling temperature; below 1e-5 decoding is greedy.
        top_p: cumulative probability of the most likely tokens to sample from.
        seed: seed of the sampler, which makes a draw repeatable whatever else is in the batch; None for a random one.
        stop: strings that end the answer and are not part of it.

    Raises:
        ValueError: a value is out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"the answer needs room for at least 1 token, got {self.max_new_tokens}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be from 0 to 2, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit 64 bits, got {self.seed}")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            number = len(self.stop)
            raise ValueError(f"at most {MAX_STOPS} stop strings are taken, none of them empty; got {number}")
        if (longest := max(map(len, self.stop), default=0)) > MAX_STOP_LENGTH:
            raise ValueError(f"a stop string may have {MAX_STOP_LENGTH} characters; one has {longest}")
