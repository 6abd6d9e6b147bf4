"""Run the HTTP server until a stop signal, then finish running requests."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from .connections import KEEP_ALIVE, ConnectionLimits, limited_protocol
from .memory import freeze_objects, trim_while_running


class _Server(uvicorn.Server):
    """Says where it listens once it does: the port may have been chosen by the system."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None]):
        super().__init__(config)
        self.announce = announce
        self.trimming: asyncio.Task | None = None

    async def startup(self, *args: Any, **kwargs: Any) -> None:
        await super().startup(*args, **kwargs)
        if self.started:
            self.trimming = asyncio.create_task(trim_while_running(lambda: self.server_state.total_requests))
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, *args: Any, **kwargs: Any) -> None:
        if self.trimming is not None:
            self.trimming.cancel()
        await super().shutdown(*args, **kwargs)


def run_server(
    app: FastAPI,
    host: str,
    port: int,
    grace: float,
    announce: Callable[[str], None],
    connections: ConnectionLimits | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then refuse connections, finish running requests, and return.

    Args:
        app: see `create_app`.
        host: address to listen on.
        port: 0 for any that is free.
        grace: seconds that running requests may take once the signal has come.
        announce: told the URL when requests are taken.
        connections: limits of connections.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=limited_protocol(connections or ConnectionLimits()),
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(grace) + 1,
    )
    server = _Server(config, announce)

    def stop(*_: object) -> None:
        # Before uvicorn listens to signals itself, and when it raises one again at its end: that is no failure.
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    freeze_objects()
    try:
        server.run()
    except SystemExit as error:  # uvicorn's own exit where it cannot listen; its log has said why
        raise OSError(f"the server could not listen on {host} port {port}") from error
    if not server.started:
        raise OSError(f"the server could not listen on {host} port {port}")
