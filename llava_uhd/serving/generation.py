"""One request and what becomes of it: how it is sampled, the text as it comes, the result or the error at the end."""

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..confidence import Calibration, Confidence

MAX_STOPS = 4
MAX_STOP_LENGTH = 1000  # characters


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: longest answer; None for as much as the context leaves, up to the engine's own limit.
        temperature: 0, and what is below 1e-5, takes the most likely token (greedy).
        top_p: draw among the most likely tokens that together have this probability.
        seed: repeats a draw, whoever else is being answered; None for a new one.
        stop: strings that end the answer and are not part of it.

    Raises:
        ValueError: naming the value that is out of range.
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


class EngineBusy(Exception):
    """As many requests wait as may wait.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine is shutting down and takes no more requests."""


class DeadlineExceeded(Exception):
    """The request was not finished within its time."""


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Timings:
    """Times of a request in seconds: preprocessing, queueing, encoding, prefill, decoding.

    `first_token` and `total` count from the arrival of the request.
    """

    prepare: float = 0.0
    wait: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass
class Result:
    """A finished answer.

    Attributes:
        text: without special tokens, stop strings and white space around it.
        token_ids: as generated, the end token included.
        token_probabilities: probability of each token, by the softmax of its logits before temperature and top-p.
        finish_reason: `stop`, or `length` where `max_new_tokens` ended it.
        num_prompt_tokens: of the whole conversation, image tokens included.
        num_image_tokens: of all its images.
        num_cached_images: images whose features were known from an earlier request.
        timings: see `Timings`.
    """

    text: str
    token_ids: list[int]
    token_probabilities: list[float]
    finish_reason: str
    num_prompt_tokens: int
    num_image_tokens: int
    num_cached_images: int
    timings: Timings

    def confidence(self, calibration: Calibration | None) -> Confidence:
        """Return the confidence in the answer."""
        return Confidence.of(self.token_probabilities, calibration)


Event = str | Result | Exception


@dataclass(eq=False)
class Generation:
    """A request in the engine. Read it once: either piece by piece with `stream`, or at the end with `result`.

    Attributes:
        sampling: how the answer is drawn.
        deadline: on the clock of `time.monotonic`.
        emit: takes events, on the engine's threads: pieces of text, and last a `Result` or an exception.
    """

    sampling: Sampling
    deadline: float
    emit: Callable[[Event], None] | None = None
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        if self.emit is None:
            self.emit = self._events.put

    def cancel(self) -> None:
        """Give the request up: it leaves the queue, or ends after the token that is being computed."""
        self.cancelled = True

    def overdue(self) -> Exception | None:
        """Why the request must not go on, if so."""
        if self.cancelled:
            return Cancelled("the request was cancelled")
        return self.late() if time.monotonic() > self.deadline else None

    def late(self) -> DeadlineExceeded:
        """What to say once the deadline is over."""
        allowed, over = self.deadline - self.arrived, time.monotonic() - self.deadline
        return DeadlineExceeded(f"the answer was not ready within {allowed:.0f} s ({over:.1f} s over)")

    def events(self) -> Iterator[str | Result]:
        """Pieces of text as they come, then the result.

        Raises:
            ValueError: the request cannot be answered: an unreadable image, a prompt that is too long.
            DeadlineExceeded, Cancelled: see there.
        """
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Result):
                return

    def stream(self) -> Iterator[str]:
        """Pieces of text as they come; errors as `events`."""
        for event in self.events():
            if isinstance(event, str):
                yield event

    def result(self) -> Result:
        """The finished answer; errors as `events`."""
        *_, last = self.events()
        assert isinstance(last, Result)
        return last
