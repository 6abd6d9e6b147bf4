"""The HTTP server as its clients meet it: the real openai package against a real server on loopback."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from llava_uhd.serving.engine import EngineOptions
from llava_uhd.serving.generation import Sampling
from llava_uhd.serving.limits import Limits
from llava_uhd.serving.remote import ImageSource, check_image_host
from llava_uhd.serving.server import GRACE, ServerOptions, check_origin
from tests.serving.conftest import png
from tests.serving.running import Running, as_openai, ask_raw, error_of, image_part, until, valid, with_parts
from tests.serving.test_engine import CONVERSATIONS, Held


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


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://page.example/a", "", "https://"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ValueError, match="an origin is written https://HOST"):
        check_origin(origin)
    for right in ("*", "https://page.example", "http://localhost:3000", "http://[::1]:80"):
        check_origin(right)


@pytest.mark.parametrize("host", ["https://images.example", "images.example/a", "a@b.example", "", "b.example:x"])
def test_an_image_host_that_no_url_has_is_refused(host):
    with pytest.raises(ValueError, match="an image host is written HOST"):
        check_image_host(host)
    for right in ("images.example", "images.example:8443", "192.0.2.1:80", "[::1]:80"):
        check_image_host(right)


def test_pages_of_other_origins_cannot_ask_unseen(loaded, running):
    # As a form of a foreign page sends it: a browser asks no leave for that.
    sent = {"Content-Type": "text/plain", "Origin": "https://page.example"}
    status, _, body = running.request("POST", "/v1/chat/completions", json.dumps(valid()), sent)
    assert status == 403 and "pages of this origin may not ask" in error_of(body)["message"]
    assert running.request("POST", "/v1/chat/completions", "{", {"Origin": "null"})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{running.port}"}
    assert running.request("POST", "/v1/chat/completions", json.dumps(valid()), own)[0] == 200
    # A foreign page whose host was made to resolve to this machine.
    port = running.port
    rebound = {"Origin": f"http://page.example:{port}", "Host": f"page.example:{port}"}
    assert running.request("POST", "/v1/chat/completions", json.dumps(valid()), rebound)[0] == 403
    local = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}"}
    assert running.request("POST", "/v1/chat/completions", json.dumps(valid()), local)[0] == 200
    with Running(loaded, EngineOptions(batch_size=1), cors_origins=("*",)) as open_to_all:
        assert open_to_all.request("POST", "/v1/chat/completions", json.dumps(valid()), sent)[0] == 200


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
