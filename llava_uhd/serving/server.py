"""`llava-uhd serve`: the engine behind OpenAI's chat-completions API.

Routes: POST /v1/chat/completions; GET /v1/models; GET /health; GET /metrics (Prometheus); POST /load_model, which
`transformers chat` asks before it begins. Needs `pip install llava-uhd[serve]`.
"""

import asyncio
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..answering import Message
from .api import ChatRequest, Completion, check_model, parse_request, read_messages
from .engine import Engine
from .errors import ApiError, as_api_error, install_handlers
from .generation import Cancelled, Event, Generation, Result
from .metrics import Metrics
from .remote import ImageSource

log = logging.getLogger(__name__)

GRACE = 1.0  # seconds over the deadline after which a client is told even if the engine has not come to it
CLIENT_GONE = 499  # as nginx logs it; nobody reads the response
OPEN_ROUTES = ("/health", "/metrics")
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class ServerOptions:
    """What the server takes.

    Attributes:
        model_name: the name requests must ask for.
        api_key: asked for as a bearer token on every route but /health and /metrics; None for no key.
        max_body_bytes: of a request.
        max_images: of a request, over all its messages.
        body_timeout: seconds for a request's body to arrive.
        images: reads image URLs.
    """

    model_name: str
    api_key: str | None = None
    max_body_bytes: int = 20 * 2**20
    max_images: int = 16
    body_timeout: float = 30.0
    images: ImageSource = ImageSource()


class Listener:
    """The events of one request, brought from the engine's threads into the event loop."""

    def __init__(self, request: Request):
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    def emit(self, event: Event) -> None:
        self.loop.call_soon_threadsafe(self.queue.put_nowait, event)

    async def _gone(self) -> None:
        """Returns when the client hangs up. The body was read, so nothing else can arrive."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def events(self, generation: Generation) -> AsyncIterator[str | Result]:
        """Pieces, then the result; the request is cancelled if the client hangs up or nobody reads on.

        Raises:
            Cancelled: the client hung up.
            DeadlineExceeded: it is over, whatever keeps the engine.
            Exception: why there is no answer.
        """
        gone = asyncio.create_task(self._gone())
        try:
            while True:
                event = asyncio.create_task(self.queue.get())
                left = max(generation.deadline + GRACE - time.monotonic(), 0)
                await asyncio.wait({event, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    raise Cancelled("the client hung up") if gone.done() else generation.late()
                value = event.result()
                if isinstance(value, Exception):
                    raise value
                yield value
                if isinstance(value, Result):
                    return
        finally:
            gone.cancel()
            generation.cancel()  # of no account for one that has ended


async def read_body(request: Request, max_bytes: int, timeout: float) -> bytes:
    """The body, never more of it than allowed.

    Raises:
        ApiError: 413 too large, 408 too slow.
    """
    too_large = ApiError(413, f"the body has more than the {max_bytes} bytes allowed", "body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {timeout:.0f} s", "body_too_slow") from error
    return bytes(body)


class Gate:
    """Asks for the API key, and counts responses. Plain ASGI: it must not stand between a stream and its client."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics):
        self.app, self.api_key, self.metrics = app, api_key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responses.labels(str(message["status"])).inc()
            await send(message)

        if self.api_key is not None and scope["path"] not in OPEN_ROUTES:
            given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.api_key.encode()):
                refusal = ApiError(401, "wrong or missing API key", "invalid_api_key").response()
                await refusal(scope, receive, counted)
                return
        await self.app(scope, receive, counted)


def sse(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


def create_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application. It closes the engine when it shuts down."""
    metrics = Metrics(engine)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="llava-uhd", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    install_handlers(app)
    app.add_middleware(Gate, api_key=options.api_key, metrics=metrics)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        stats = engine.stats()
        return {"status": "ok", "waiting": stats.waiting, "running": stats.running}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    model = {"id": options.model_name, "object": "model", "created": started, "owned_by": "llava-uhd"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check_model(name, options.model_name)
        return model

    @app.post("/load_model")
    async def load_model(request: Request) -> Response:
        body = await read_body(request, options.max_body_bytes, options.body_timeout)
        try:
            name = json.loads(body)["model"]
        except (ValueError, TypeError, KeyError) as error:
            raise ApiError(400, 'the body must read {"model": NAME}', "invalid_json") from error
        check_model(name, options.model_name)
        event = sse({"status": "ready", "model": name, "cached": True})
        return Response(event, media_type="text/event-stream", headers=SSE_HEADERS)

    def prepare(body: bytes, deadline: float) -> tuple[ChatRequest, list[Message]]:
        asked = parse_request(body, options.model_name)
        return asked, read_messages(asked, options.images, options.max_images, deadline)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        completion = Completion(uuid.uuid4().hex, options.model_name)
        deadline = time.monotonic() + engine.options.deadline
        try:
            engine.check_room()  # before a body is read that would be refused
            body = await read_body(request, options.max_body_bytes, options.body_timeout)
            asked, messages = await run_in_threadpool(prepare, body, deadline)
            listener = Listener(request)
            generation = engine.submit(
                messages,
                asked.sampling(),
                max_slices=asked.max_slices,
                deadline=deadline - time.monotonic(),
                emit=listener.emit,
            )
            events = listener.events(generation)
            # The status is not sent before there is something to say: most errors are known by then.
            first = await anext(events)
            if asked.stream:
                with_usage = asked.stream_options is not None and asked.stream_options.include_usage
                pieces = stream(completion, first, events, with_usage)
                return StreamingResponse(pieces, media_type="text/event-stream", headers=SSE_HEADERS)
            result = first
            async for event in events:
                result = event
            assert isinstance(result, Result)
            metrics.observe(result)
            return JSONResponse(completion.whole(result))
        except Cancelled:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            return as_api_error(error).response()

    async def stream(
        completion: Completion, first: str | Result, events: AsyncIterator[str | Result], with_usage: bool
    ) -> AsyncIterator[str]:
        yield sse(completion.piece({"role": "assistant", "content": ""}))
        try:
            event: str | Result = first
            while not isinstance(event, Result):
                yield sse(completion.piece({"content": event}))
                event = await anext(events)
            metrics.observe(event)
            yield sse(completion.piece({}, event.finish_reason))
            if with_usage:
                yield sse(completion.usage_piece(event))
        except Cancelled:
            return
        except Exception as error:
            yield sse(as_api_error(error).body())
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        yield "data: [DONE]\n\n"

    return app
