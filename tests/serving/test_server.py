"""The HTTP server as its clients meet it: the real openai package against a real server on loopback."""

import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import openai
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_uhd.serving.documents import read_pages
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.generation import DeadlineExceeded, Sampling
from llava_uhd.serving.limits import Limits
from llava_uhd.serving.remote import ImageSource
from llava_uhd.serving.server import GRACE, ServerOptions, create_app
from tests.conftest import random_image
from tests.documents import page_images, write_encrypted_pdf, write_pdf, write_tiff
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
    options = EngineOptions(batch_size=4, max_queue_size=32, max_new_tokens=12, deadline=DEADLINE, max_pixels=2**20)
    limits = Limits(body_bytes=200_000, images=3, body_seconds=1.0, text=30_000)
    with Running(loaded, options, limits=limits) as running:
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
        [*command, *flags, "--user", "me"], input="No image at all?\n!exit\n", capture_output=True, text=True
    )
    expected = running.engine.submit(CONVERSATIONS[1], Sampling(max_new_tokens=6)).result().text
    assert expected in result.stdout, result.stdout + result.stderr


# Documents


def file_part(content: bytes, name: str | None = "report.pdf") -> dict:
    data = "data:application/pdf;base64," + base64.b64encode(content).decode()
    return {"type": "file", "file": {"file_data": data, **({} if name is None else {"filename": name})}}


def test_the_process_that_renders_documents_imports_no_torch():
    script = "import sys, llava_uhd.serving.documents; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_pages_of_a_document_are_images(running, tmp_path):
    def ask(*parts) -> dict:
        status, _, answer = running.request("POST", "/v1/chat/completions", json.dumps(with_parts(*parts)))
        assert status == 200, answer
        return json.loads(answer)

    pdf, tiff = write_pdf(tmp_path / "a.pdf", 3).read_bytes(), write_tiff(tmp_path / "a.tif", 2).read_bytes()
    frames = [file.getvalue() for page in page_images(2) for file in [io.BytesIO()] if page.save(file, "PNG") is None]
    separate = ask(*[image_part(frame) for frame in frames])
    together = ask(file_part(tiff, "scan.tif"))
    assert together["usage"]["prompt_tokens_details"] == separate["usage"]["prompt_tokens_details"]
    assert together["choices"][0]["message"] == separate["choices"][0]["message"]
    assert ask(file_part(pdf))["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert ask(file_part(frames[0], None))["usage"] == ask(image_part(frames[0]))["usage"]


def test_five_pages_of_a_pdf_and_three_of_a_tiff(loaded, tmp_path):
    pdf, tiff = write_pdf(tmp_path / "a.pdf", 5).read_bytes(), write_tiff(tmp_path / "a.tif", 3).read_bytes()
    options = EngineOptions(batch_size=1, max_new_tokens=4)
    with Running(loaded, options, limits=Limits(images=8)) as running:

        def image_tokens(*parts) -> int:
            body = with_parts(*parts) | {"mm_processor_kwargs": {"max_slices": 1}}
            status, _, answer = running.request("POST", "/v1/chat/completions", json.dumps(body))
            assert status == 200, answer
            return json.loads(answer)["usage"]["prompt_tokens_details"]["image_tokens"]

        of_pdf, of_tiff = image_tokens(file_part(pdf)), image_tokens(file_part(tiff, "scan.tif"))
        assert 0 < of_pdf and of_pdf * 3 == of_tiff * 5
        assert image_tokens(file_part(pdf), file_part(tiff, "scan.tif")) == of_pdf + of_tiff
        for content, expected in ((pdf, of_pdf), (tiff, of_tiff)):  # whatever the part is called
            assert image_tokens(image_part(content)) == expected
            url = f"data:;base64,{base64.b64encode(content).decode()}"
            assert image_tokens({"type": "image_url", "image_url": url}) == expected


def test_documents_that_cannot_be_read_are_refused(running, tmp_path):
    pdf = write_pdf(tmp_path / "a.pdf", 4).read_bytes()
    encrypted = write_encrypted_pdf(tmp_path / "b.pdf").read_bytes()
    tiff = write_tiff(tmp_path / "a.tif", 3).read_bytes()
    for parts, said in [
        ([file_part(pdf)], "report.pdf has 4 pages; at most 3"),
        ([image_part(png(30, 30)), file_part(tiff, "s.tif")], "more than 2 pages"),
        ([file_part(encrypted)], "report.pdf is encrypted"),
        ([file_part(pdf[:200])], "report.pdf is damaged"),
        ([{"type": "file", "file": {"file_id": "file-1"}}], "messages.0.content.0.file.file_data: it is missing"),
        ([file_part(b"no document")], "not an image"),
    ]:
        status, error, _ = ask_raw(running, with_parts(*parts))
        assert status == 400 and said in error["message"], error


def test_a_renderer_is_killed_when_its_time_is_over(tmp_path):
    pdf = write_pdf(tmp_path / "a.pdf", 4).read_bytes()
    with pytest.raises(ValueError, match="more than 0.01 s to render"):
        read_pages(pdf, "a.pdf", 9, 10**5, 10**7, 0.01, time.monotonic() + 60)
    with pytest.raises(DeadlineExceeded):
        read_pages(pdf, "a.pdf", 9, 10**5, 10**7, 60, time.monotonic() + 0.01)


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
        (b"[" * 100_000, 400, "more than the 20000 values"),
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
        (
            valid(generation_config='{"temperature": "' + "x" * 20_000 + '"}'),
            400,
            "temperature of generation_config must",
        ),
        (valid(generation_config='{"repetition_penalty": 1.5}'), 400, "repetition_penalty of generation_config"),
        (valid(generation_config='{"max_new_tokens": 1.5}'), 400, "whole number"),
        (valid(temperature=2.5), 400, "2.5"),
        (valid(seed=10**4000), 400, "seed: must fit 64 bits, got an integer of 13288 bits"),
        (valid(max_tokens=-(10**4000)), 400, "max_tokens: must fit 64 bits"),
        (
            valid(generation_config='{"do_sample": true, "temperature": ' + "9" * 4000 + "}"),
            400,
            "temperature of generation_config must fit 64 bits",
        ),
        (
            valid(generation_config='{"max_new_tokens": ' + "9" * 4000 + "}"),
            400,
            "max_new_tokens of generation_config",
        ),
        (valid(stop=["s" * 1001]), 400, "1000 characters; one has 1001"),
        (valid(stop=5), 400, "stop: must be a string or a list of strings"),
        (valid(max_slices=65), 400, "at most 64"),
        (
            valid(messages=[{"role": "user", "content": "a " * 16_000}]),
            400,
            "32000 characters of text; 30000 are allowed",
        ),
        (valid(messages=[{"role": "assistant", "content": "", "tool_calls": [1]}]), 400, "messages.0.tool_calls"),
        (valid(skip_special_tokens=False), 400, "skip_special_tokens is not supported"),
        (valid(repetition_penalty=1.1), 400, "repetition_penalty is not supported"),
        (valid(top_k=5), 400, "top_k is not supported"),
        (with_parts("hi"), 400, "messages.0.content.0: must be a JSON object"),
        (with_parts({"type": "text"}), 400, "messages.0.content.0.text: it is missing"),
        (with_parts({"text": "hi"}), 400, "messages.0.content.0: a part needs a type"),
        (with_parts({"type": "image_url", "image_url": {"url": 5}}), 400, "messages.0.content.0.image_url.url"),
        (with_parts({"type": "image_url", "image_url": 7}), 400, "image_url: must be a JSON object"),
        (
            with_parts({"type": "image_url", "image_url": {"url": "", "detail": "x"}}),
            400,
            "content.0.image_url.detail",
        ),
        (valid(messages=[{"role": "user", "content": 5}]), 400, "messages.0.content: must be a string or a list"),
        (with_parts({"type": "audio"}), 400, "messages.0.content"),
        (with_parts(image_part(b"no image")), 400, "not an image"),
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


NEUTRAL = {
    "add_generation_prompt": True,
    "best_of": 1,
    "frequency_penalty": 0,
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "logit_bias": {},
    "logprobs": False,
    "min_p": 0.0,
    "mm_processor_kwargs": {},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "prompt_cache_retention": "24h",
    "reasoning_effort": None,
    "repetition_penalty": 1.0,
    "response_format": {"type": "text"},
    "skip_special_tokens": True,
    "stop": None,
    "stream": None,
    "tool_choice": "auto",
    "tools": [],
    "top_k": -1,
    "top_logprobs": 0,
    "user": "me",
    "verbosity": "medium",
}


def test_options_that_ask_for_nothing_are_taken(running):
    assert ask_raw(running, valid(**NEUTRAL))[0] == 200
    content = [image_part(png(30, 30), detail="original"), image_part(png(30, 30), detail=None)]
    assert ask_raw(running, with_parts(*content))[0] == 200


@pytest.mark.parametrize("temperature", [1e-40, 2, 0])
def test_odd_temperatures(running, temperature):
    assert ask_raw(running, valid(temperature=temperature))[0] == 200
    config = json.dumps({"do_sample": True, "temperature": temperature})
    assert ask_raw(running, valid(generation_config=config))[0] == 200


def test_a_temperature_of_zero_in_a_generation_config_is_greedy(running):
    def ask(**options) -> str:
        _, _, answer = running.request("POST", "/v1/chat/completions", json.dumps(valid(max_tokens=12, **options)))
        return json.loads(answer)["choices"][0]["message"]["content"]

    config = json.dumps({"do_sample": True, "temperature": 0})
    assert {ask(generation_config=config, seed=seed) for seed in range(3)} == {ask()}


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
    for body in (b"[]", b"[" * 30_000, b"{", b'{"model": 5}', b'{"model": "\\ud800"}', b"\xff"):
        status, _, answer = running.request("POST", "/load_model", body)
        assert status == 400 and error_of(answer)
    status, _, body = running.request("POST", "/load_model", json.dumps({"model": "m" * 100_000}))
    assert status == 404 and len(body) < 500
    assert running.request("POST", "/load_model", b'{"model": "small"}')[0] == 200


def test_errors_after_the_first_piece_reach_the_client(running):
    stream = running.client().chat.completions.create(
        model="small", messages=as_openai(CONVERSATIONS[1]), max_tokens=1900, stream=True
    )
    with pytest.raises(openai.APIError, match="not ready within 2 s"):
        list(stream)


def test_the_deadline_is_503(running):
    with pytest.raises(openai.InternalServerError) as error:
        running.client().chat.completions.create(model="small", messages=as_openai(CONVERSATIONS[1]), max_tokens=1900)
    assert error.value.status_code == 503 and error.value.code == "deadline_exceeded"


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
    with Running(loaded, EngineOptions(batch_size=1, max_queue_size=1)) as running:
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
    with Running(loaded, EngineOptions(batch_size=1), api_key="open-sesame") as running:
        for value in (
            None,
            "Bearer wrong",
            b"Bearer \xff",
            "Bearer",
            "open-sesame",
            "Basic open-sesame",
            "Bearer open-sesame x",
        ):
            status, error, headers = ask_raw(running, valid(), {} if value is None else {"Authorization": value})
            assert status == 401 and error["code"] == "invalid_api_key" and headers["www-authenticate"] == "Bearer"
        for scheme in ("bearer", "BEARER", "Bearer "):
            assert running.request("GET", "/v1/models", headers={"Authorization": f"{scheme} open-sesame"})[0] == 200
        assert ask_raw(running, valid(), {"Authorization": "Bearer open-sesame"})[0] == 200
        assert running.request("GET", "/v1/models")[0] == 401
        assert running.request("GET", "/health")[0] == running.request("GET", "/metrics")[0] == 200


@pytest.mark.parametrize("key", ["", " ", "a b", "key\n", "schlüssel", "\x00"])
def test_a_key_that_no_client_can_send_is_refused(key):
    with pytest.raises(ValueError, match="API key"):
        ServerOptions("small", key)


PREFLIGHT = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
PREFLIGHT |= {"Access-Control-Request-Headers": "authorization,content-type"}


def test_browsers_may_ask_from_the_origins_that_are_named(loaded, running):
    assert running.request("OPTIONS", "/v1/chat/completions", headers=PREFLIGHT)[0] == 405
    options = {"api_key": "key", "cors_origins": ("https://page.example",)}
    with Running(loaded, EngineOptions(batch_size=1), **options) as running:
        status, headers, _ = running.request("OPTIONS", "/v1/chat/completions", headers=PREFLIGHT)
        assert status == 200 and headers["access-control-allow-origin"] == "https://page.example"
        assert "authorization" in headers["access-control-allow-headers"]
        other = {**PREFLIGHT, "Origin": "https://other.example"}
        assert running.request("OPTIONS", "/v1/chat/completions", headers=other)[0] == 400
        status, _, headers = ask_raw(
            running, valid(), {"Origin": "https://page.example"}
        )  # a refusal can be read, too
        assert status == 401 and headers["access-control-allow-origin"] == "https://page.example"


def test_a_client_that_hangs_up_in_its_body_is_no_failure_of_the_server(running, caplog):
    def hung_up() -> float:
        metrics = running.request("GET", "/metrics")[2].decode()
        return sum(float(line.split()[-1]) for line in metrics.splitlines() if 'responses_total{status="499"}' in line)

    before = hung_up()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    for path in (b"/v1/chat/completions", b"/load_model"):
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(head.replace(b"/v1/chat/completions", path))
            time.sleep(0.1)
    until(lambda: hung_up() == before + 2, seconds=30)
    time.sleep(0.3)  # what is raised after a response is logged after it is counted
    assert "unforeseen" not in caplog.text and "Traceback" not in caplog.text


def test_bodies_of_all_requests_are_limited_together(loaded):
    limits = Limits(body_bytes=100_000, pending_bytes=150_000)
    with Running(loaded, EngineOptions(batch_size=1), limits=limits) as running:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(head + b" " * 90_000)
            time.sleep(0.3)
            body = valid(messages=[{"role": "user", "content": "a" * 65_000}])
            status, error, headers = ask_raw(running, body)
            assert status == 429 and "of 150000 bytes" in error["message"] and headers["retry-after"]
        until(lambda: ask_raw(running, body)[0] == 400)  # too long for the model, but there is room


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
    random_image(40, 30).save(file, kind)
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
