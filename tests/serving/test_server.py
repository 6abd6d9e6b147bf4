"""The HTTP server as its clients meet it: the real openai package against a real server on loopback."""

import base64
import http.client
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import openai
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.generation import Sampling
from llava_uhd.serving.remote import ImageSource
from llava_uhd.serving.server import GRACE, ServerOptions, create_app
from tests.conftest import picture
from tests.serving.conftest import png
from tests.serving.test_engine import CONVERSATIONS, Held, until

DEADLINE = 2.0


class Running:
    """A server on a thread."""

    def __init__(self, loaded, engine_options: EngineOptions, **options):
        self.engine = Engine(*loaded, engine_options)
        app = create_app(self.engine, ServerOptions("small", **options))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> "Running":
        self.thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *error) -> None:
        self.server.should_exit = True
        self.thread.join()

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def request(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@pytest.fixture(scope="module")
def running(loaded):
    options = EngineOptions(batch_size=4, max_waiting=32, max_new_tokens=12, deadline=DEADLINE, max_pixels=2**20)
    with Running(loaded, options, max_body_bytes=200_000, max_images=3, body_timeout=1.0) as running:
        yield running


def image_part(content: bytes, **extra) -> dict:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url, **extra}}


def as_openai(messages: list[dict]) -> list[dict]:
    """The engine's messages as OpenAI's."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [image_part(part["image"]) if part["type"] == "image" else part for part in message["content"]],
        }
        for message in messages
    ]


def error_of(body: bytes) -> dict:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert "Traceback" not in error["message"] and "/" not in error["message"].replace("image/", "")
    return error


# Answers


def test_answers_are_the_engine_s_and_usage_counts_image_tokens(running):
    client = running.client()
    expected = [running.engine.submit(messages, Sampling(max_new_tokens=6)).result() for messages in CONVERSATIONS]

    def ask(messages):
        return client.chat.completions.create(model="small", messages=as_openai(messages), max_tokens=6)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, CONVERSATIONS))
    for answer, result in zip(answers, expected, strict=True):
        (choice,) = answer.choices
        assert choice.message.role == "assistant" and choice.message.content == result.text
        assert choice.finish_reason == "length" and answer.model == "small" and answer.object == "chat.completion"
        assert answer.usage.prompt_tokens == result.num_prompt_tokens and answer.usage.completion_tokens == 6
        assert answer.usage.total_tokens == result.num_prompt_tokens + 6
        assert answer.usage.prompt_tokens_details.image_tokens == result.num_image_tokens
    assert len({answer.id for answer in answers}) == len(answers)


def test_streaming(running):
    client, messages = running.client(), as_openai(CONVERSATIONS[0])
    whole = client.chat.completions.create(model="small", messages=messages).choices[0]
    stream = client.chat.completions.create(
        model="small", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 4
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, whole.finish_reason]
    assert last.choices == [] and last.usage.completion_tokens == 12


def test_sampling_options(running):
    client, messages = running.client(), as_openai(CONVERSATIONS[0])

    def ask(**options) -> str:
        return client.chat.completions.create(model="small", messages=messages, **options).choices[0].message.content

    greedy = ask()
    assert ask(temperature=0) == greedy
    assert ask(temperature=1, seed=4) == ask(temperature=1, seed=4) != greedy
    assert ask(temperature=1, seed=4) != ask(temperature=1, seed=5)
    assert ask(temperature=1, top_p=1e-6) == greedy
    assert ask(max_completion_tokens=3) == ask(max_tokens=3) != greedy
    assert ask(stop=greedy[4:6]) == ask(stop=["never!", greedy[4:6]]) == greedy[: greedy.index(greedy[4:6])].strip()


def test_slices_are_a_choice(running):
    client = running.client()

    def image_tokens(**options) -> int:
        detail = options.pop("detail", "auto")
        content = [image_part(png(300, 200), detail=detail), {"type": "text", "text": "?"}]
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model="small", messages=messages, max_tokens=1, **options)
        return answer.usage.prompt_tokens_details.image_tokens

    assert image_tokens() == 63
    assert image_tokens(detail="low") == image_tokens(extra_body={"max_slices": 1}) == 9


def test_models_health_and_metrics(running):
    client = running.client()
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "llava-uhd"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")
    status, _, body = running.request("GET", "/health")
    assert status == 200 and json.loads(body) == {"status": "ok", "waiting": 0, "running": 0}
    status, headers, body = running.request("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    from prometheus_client.parser import text_string_to_metric_families

    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["llava_uhd_finished_total",] == running.engine.stats().finished > 0
    assert samples["llava_uhd_waiting",] == 0 and samples["llava_uhd_cached_images",] > 0
    assert samples["llava_uhd_responses_total", "200"] > 0 and samples["llava_uhd_responses_total", "404"] > 0
    assert samples["llava_uhd_seconds_count", "total"] > 0


@pytest.mark.slow
def test_transformers_chat(running):
    """The command itself, its terminal replaced by a pipe."""
    import subprocess
    import sys
    from pathlib import Path

    command = [Path(sys.executable).parent / "transformers", "chat", "small", f"{running.url}/v1"]
    flags = ["max_new_tokens=6", "do_sample=False"]
    result = subprocess.run(
        [*command, *flags, "--user", "me"], input="No picture at all?\n!exit\n", capture_output=True, text=True
    )
    expected = running.engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=6)).result().text
    assert expected in result.stdout, result.stdout + result.stderr


# Refusals


def ask_raw(running, body, headers=None) -> tuple[int, dict, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, answer = running.request("POST", "/v1/chat/completions", content, headers)
    return status, error_of(answer) if status != 200 else {}, headers


def valid(**changes) -> dict:
    return {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **changes}


def with_parts(*parts) -> dict:
    return valid(messages=[{"role": "user", "content": list(parts)}])


@pytest.mark.parametrize(
    "body, status, said",
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid"),
        (b"[]", 400, "JSON object"),
        (b'{"model": "small", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "Unicode"),
        (b'{"model": "small", "temperature": NaN, "messages": [{"role": "user", "content": "?"}]}', 400, "NaN"),
        ({}, 400, "model"),
        (valid(model="large"), 404, "no model 'large'"),
        (valid(messages=[]), 400, "messages"),
        (valid(messages=[{"role": "robot", "content": "hi"}]), 400, "messages.0.role"),
        (valid(messages=[{"role": "user", "content": None}]), 400, "messages.0.content"),
        (valid(max_tokens=0), 400, "at least 1"),
        (valid(max_tokens=5000), 400, "context of 2048"),
        (valid(temperature=-1), 400, "temperature"),
        (valid(top_p=2), 400, "top_p"),
        (valid(n=2), 400, "n: "),
        (valid(stop=["a"] * 5), 400, "at most 4"),
        (valid(max_slices=0), 400, "max_slices"),
        (valid(tools=[{"type": "function"}]), 400, "tools is not supported"),
        (valid(logprobs=True), 400, "logprobs is not supported"),
        (valid(generation_config="[1]"), 400, "JSON object"),
        (with_parts({"type": "audio"}), 400, "messages.0.content"),
        (with_parts(image_part(b"no picture")), 400, "not an image"),
        (with_parts(image_part(b"")), 400, "empty"),
        (with_parts(image_part(png(300, 200)[:3000])), 400, "damaged"),
        (with_parts(image_part(png(1025, 1024, 1))), 400, "at most 1048576"),
        (with_parts(*[image_part(png(30, 30))] * 4), 400, "4 images; at most 3"),
        (with_parts({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}), 400, "base64"),
        (with_parts({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}), 400, "base64"),
        (with_parts({"type": "image_url", "image_url": {"url": "/etc/passwd"}}), 400, "data: URL"),
        (with_parts({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), 400, "data: URL"),
        (with_parts({"type": "image_url", "image_url": {"url": "http://[::1/x"}}), 400, "not a URL"),
        (with_parts({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}), 400, "not fetched"),
        (valid(messages=[{"role": "assistant", "content": [image_part(png(30, 30))]}]), 400, "user's messages"),
        (b" " * 200_001, 413, "200000 bytes"),
    ],
)
def test_refusals_say_what_is_wrong(running, body, status, said):
    actual, error, _ = ask_raw(running, body)
    assert (actual, said in error["message"]) == (status, True), error
    assert error["type"] in ("invalid_request_error", "not_found_error")


def test_harmless_options_are_taken(running):
    body = valid(user="me", presence_penalty=0, logprobs=False, tools=[], tool_choice="auto", n=1, stop=None)
    assert ask_raw(running, body)[0] == 200


def test_a_body_without_length_is_cut_off_at_the_limit(running):
    status, error, _ = ask_raw(running, b"x", {"Content-Length": "300000"})
    assert status == 413

    def chunks():
        for _ in range(50):
            yield b" " * 10_000

    status, _, body = running.request("POST", "/v1/chat/completions", chunks())
    assert status == 413 and error_of(body)["code"] == "body_too_large"


def test_a_body_that_does_not_arrive(running):
    status, error, _ = ask_raw(running, b"{", {"Content-Length": "100"})
    assert status == 408 and error["code"] == "body_too_slow"


def test_other_routes_and_methods(running):
    status, _, body = running.request("GET", "/nothing")
    assert status == 404 and error_of(body)["type"] == "not_found_error"
    status, _, body = running.request("GET", "/v1/chat/completions")
    assert status == 405 and error_of(body)
    status, _, body = running.request("POST", "/load_model", b"[]")
    assert status == 400 and error_of(body)


def test_errors_after_the_first_piece_reach_the_client(running):
    stream = running.client().chat.completions.create(
        model="small", messages=as_openai(CONVERSATIONS[1]), max_tokens=1900, stream=True
    )
    with pytest.raises(openai.APIError, match="not ready within 2 s"):
        list(stream)


def test_the_deadline_is_503(running):
    with pytest.raises(openai.InternalServerError) as late:
        running.client().chat.completions.create(model="small", messages=as_openai(CONVERSATIONS[1]), max_tokens=1900)
    assert late.value.status_code == 503 and late.value.code == "deadline_exceeded"


def test_the_deadline_holds_even_while_the_engine_is_kept(loaded):
    with Running(loaded, EngineOptions(batch_size=1, deadline=0.3)) as running, Held(running.engine):
        started = time.monotonic()
        status, error, headers = ask_raw(running, valid())
        assert status == 503 and error["code"] == "deadline_exceeded" and headers["retry-after"]
        assert time.monotonic() - started < 0.3 + GRACE + 2


def test_slow_images_do_not_outlast_the_deadline(loaded):
    class Slow(ImageSource):
        def read(self, url: str) -> bytes:
            time.sleep(0.4)
            return super().read(url)

    with Running(loaded, EngineOptions(batch_size=1, deadline=0.3), images=Slow()) as running:
        status, error, _ = ask_raw(running, with_parts(*[image_part(png(30, 30))] * 2))
        assert status == 503 and "not there in time" in error["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_is_not_answered_on(running, stream):
    before = running.engine.stats().cancelled
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    body = valid(max_tokens=1900, stream=stream)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    if stream:
        connection.getresponse().read(300)
    until(lambda: running.engine.stats().running == 1)
    connection.close()
    connection.sock = None
    until(lambda: running.engine.stats().running == 0, seconds=3)
    assert running.engine.stats().cancelled == before + 1


def test_a_failure_of_the_model_is_500_and_tells_nothing(running):
    import torch

    model = running.engine.model
    head = model.lm_head
    running.engine.run(lambda: setattr(model, "lm_head", torch.nn.Linear(3, 5)))
    status, error, _ = ask_raw(running, valid())
    running.engine.run(lambda: setattr(model, "lm_head", head))
    assert status == 500 and error["code"] == "internal_error" and "mat" not in error["message"]
    assert ask_raw(running, valid())[0] == 200


def test_a_full_queue_is_429_and_the_openai_client_tries_again(loaded):
    with Running(loaded, EngineOptions(batch_size=1, max_waiting=1)) as running:
        with Held(running.engine):
            waiting = ThreadPoolExecutor(1).submit(ask_raw, running, valid())
            until(lambda: running.engine.stats().waiting == 1)
            status, error, headers = ask_raw(running, valid())
            assert status == 429 and error["code"] == "queue_full" and int(headers["retry-after"]) >= 1
            patient = running.client(max_retries=3)
            later = ThreadPoolExecutor(1).submit(
                patient.chat.completions.create, model="small", messages=as_openai(CONVERSATIONS[1]), max_tokens=2
            )
            time.sleep(0.3)
        assert waiting.result()[0] == 200 and later.result().choices[0].message.content is not None


def test_stopping_finishes_what_was_begun(loaded):
    with Running(loaded, EngineOptions(batch_size=2)) as running, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(ask_raw, running, valid(max_tokens=300))
        stream = running.client().chat.completions.create(**valid(max_tokens=300), stream=True)
        until(lambda: running.engine.stats().running == 2)
        running.server.should_exit = True
        assert whole.result()[0] == 200
        assert list(stream)[-1].choices[0].finish_reason == "length"
        running.thread.join()
        with pytest.raises(openai.APIConnectionError):
            running.client().models.list()


def test_the_api_key(loaded):
    with Running(loaded, EngineOptions(batch_size=1), api_key="sésame") as running:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff"}):
            status, error, _ = ask_raw(running, valid(), headers)
            assert status == 401 and error["code"] == "invalid_api_key"
        assert ask_raw(running, valid(), {"Authorization": "Bearer sésame".encode("latin-1")})[0] == 200
        assert running.request("GET", "/v1/models")[0] == 401
        assert running.request("GET", "/health")[0] == running.request("GET", "/metrics")[0] == 200


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["model", "messages", "stream", "max_tokens", "temperature", "top_p", "stop", "seed", "n", "max_slices"]
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]


@cache
def small_file(kind: str) -> bytes:
    file = io.BytesIO()
    picture(40, 30).save(file, kind)
    return file.getvalue()


def damaged(kind: str, positions: list[tuple[int, int]], end: int) -> bytes:
    content = bytearray(small_file(kind)[: end or None])
    for position, value in positions:
        if content:
            content[position % len(content)] = value
    return bytes(content)


IMAGES = (
    st.binary(max_size=200)
    | st.builds(
        damaged,
        st.sampled_from(FORMATS),
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
        st.integers(0, 400),
    )
    | st.builds(png, st.sampled_from([1, 2, 13, 700]), st.sampled_from([1, 2, 15, 600]))
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.binary(max_size=50)
    | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4).map(lambda changes: {**valid(), **changes})
    | IMAGES.map(lambda content: with_parts(image_part(content), {"type": "text", "text": "?"}))
)
def test_whatever_comes_is_answered_in_time_and_is_no_failure(running, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    started = time.monotonic()
    status, headers, answer = running.request("POST", "/v1/chat/completions", content)
    assert time.monotonic() - started < DEADLINE + 2
    assert status in (200, 400, 404), answer
    if status != 200:
        error_of(answer)
