"""Connections of the server: their number and their time are limited, whatever their clients do."""

import contextlib
import json
import re
import socket
import threading
import time

import pytest
import uvicorn

from llava_uhd.serving.connections import (
    FREE_CHUNKS,
    LARGEST_HEAD,
    MEAN_CHUNK,
    SPARE_CONNECTIONS,
    YOUNG,
    ConnectionLimits,
    affordable_connections,
    limited_protocol,
)
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.server import ServerOptions, create_app
from tests.serving.running import until
from tests.serving.test_engine import Held

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = ConnectionLimits(number=6, head_seconds=1.5, request_seconds=4)


@pytest.fixture(scope="module")
def server(loaded):
    engine = Engine(*loaded, EngineOptions(batch_size=2, max_new_tokens=4))
    app = create_app(engine, ServerOptions("small", max_requests=LIMITS.number))
    config = uvicorn.Config(
        app, port=0, log_level="error", http=limited_protocol(LIMITS), h11_max_incomplete_event_size=LARGEST_HEAD
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    server.engine = engine
    yield server
    server.should_exit = True
    thread.join()


def connect(server) -> socket.socket:
    return socket.create_connection(server.servers[0].sockets[0].getsockname()[:2], 5)


def status(client: socket.socket, request: bytes = HEALTH) -> int:
    client.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        assert (received := client.recv(10_000)), answer
        answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        body += client.recv(10_000)
    return int(head.split()[1])


def is_closed(client: socket.socket, seconds: float = 5) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_silent_connections_keep_nobody_out(server):
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(30)]
        for _ in range(3):
            with connect(server) as client:
                assert status(client) == 200
        assert len(server.server_state.connections) <= LIMITS.number + SPARE_CONNECTIONS + 1
        assert all(is_closed(each) for each in idle)  # some at once, the others when their time is over
    until(lambda: not server.server_state.connections)


def test_a_young_connection_is_kept_while_there_are_spare_ones(server):
    with contextlib.ExitStack() as stack:
        old = [stack.enter_context(connect(server)) for _ in range(LIMITS.number - 1)]
        client = stack.enter_context(connect(server))
        assert status(client) == 200
        time.sleep(YOUNG + 0.1)
        assert status(client) == 200  # young again
        for _ in range(LIMITS.number - 1):
            stack.enter_context(connect(server))
        assert all(is_closed(each) for each in old)
        for _ in range(SPARE_CONNECTIONS):
            stack.enter_context(connect(server))
        assert status(client) == 200


def test_a_connection_whose_request_was_not_read_yet_is_kept(server):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(LIMITS.number)]
        time.sleep(YOUNG + 0.1)
        loop = next(iter(server.server_state.connections)).loop
        loop.call_soon_threadsafe(time.sleep, 0.5)
        clients[0].sendall(HEALTH)  # the oldest
        stack.enter_context(connect(server))
        assert clients[0].recv(10_000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 4\r\nContent-Length: 40",
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: chunked, identity",
        b"Content-Length: +4",
        b"Content-Length : 4",
        b"Content-Length: 4\r\n X: folded\x00",
    ],
)
def test_a_request_of_two_lengths_is_refused_and_what_follows_it_is_no_request(server, headers):
    with connect(server) as client:
        client.sendall(b"POST /load_model HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\nabcd" + HEALTH)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while received := client.recv(10_000):
                answer += received
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1


def test_a_flood_of_headers_is_refused(server):
    with connect(server) as client:
        flood = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(20_000))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + flood + b"\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10_000).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")) or is_closed(client)
    with connect(server) as client:
        assert status(client) == 200


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"POST /load_model HTTP/1.1\r\nHost: x\r\nA: b"])
def test_a_head_that_does_not_arrive(server, sent):
    started = time.monotonic()
    with connect(server) as client:
        client.sendall(sent)
        assert is_closed(client)
    assert LIMITS.head_seconds - 0.2 < time.monotonic() - started < LIMITS.head_seconds + 2


def test_a_second_head_that_does_not_arrive(server):
    started = time.monotonic()
    with connect(server) as client:
        assert status(client) == 200
        client.sendall(b"GET")
        assert is_closed(client)
    assert time.monotonic() - started < LIMITS.head_seconds + 2


def test_connections_are_kept_for_further_requests(server):
    with connect(server) as client:
        for _ in range(3):
            assert status(client) == 200
            time.sleep(0.7)  # longer than a head may take in all


def test_a_request_that_does_not_end(server):
    with Held(server.engine), connect(server) as client:
        body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "hi"}]}).encode()
        started = time.monotonic()
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert is_closed(client, LIMITS.request_seconds + 3)
        assert time.monotonic() - started > LIMITS.request_seconds - 0.5
    until(lambda: server.engine.stats().waiting == server.engine.stats().running == 0)


def test_more_requests_than_may_be_open_are_503_and_health_still_answers(server):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.number):
            stack.enter_context(connect(server)).sendall(head)
        time.sleep(0.3)
        with connect(server) as client:
            assert status(client, HEALTH.replace(b"/health", b"/v1/models")) == 503
        with connect(server) as client:
            assert status(client) == 200
    until(lambda: not server.server_state.connections)
    with connect(server) as client:
        assert status(client, HEALTH.replace(b"/health", b"/v1/models")) == 200


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_body_of_very_many_small_chunks_is_refused(server):
    with connect(server) as client:
        assert status(client, CHUNKED + b"1\r\na\r\n" * (FREE_CHUNKS + 10)) == 400
        while client.recv(1000):  # the rest of the answer, then the end
            pass
    small, large = b"1\r\n \r\n", b"100\r\n" + b" " * 2 * MEAN_CHUNK + b"\r\n"
    for chunks in (small * (FREE_CHUNKS - 10), large * 3 * FREE_CHUNKS):
        with connect(server) as client:
            assert status(client, CHUNKED + chunks + b"2\r\n{}\r\n0\r\n\r\n") == 400
            client.sendall(HEALTH)  # an answer to a body that was read: the connection is kept
            assert b"200 OK" in client.recv(10_000)


def test_a_compressed_body_is_refused_with_its_encoding(server):
    body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"
    with connect(server) as client:
        assert status(client, body) == 415


def test_a_head_that_is_too_large(server):
    with connect(server) as client:
        head = b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * (LARGEST_HEAD + 1000)
        assert status(client, head) == 400


def test_as_many_connections_as_there_are_file_descriptors_for():
    resource = pytest.importorskip("resource")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert affordable_connections(1) == 1
    assert 1 <= affordable_connections(2**40) < limit
