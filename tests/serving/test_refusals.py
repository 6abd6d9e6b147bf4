"""Requests that are rejected, each with its status and what is wrong; whatever else comes is answered, too."""

import io
import json
import time
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import random_image
from tests.serving.conftest import png
from tests.serving.running import DEADLINE, ask_raw, error_of, image_part, valid, with_parts


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
        (valid(web_search_options={}), 400, "web_search_options is not supported"),
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
