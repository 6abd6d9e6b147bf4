"""Requests of the engine: their events, deadline and cancellation, and the errors that end them."""

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..generation.result import Result, Timings
from ..generation.sampling import Sampling

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "EngineBusy",
    "EngineClosed",
    "Event",
    "Generation",
    "Result",
    "Sampling",
    "Timings",
]


class EngineBusy(Exception):
    """The queue is full.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine is shutting down and accepts no more requests."""


class DeadlineExceeded(Exception):
    """The request was not finished within its deadline."""


class Cancelled(Exception):
    """The request was cancelled by its client."""


Event = str | Result | Exception


@dataclass(eq=False)
class Generation:
    """A request in the engine. Read it once: either piece by piece with `stream`, or at the end with `result`.

    Attributes:
        sampling: sampling parameters and stop conditions.
        deadline: deadline on the clock of `time.monotonic`.
        emit: callback for events, called on the engine's threads: pieces of text, and last a `Result` or an exception.
        arrived: time of arrival on the same clock.
        cancelled: True once `cancel` was called.
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
        """Cancel the request: it leaves the queue, or ends after the token that is being computed."""
        self.cancelled = True

    def overdue(self) -> Exception | None:
        """Return the error that ends the request now; None if it may continue."""
        if self.cancelled:
            return Cancelled("the request was cancelled")
        return self.deadline_error() if time.monotonic() > self.deadline else None

    def deadline_error(self) -> DeadlineExceeded:
        """Return the error of a request past its deadline."""
        allowed, over = self.deadline - self.arrived, time.monotonic() - self.deadline
        return DeadlineExceeded(f"the answer was not ready within {allowed:.0f} s ({over:.1f} s over)")

    def events(self) -> Iterator[str | Result]:
        """Yield pieces of text as they are generated, then the result.

        Raises:
            ValueError: the request cannot be answered: an unreadable image, a prompt that is too long.
            DeadlineExceeded: the deadline is over.
            Cancelled: the request was cancelled.
        """
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Result):
                return

    def stream(self) -> Iterator[str]:
        """Yield pieces of text as they are generated; raises as `events`."""
        for event in self.events():
            if isinstance(event, str):
                yield event

    def result(self) -> Result:
        """Return the finished answer; raises as `events`."""
        *_, last = self.events()
        assert isinstance(last, Result)
        return last
