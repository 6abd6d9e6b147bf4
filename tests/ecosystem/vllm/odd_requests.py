"""Odd requests: malformed, hostile or merely rare ones, of which none may end the server."""

import asyncio
import base64
import io
import json
import random
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from PIL import Image

from ..documents import data_url
from .servers import NAME, Server

Body = dict[str, Any] | bytes
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def random_image(rng: random.Random, mode: str = "RGB", size: tuple[int, int] | None = None) -> Image.Image:
    """A small image of noise."""
    width, height = size or (rng.randrange(1, 300), rng.randrange(1, 300))
    noise = np.frombuffer(rng.randbytes(width * height), np.uint8).reshape(height, width)
    return Image.fromarray(noise).convert(mode)


def chat(*parts: Any, **options: Any) -> tuple[str, Body]:
    """A chat request of one message."""
    messages = [{"role": "user", "content": list(parts)}]
    return CHAT, {"model": NAME, "max_tokens": 4, "temperature": 0, "messages": messages, **options}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def encoded(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def huge_png() -> bytes:
    """A PNG that promises 100,000 x 100,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def bad_json(rng: random.Random) -> tuple[str, Body]:
    return rng.choice([CHAT, COMPLETIONS]), rng.choice(
        [b"", b"{", b"[]", b"null", b'"x"', rng.randbytes(40), b"[" * 5000]
    )


def wrong_types(rng: random.Random) -> tuple[str, Body]:
    path, body = chat(text("Hi"))
    assert isinstance(body, dict)
    key = rng.choice(["messages", "max_tokens", "temperature", "stop", "n", "seed", "logit_bias", "top_p", "stream"])
    body[key] = rng.choice([None, -1, 0, 10**12, "x", [], {}, [[]], 1e308, -0.5, True, {"a": {"b": []}}])
    return path, body


def odd_messages(rng: random.Random) -> tuple[str, Body]:
    messages = rng.choice(
        [
            [],
            [{}],
            [{"role": "user"}],
            [{"role": "stranger", "content": "Hi"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": ""}],
            [{"role": "assistant", "content": "Hi"}],
            [{"role": "system", "content": "<image>"}, {"role": "user", "content": "Hi"}],
            [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}],
            [{"role": "tool", "content": "1", "tool_call_id": "x"}],
            [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}]}],
            [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]}],
            [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "AAAA"}]}],
            [{"role": "user", "content": [{"type": "unheard", "of": 1}]}],
        ]
    )
    return CHAT, {"model": NAME, "max_tokens": 4, "messages": messages}


def words(rng: random.Random) -> tuple[str, Body]:
    reserved = [
        "<image>",
        "<|slice_separator|>",
        "<|row_separator|>",
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "\x00",
        "\ufdd0",
    ]
    said = "".join(rng.choice([*reserved, " ", "a", "你", "\n", "🙂", "\ud83d"]) for _ in range(rng.randrange(1, 60)))
    parts = [image(data_url(random_image(rng))) for _ in range(rng.randrange(3))]
    return chat(*parts, text(said))


def broken_images(rng: random.Random) -> tuple[str, Body]:
    whole = png(random_image(rng))
    urls = [
        "",
        "data:",
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,not base64!",
        encoded(whole[: rng.randrange(1, len(whole))]),
        encoded(rng.randbytes(200)),
        encoded(huge_png()),
        encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "file:///etc/passwd",
        "http://127.0.0.1:9/none.png",
        "ftp://127.0.0.1/none.png",
        "nonsense",
        None,
        7,
    ]
    return chat(image(rng.choice(urls)), text("What is this?"))


def odd_images(rng: random.Random) -> tuple[str, Body]:
    size = rng.choice([(1, 1), (1, 500), (2000, 1), (3000, 2), (4000, 7), (2, 2), (1500, 1500), (13, 900), (336, 336)])
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I", "CMYK"])
    options = {"format": "TIFF"} if mode in ("CMYK", "I") else {}
    data = png(random_image(rng, "L", size).convert(mode), **options)
    return chat(image(encoded(data)), text("What is this?"), max_tokens=rng.choice([1, 4, 0]))


def processor_options(rng: random.Random) -> tuple[str, Body]:
    values = [0, -1, 1, 2, 3.5, True, "two", None, [], {}, [1, 2], 10**9, float("inf"), 10**30]
    options = rng.choice(
        [
            {"max_slices": rng.choice(values)},
            {"view_size": 28, "max_slices": 1},
            {"patch_size": 7},
            {"max_side": 10**6},
            {"images_kwargs": {"max_slices": 2}},
            {"do_rescale": False},
            {"image_mean": [0, 0]},
            {"text_kwargs": {"padding": "max_length"}},
            {"return_tensors": "np"},
            {"tokenizer": None},
        ]
    )
    return chat(image(data_url(random_image(rng))), text("What?"), mm_processor_kwargs=options)


def token_ids(rng: random.Random) -> tuple[str, Body]:
    ids = rng.choice(
        [[-1], [10**9], [2**63], [], [[]], [[1, 2], [3]], ["a"], list(range(0, 700)), [3] * 20, [1, 5000]]
    )
    if rng.random() < 0.5:
        ids = [rng.randrange(0, 600) for _ in range(rng.randrange(1, 40))]
    options = rng.choice([{}, {"prompt_logprobs": 2}, {"echo": True, "logprobs": 1}, {"repetition_penalty": 1.5}])
    return COMPLETIONS, {"model": NAME, "max_tokens": 3, "prompt": ids, **options}


def sampling(rng: random.Random) -> tuple[str, Body]:
    beyond = rng.choice([262, 263, 400, 425, 426, 500, 10**6, -5])
    options = rng.choice(
        [
            {"logit_bias": {str(beyond): 100}},
            {"allowed_token_ids": [beyond]},
            {"bad_words": rng.choice([["<image>"], ["<|slice_separator|>"], [""], ["a b c"]])},
            {"stop_token_ids": [beyond], "min_tokens": 2},
            {"logprobs": True, "top_logprobs": rng.choice([0, 5, 20, 10**4, -1])},
            {"prompt_logprobs": 3},
            {"repetition_penalty": 1.3, "frequency_penalty": 1, "presence_penalty": 1},
            {"n": rng.choice([2, 100000, -1]), "temperature": 1},
            {"temperature": rng.choice([-1, 1e-9, 1e9, 5]), "top_k": rng.choice([-1, 0, 1, 10**9]), "min_p": 0.9},
            {"top_p": rng.choice([0, -1, 2, 1e-12])},
            {"seed": rng.choice([-(2**63), 2**63 - 1, 2**64])},
            {"stop": rng.choice([[""], ["a"] * 100, "x" * 10000])},
            {"max_tokens": rng.choice([0, 1, 10**6, -1])},
            {"truncate_prompt_tokens": rng.choice([1, 5, 300, -1, 0])},
            {"ignore_eos": True, "max_tokens": 40},
            {"response_format": {"type": "json_object"}},
            {"structured_outputs": {"regex": rng.choice(["[0-9]{3}", "(", "<image>", "(a|aa)+$"])}},
            {"structured_outputs": {"choice": ["yes", "<image>", "no"]}},
            {"structured_outputs": {"json": {"type": "object", "properties": {"<image>": {"type": "integer"}}}}},
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto"},
            {"chat_template": "{{ messages }}"},
            {"chat_template_kwargs": {"tokenize": True, "chat_template": "{% for x in range(3) %}{{x}}{% endfor %}"}},
            {"add_generation_prompt": True, "continue_final_message": True},
            {"continue_final_message": True, "add_generation_prompt": False},
            {"echo": True},
            {"kv_transfer_params": {"a": 1}},
            {"prompt_embeds": "AAAA"},
            {"cache_salt": rng.choice(["", "x", 5])},
            {"priority": 5},
            {"use_beam_search": True, "n": 2},
        ]
    )
    parts = [image(data_url(random_image(rng))) for _ in range(rng.randrange(2))]
    return chat(*parts, text("What is this?"), **options)


def identities(rng: random.Random) -> tuple[str, Body]:
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": data_url(random_image(rng))}, "uuid": "shared"}
    return chat(rng.choice([part, {"type": "image_url", "image_url": None, "uuid": rng.choice(["shared", "unseen"])}]))


def many_images(rng: random.Random) -> tuple[str, Body]:
    url = data_url(random_image(rng, size=(200, 200)))
    return chat(*[image(url)] * rng.choice([5, 40]), text("How many?"))


def long_texts(rng: random.Random) -> tuple[str, Body]:
    return chat(text(rng.choice(["a", "<image>", "\n", "ab "]) * rng.choice([2000, 100_000])))


def other_routes(rng: random.Random) -> tuple[str, Body]:
    path = rng.choice(
        ["/tokenize", "/detokenize", "/v1/responses", "/v1/messages", "/v1/embeddings", "/inference/v1/generate"]
    )
    body: dict[str, Any] = {"model": NAME, "max_tokens": 3}
    body |= rng.choice(
        [
            {"prompt": "<image><|row_separator|>"},
            {"tokens": [0, 5, 262, 263, 10**6]},
            {"input": [{"role": "user", "content": "<image>"}], "max_output_tokens": 3},
            {"messages": [{"role": "user", "content": "<image> Hi"}]},
            {"token_ids": [1, 3, 3, 400, 426], "sampling_params": {"max_tokens": 3, "prompt_logprobs": 1}},
        ]
    )
    return path, body


KINDS: list[Callable[[random.Random], tuple[str, Body]]] = [
    bad_json,
    wrong_types,
    odd_messages,
    words,
    broken_images,
    odd_images,
    processor_options,
    token_ids,
    sampling,
    sampling,
    identities,
    many_images,
    long_texts,
    other_routes,
]


def rejected() -> dict[str, tuple[str, Body]]:
    """Requests that docs/vllm.md says are answered with status 400."""
    rng = random.Random(0)
    url = data_url(random_image(rng, size=(60, 40)))
    return {
        "another option of the processor": chat(image(url), text("?"), mm_processor_kwargs={"do_rescale": False}),
        "more slices than the server's": chat(image(url), text("?"), mm_processor_kwargs={"max_slices": 1000}),
        "a token id without an embedding": (COMPLETIONS, {"model": NAME, "max_tokens": 1, "prompt": [10**6]}),
        "an image token without an image": (COMPLETIONS, {"model": NAME, "max_tokens": 1, "prompt": "<image> Hi"}),
    }


def more_than_two_images() -> dict[str, tuple[str, Body]]:
    """A request with more images than a limit of two."""
    url = data_url(random_image(random.Random(0), size=(60, 40)))
    return {"three images": chat(*[image(url)] * 3, text("?"))}


def check_rejected(server: Server, requests: dict[str, tuple[str, Body]]) -> int:
    """Send requests that must be answered with status 400; return how many there are.

    Raises:
        RuntimeError: one has another status.
    """
    for name, (path, body) in requests.items():
        response = httpx.post(server.url + path, json=body, timeout=120)
        if response.status_code != 400:
            raise RuntimeError(f"{name}: status {response.status_code}, {response.text[:300]}")
    return len(requests)


def attack(server: Server, count: int, seed: int = 0, concurrency: int = 8) -> Counter:
    """Send odd requests; return how many had which status.

    Raises:
        RuntimeError: the server no longer answers, naming the requests before that.
    """
    rng = random.Random(seed)
    statuses: Counter = Counter()

    async def send(client: httpx.AsyncClient, path: str, body: Body) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        hang_up = {"timeout": rng.uniform(0.01, 0.3)} if rng.random() < 0.1 else {}
        try:
            response = await client.post(server.url + path, content=content, headers=JSON, **hang_up)
        except httpx.TimeoutException:
            if not hang_up:
                raise
            statuses["hung up"] += 1
            return
        statuses[response.status_code] += 1
        if response.status_code >= 500:
            print(f"  {response.status_code} for {path} {str(body)[-300:]}: {response.text[:300]}", file=sys.stderr)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=300) as client:
            for first in range(0, count, concurrency):
                requests = [KINDS[index % len(KINDS)](rng) for index in range(first, min(first + concurrency, count))]
                results = await asyncio.gather(
                    *(send(client, *request) for request in requests), return_exceptions=True
                )
                errors = [result for result in results if isinstance(result, Exception)]
                if errors or not server.is_alive():
                    sent = "\n".join(f"{path} {str(body)[:300]}" for path, body in requests)
                    raise RuntimeError(f"after {first} requests the server is gone ({errors}):\n{sent}")

    asyncio.run(run())
    return statuses


JSON = {"Content-Type": "application/json"}
