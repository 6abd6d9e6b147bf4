"""Requests that are small to send and were dear to answer: each must be refused at once, with the right status.

`serving_load.py --hostile` sends them among those of its ordinary clients.
"""

import asyncio
import base64
import io
import json
import zlib
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx
from PIL import Image

MIB = 2**20
MODEL = "MODEL"  # replaced by the name that the server goes by


@dataclass(frozen=True)
class Hostile:
    """A request and the statuses that are right for it, besides those of a server that is busy."""

    name: str
    body: bytes
    statuses: tuple[int, ...] = (400,)
    path: str = "/v1/chat/completions"


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def message(*images: str, text: str = "What is this?") -> list[dict]:
    parts: list[dict] = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def request(**values: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": message(), "max_tokens": 4, **values}).encode()


def one_bit_png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (side, side), 1).save(file, "PNG")
    return file.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose smallest scan is repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 200).save(file, "JPEG", progressive=True, quality=50)
    data = file.getvalue()
    starts = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    # The last segment also holds the end-of-image marker, so it is not a candidate.
    scan = min((data[start:end] for start, end in zip(starts, starts[1:], strict=False)), key=len)
    return data[: starts[-1]] + scan * scans + data[starts[-1] :]


def many_chunks(number: int) -> bytes:
    """A PNG of nothing but comments."""
    data = b"tEXtk\0v"
    chunk = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk * number


def hostile_requests(model: str, size: int = 19 * MIB) -> list[Hostile]:
    """Return the requests to a server of the model, the largest of about `size` bytes."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    large = data_url(one_bit_png(8192))
    requests = [
        Hostile("stop of 600 KB", request(stop="x" * 600_000)),
        Hostile("max_slices without bound", request(messages=message(*[large] * 4), max_slices=100_000)),
        Hostile("slices beyond the context", request(messages=message(*[large] * 4), max_slices=64)),
        Hostile("pixels of many images", request(messages=message(*[large] * 16), max_slices=1)),
        Hostile("JPEG of 3,000 scans", request(messages=message(data_url(many_scans(8192, 3000))))),
        Hostile("PNG of comments", request(messages=message(data_url(many_chunks(500_000))))),
        Hostile("list of lists", b"[" + b"[]," * (size // 3) + b"[]]"),
        Hostile("brackets", b"[" * size),
        Hostile("655,000 messages", b'{"messages":[' + b'{"role":"user","content":""},' * (size // 29) + b"{}]}"),
        Hostile("one long text", request(messages=message(text="a" * size))),
        Hostile("escaped quotes", b'{"model":"' + b'\\"' * (size // 2) + b'"}'),
        Hostile("number of many digits", b'{"seed":' + b"1" * size + b"}"),
        Hostile("EPS", request(messages=message(data_url(eps)))),
        Hostile("private address", request(messages=message("http://[64:ff9b::7f00:1]/a.png"))),
        Hostile("path that is not ASCII", request(messages=message("http://127.0.0.1/größe.png"))),
        Hostile("temperature of 1e-40", request(temperature=1e-40), (200,)),
        Hostile(
            "generation_config", request(generation_config=json.dumps({"do_sample": True, "temperature": 0})), (200,)
        ),
        Hostile("brackets to /load_model", b"[" * MIB, (400,), "/load_model"),
        Hostile("model of 1 MB", json.dumps({"model": "m" * MIB, "messages": message()}).encode(), (404,)),
    ]
    return [replace(each, body=each.body.replace(MODEL.encode(), model.encode(), 1)) for each in requests]


async def send(client: httpx.AsyncClient, url: str, hostile: Hostile) -> tuple[int, int]:
    """Send a request; return its status and the bytes of its answer."""
    response = await client.post(url.removesuffix("/v1") + hostile.path, content=hostile.body)
    return response.status_code, len(response.content)


async def end_early(url: str) -> None:
    """Begin a body and hang up."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()


async def hold_idle(url: str, number: int) -> None:
    """Open connections that send nothing, again and again as the server closes them, until cancelled."""
    parts = urlsplit(url)

    async def idle() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                await reader.read()
                writer.close()
            except OSError:
                pass
            await asyncio.sleep(1)

    await asyncio.gather(*(idle() for _ in range(number)))
