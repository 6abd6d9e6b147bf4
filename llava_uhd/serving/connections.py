"""Connections of the HTTP server: a limit on their number, and on the time each may take.

uvicorn closes a connection that is idle after a response, and no other. Here every state has its limit: a connection
whose request does not begin is closed, and so is one whose client does not read the response. At the limit of their
number, a new connection closes the one that has been idle for longest, so that silent connections do not keep others
out; connections with an unread request are exempt, and those younger than a second are closed last.
"""

import asyncio
import os
import select
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

RESERVED_FILES = 24  # for the model's files, images that are fetched, logs
SPARE_CONNECTIONS = 8
LARGEST_HEAD = 2**16  # bytes of a request's line and headers
KEEP_ALIVE = 15  # seconds; clients close a spare connection after 5 (httpx, openai), and a server must not be first
FREE_CHUNKS = 1_000  # of a body, whatever their size; each costs the event loop as much as any
MEAN_CHUNK = 128  # bytes of a chunk on average, beyond them
YOUNG = 1.0  # seconds in which an idle connection is likely to send its next request


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        number: most connections at a time, but for `SPARE_CONNECTIONS` on which /health can be asked, and which are
            used before an idle connection is closed that is younger than `YOUNG`.
        head_seconds: seconds in which a request must begin and its head arrive.
        request_seconds: seconds from the head to the last byte of the response.
    """

    number: int = 256
    head_seconds: float = 10.0
    request_seconds: float = 180.0


def affordable_connections(most: int) -> int:
    """Return a number of connections for which there are file descriptors, at most the one given."""
    if sys.platform == "win32":
        return most
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return most
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return max(min(most, limit - len(os.listdir(folder)) - SPARE_CONNECTIONS - RESERVED_FILES), 1)


class LimitedConnection(h11.Connection):
    """HTTP parser that refuses a body of very many very small chunks, which is parsed at one go."""

    def __init__(self, max_incomplete_event_size: int):
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.chunks = self.bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.chunks = self.bytes = 0
        elif isinstance(event, h11.Data):
            self.chunks += event.chunk_end  # of a body in chunks alone
            self.bytes += len(event.data)
            if self.chunks > FREE_CHUNKS and self.bytes < MEAN_CHUNK * self.chunks:
                raise h11.RemoteProtocolError(f"{self.chunks} chunks of {self.bytes} bytes together", 400)
        return event


class LimitedProtocol(H11Protocol):
    """One connection, its time limited."""

    def __init__(self, limits: ConnectionLimits, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conn = LimitedConnection(LARGEST_HEAD)
        self.limits = limits
        self.timer: asyncio.TimerHandle | None = None
        self.idle_since = self.loop.time()

    @property
    def is_idle(self) -> bool:
        """True if no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.number:
            self._make_room()
        self._start_timer(self.limits.head_seconds)

    def _make_room(self) -> None:
        """Close an idle connection for this one, or this one where there is none."""
        others = [each for each in self.connections if isinstance(each, LimitedProtocol) and each is not self]
        idle = without_unread(each for each in others if each.is_idle and not each.transport.is_closing())
        settled = [each for each in idle if self.loop.time() - each.idle_since > YOUNG]
        is_full = len(self.connections) > self.limits.number + SPARE_CONNECTIONS
        if candidates := settled or (idle if is_full else []):
            # One that never sent a request before one that is kept for the next.
            min(candidates, key=lambda each: (each.cycle is not None, each.idle_since)).transport.close()
        elif is_full:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        self._update_timer(before)

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        before = self.cycle
        self._stop_timer()  # idle from here on: uvicorn's own time limit
        super().on_response_complete()
        self._update_timer(before)

    def _update_timer(self, before: Any) -> None:
        """Limit the time of a request that has begun, or of a head that has not arrived."""
        if self.transport.is_closing():
            self._stop_timer()
        elif self.cycle is not before and not self.is_idle:
            self._start_timer(self.limits.request_seconds)
        elif self.is_idle and self.timer is None and self.timeout_keep_alive_task is None:
            self._start_timer(self.limits.head_seconds)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self.timer = self.loop.call_later(seconds, self._end)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _end(self) -> None:
        self.timer = None
        self.transport.abort()


def without_unread(connections: Iterable[LimitedProtocol]) -> list[LimitedProtocol]:
    """Return the connections on which nothing has arrived that the event loop has not read yet."""
    by_file = {each.transport.get_extra_info("socket").fileno(): each for each in connections}
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        for file in by_file:
            poll.register(file, select.POLLIN)
        for file, _ in poll.poll(0):
            del by_file[file]
    return list(by_file.values())


def limited_protocol(limits: ConnectionLimits) -> Any:
    """Return the protocol class of a server with these limits, as uvicorn's option `http` takes it."""
    return partial(LimitedProtocol, limits)
