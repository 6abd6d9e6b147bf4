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
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..model.messages import Message
from ..planning import ImagePlanner
from .api import Completion, PartReader, check_model, parse_request
from .body import BodyReader, parse_json
from .engine import Engine
from .errors import CLIENT_GONE, ApiError, as_api_error, install_handlers
from .generation import Cancelled, Event, Generation, Result, Sampling
from .limits import TEXT_PER_TOKEN, Limits
from .memory import drop_frames
from .metrics import Metrics
from .remote import ImageSource

log = logging.getLogger(__name__)

GRACE = 1.0  # seconds over the deadline after which the client gets an error even if the engine has not noticed
OPEN_ROUTES = ("/health", "/metrics")
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def check_origin(origin: str) -> None:
    """Check that browsers can send an origin: `*`, or scheme, host and port without a path.

    Raises:
        ValueError: they never send it.
    """
    parts = urlsplit(origin)
    if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
        raise ValueError(f"an origin is written https://HOST or https://HOST:PORT, without a path, got {origin!r}")


@dataclass(frozen=True)
class ServerOptions:
    """Options and limits of the server.

    Attributes:
        model_name: the name requests must ask for.
        api_key: asked for as a bearer token on every route but /health and /metrics; None for no key.
        limits: limits of a request.
        images: reads image URLs.
        max_requests: requests at a time, but those of /health and /metrics; one more gets 503.
        cors_origins: origins whose pages may ask from a browser; `*` for all.

    Raises:
        ValueError: no client can send the API key.
    """

    model_name: str
    api_key: str | None = None
    limits: Limits = Limits()
    images: ImageSource = ImageSource()
    max_requests: int = 256
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.api_key is not None:
            check_api_key(self.api_key)


def check_api_key(key: str) -> None:
    """Check that clients can send an API key in a header.

    Raises:
        ValueError: it is empty, or has characters other than those of ASCII that are visible.
    """
    if not key:
        raise ValueError("the API key is empty, which would let everybody in: set one, or leave the option out")
    if not all("!" <= character <= "~" for character in key):
        raise ValueError("the API key must be of visible ASCII characters without spaces: no client can send others")


@dataclass(frozen=True)
class Asked:
    """Parameters of a request for the engine; its body is not kept."""

    messages: list[Message]
    sampling: Sampling
    max_slices: int | None
    is_stream: bool
    with_usage: bool


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
        """Yield pieces of text, then the result; cancel the request if the client disconnects or stops reading.

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
                    raise Cancelled("the client hung up") if gone.done() else generation.deadline_error()
                value = event.result()
                if isinstance(value, Exception):
                    raise value
                yield value
                if isinstance(value, Result):
                    return
        finally:
            gone.cancel()
            generation.cancel()  # of no account for one that has ended


class Gate:
    """Refuses pages of other origins, asks for the API key, limits the requests at a time, and counts responses.

    Plain ASGI: it must not stand between a stream and its client.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, origins: Sequence[str], max_requests: int, metrics: Metrics):
        self.app, self.api_key, self.origins = app, api_key, origins
        self.max_requests, self.metrics = max_requests, metrics
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responses.labels(str(message["status"])).inc()
            await send(message)

        if scope["path"] in OPEN_ROUTES:
            await self.app(scope, receive, counted)
            return
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and not may_ask(headers, self.origins):
            said = "pages of this origin may not ask; --cors-origin names origins that may"
            await ApiError(403, said, "origin_not_allowed").response()(scope, receive, counted)
            return
        if self.api_key is not None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            is_right = secrets.compare_digest(token.strip().encode(), self.api_key.encode())
            if scheme.lower() != "bearer" or not is_right:
                said = "wrong or missing API key: send it as a header, Authorization: Bearer KEY"
                refusal = ApiError(401, said, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"}).response()
                await refusal(scope, receive, counted)
                return
        if self.num_requests >= self.max_requests:
            said = f"{self.num_requests} requests are open already; try again"
            refusal = ApiError(503, said, "too_many_requests", headers={"Retry-After": "1"}).response()
            await refusal(scope, receive, counted)
            return
        self.num_requests += 1
        try:
            await self.app(scope, receive, counted)
        finally:
            self.num_requests -= 1


def may_ask(headers: Headers, origins: Sequence[str]) -> bool:
    """Return whether a request is no browser's, or is of a page of this server or of an origin that is named.

    A browser sends some requests of foreign pages unasked, and merely keeps the responses from them. A host that is
    reached by a name can be a foreign page's, whose owner has that name resolve to this machine (DNS rebinding).

    Args:
        headers: headers of the request.
        origins: origins whose pages may ask; `*` for all.
    """
    origin = headers.get("origin")
    if origin is None or "*" in origins or origin in origins:
        return True
    page = urlsplit(origin)
    return page.netloc == headers.get("host") and is_own_name(page.hostname or "")


def is_own_name(host: str) -> bool:
    """Return whether a host is an IP address or `localhost`, which no foreign page can be reached by."""
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return True


def sse(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


def create_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application. It closes the engine when it shuts down."""
    metrics = Metrics(engine)
    limits = options.limits
    bodies = BodyReader(limits)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="llava-uhd", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    install_handlers(app)
    app.add_middleware(
        Gate,
        api_key=options.api_key,
        origins=options.cors_origins,
        max_requests=options.max_requests,
        metrics=metrics,
    )
    if options.cors_origins:  # outside of the gate: a browser's preflight has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )

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
        body = await bodies.read(request)
        try:
            values = await run_in_threadpool(parse_json, body, limits, max_text())
        finally:
            bodies.release(body)
        name = values.get("model") if isinstance(values, dict) else None
        if not isinstance(name, str):
            raise ApiError(400, 'the body must read {"model": NAME}', "invalid_json")
        check_model(name, options.model_name)
        event = sse({"status": "ready", "model": name, "cached": True})
        return Response(event, media_type="text/event-stream", headers=SSE_HEADERS)

    def max_text() -> int:
        return limits.text or TEXT_PER_TOKEN * engine.context

    def prepare(body: bytearray, deadline: float) -> Asked:
        request = parse_request(body, options.model_name, limits, max_text())
        planner = ImagePlanner.from_processor(engine.processor)
        parts = PartReader(
            options.images,
            limits.images,
            num_pixels=planner.num_pixels(),
            view_pixels=planner.num_view_pixels,
            max_pixels=engine.prompts.max_pixels,
            seconds=engine.options.image_seconds,
        )
        messages = parts.read(request, deadline)
        with_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        return Asked(messages, request.sampling(), request.slices, bool(request.stream), with_usage)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        completion = Completion(uuid.uuid4().hex, options.model_name)
        deadline = time.monotonic() + engine.options.deadline
        try:
            engine.check_room()  # before a body is read that would be refused
            body = await bodies.read(request)
            try:
                asked = await run_in_threadpool(prepare, body, deadline)
            finally:
                bodies.release(body)
                del body
            listener = Listener(request)
            generation = engine.submit(
                asked.messages,
                asked.sampling,
                max_slices=asked.max_slices,
                deadline=deadline - time.monotonic(),
                emit=listener.emit,
            )
            events = listener.events(generation)
            # The status is not sent before there is something to say: most errors are known by then.
            first = await anext(events)
            if asked.is_stream:
                pieces = stream(completion, first, events, asked.with_usage)
                return StreamingResponse(pieces, media_type="text/event-stream", headers=SSE_HEADERS)
            result = first
            async for event in events:
                result = event
            assert isinstance(result, Result)
            metrics.observe(result)
            return JSONResponse(completion.whole(result, engine.calibration))
        except (Cancelled, ClientDisconnect):
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            refusal = as_api_error(error).response()
            drop_frames(error)
            return refusal

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
            yield sse(completion.last_piece(event, engine.calibration))
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
