"""Requests that are small to send and dear to answer: each must be refused at once, with the right status.

    python benchmarks/hostile_requests.py --together 4

Starts a server and sends each request, several at a time, while `/health` is asked on connections of its own. Prints a
line per request, and then a JSON object; exits 1 if a status is wrong, an answer or `/health` is late, an answer is
long, the server's log holds a traceback, or its memory stays more than a fifth above what it was.
`serving_load.py --hostile` sends the same requests among those of its ordinary clients.
"""

import argparse
import asyncio
import base64
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from llava_uhd.serving.documents import MAX_PROCESSES
from llava_uhd.serving.engine import EngineOptions

sys.path.insert(0, str(Path(__file__).parent))
from hostile_documents import (  # noqa: E402
    gif_of_frames,
    jpeg_with_tags,
    many_chunks,
    many_frames,
    many_scans,
    one_bit_png,
    one_row,
    overlapping_tags,
    pdf,
    pdf_of_pages,
    pdf_page,
    plain_image,
    png_with,
    tiff_of_pages,
)

MIB = 2**20
HEALTH_INTERVAL = 0.1  # seconds
NEW_CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
MODEL = "MODEL"  # replaced by the name that the server goes by


@dataclass(frozen=True)
class Hostile:
    """A request and the statuses that are right for it, besides those of a server that is busy.

    Documents may take as long as the server lets them render, a few at a time.
    """

    name: str
    body: bytes
    statuses: tuple[int, ...] = (400,)
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    is_document: bool = False


@dataclass(frozen=True)
class Raw:
    """Bytes of a connection, sent with a pause between them, and the right statuses; None for one that is closed."""

    name: str
    sent: tuple[bytes, ...]
    statuses: tuple[int | None, ...] = (400,)
    pause: float = 0.0


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def message(*images: str, text: str = "What is this?") -> list[dict]:
    parts: list[dict] = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def request(**values: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": message(), "max_tokens": 4, **values}).encode()


def document(content: bytes) -> list[dict]:
    url = "data:application/pdf;base64," + base64.b64encode(content).decode()
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def with_value(name: str, value: bytes) -> bytes:
    """A request with a value as it stands, JSON or not."""
    return request()[:-1] + b', "%s": %s}' % (name.encode(), value)


def hostile_images() -> list[Hostile]:
    """Return requests with images and documents."""
    exif = overlapping_tags(4_000, 200_000)
    images = {
        "EXIF in a PNG, tags of the same bytes": (png_with(b"eXIf", exif), (400,)),
        "EXIF in a JPEG, tags of the same bytes": (jpeg_with_tags(exif), (400,)),
        "EXIF of 60,000 tags": (png_with(b"eXIf", overlapping_tags(60_000, 100_000)), (400,)),
        "TIFF, tags of the same bytes": (overlapping_tags(4_000, 1_000_000), (400,)),
        "GIF of 100,000 frames": (gif_of_frames(100_000), (200,)),
        "WebP of 60 frames": (many_frames("WEBP", 400, 60), (200,)),
        "TIFF of 20,000 pages": (tiff_of_pages(20_000), (200, 400)),
        "PNG, color profile of 500 MB": (png_with(b"iCCP", b"x\0\0" + zlib.compress(bytes(500_000_000), 9)), (400,)),
        "PNG, compressed texts": (
            png_with(b"zTXt", *(b"k%d\0\0" % number + zlib.compress(bytes(1_000_000)) for number in range(100))),
            (400,),
        ),
        "PNG of one row": (one_row(), (400,)),
        "PPM in Python": (b"P6 2000 2000 100\n" + bytes(12_000_000), (400,)),
        "WebP of 67 million pixels": (plain_image("WEBP", lossless=True), (400,)),
        "AVIF of 67 million pixels": (plain_image("AVIF", speed=10), (400,)),
        "image of nothing": (b"", (400,)),
    }
    requests = [
        Hostile(name, request(messages=message(data_url(content))), statuses)
        for name, (content, statuses) in images.items()
    ]
    box = b"/MediaBox [0 0 %s] /Contents 4 0 R"
    bomb = zlib.compress(b"0 0 m 9 9 l S\n" * 5_000_000, 9)
    documents = {
        "PDF of 5,000 pages": (pdf_of_pages(5_000), (400,)),
        "PDF, page of 1e9 points": (pdf_page(box % b"1e9 1e9"), (200, 400)),
        "PDF, page of 1e9 x 1e-6 points": (pdf_page(box % b"1000000000 0.000001"), (200, 400)),
        "PDF, page of no area": (pdf_page(box % b"0 0"), (200, 400)),
        "PDF, content of 70 MB": (pdf_page(box % b"99 99", bomb, b"/Filter /FlateDecode"), (200, 400)),
        "PDF, pages of pages": (
            pdf(b"<</Type /Catalog /Pages 2 0 R>>", b"<</Type /Pages /Kids [2 0 R 2 0 R] /Count 99>>"),
            (400,),
        ),
        "PDF, nested arrays": (pdf(b"<</Type /Catalog /Pages " + b"[" * 1_000_000 + b">>"), (400,)),
        "PDF of nothing": (b"%PDF-1.7\n", (400,)),
    }
    requests += [
        Hostile(name, request(messages=document(content)), statuses, is_document=True)
        for name, (content, statuses) in documents.items()
    ]
    return requests


def hostile_values(size: int) -> list[Hostile]:
    """Return requests with values, texts and encodings that are none, or absurd."""
    percent = "data:image/png;base64," + "%41" * (size // 3)
    spaces = "data:image/png;base64," + "AB " * (size // 3)
    text = "\ufdfa\u0344" * 30_000
    return [
        Hostile("tools, nested 10,000 times", with_value("tools", nested(10_000))),
        Hostile("response_format, nested 30 times", with_value("response_format", nested(30))),
        Hostile("100,000 stop strings", request(stop=["x"] * 100_000)),
        Hostile("5,000 stop strings", request(stop=["x"] * 5_000)),
        Hostile("logit_bias of a million keys", request(logit_bias={str(key): 1 for key in range(1_000_000)})),
        Hostile("logit_bias of 9,000 keys", request(logit_bias={str(key): 1 for key in range(9_000)})),
        Hostile("text that grows when it is normalized", request(messages=message(text=text)), (200, 400)),
        Hostile("text of one word", request(messages=message(text="a" * 60_000)), (200, 400)),
        Hostile("text of spaces", request(messages=message(text=" " * 60_000)), (200, 400)),
        Hostile("text of combining marks", request(messages=message(text="a" + "\u0301" * 60_000)), (200, 400)),
        Hostile("text of special tokens", request(messages=message(text="<image><|im_end|>" * 3_500)), (200, 400)),
        Hostile("1,000 messages", request(messages=message() * 1_000), (200, 400)),
        Hostile("data URL, percent-encoded", request(messages=message(percent))),
        Hostile("data URL of spaces", request(messages=message(spaces))),
        Hostile("data URL of a long type", request(messages=message("data:" + "x" * 2**20 + ";base64,AAAA"))),
        Hostile("URL of 1 MB", request(messages=message("http://x/" + "a" * 2**20))),
        Hostile("seed of 10,000 digits", with_value("seed", b"1" * 10_000)),
        Hostile("seed beyond 64 bits", request(seed=2**63)),
        Hostile("n of a billion", request(n=10**9)),
        Hostile("max_tokens of 0", request(max_tokens=0)),
        Hostile("max_tokens beyond the context", request(max_tokens=10**12), (200, 400)),
        Hostile("max_tokens of 1e999", with_value("max_tokens", b"1e999")),
        Hostile("temperature of 1e999", with_value("temperature", b"1e999")),
        Hostile("temperature of NaN", with_value("temperature", b"NaN")),
        Hostile("top_p of -Infinity", with_value("top_p", b"-Infinity")),
        Hostile("top_p of 1e-400", with_value("top_p", b"1e-400")),
        Hostile("a key 10,000 times", with_value("seed", b'1, "seed": 1' * 1 + b', "seed": 1' * 9_998), (200, 400)),
        Hostile("a key of 1 MB", request(**{"k" * 2**20: 1})),
        Hostile("UTF-8 that is none", request(messages=message(text="TEXT")).replace(b"TEXT", b"\xff\xc0\x80")),
        Hostile("half a surrogate pair", with_value("user", b'"\\ud83d"')),
        Hostile("UTF-16", request().decode().encode("utf-16")),
        Hostile("gzip", gzip.compress(request()), (415,), headers={"Content-Encoding": "gzip"}),
        Hostile("gzip of 1 GB", gzip.compress(bytes(10**8)), (415,), headers={"Content-Encoding": "gzip"}),
        Hostile("zeros", bytes(size)),
        Hostile("nothing", b""),
        Hostile("path of 60 KB", b"{}", (404,), "/v1/" + "a" * 60_000),
        Hostile("model name of 60 KB", b"{}", (404, 405), "/v1/models/" + "a" * 60_000),
    ]


def raw_requests() -> list[Raw]:
    """Return what no HTTP client sends."""
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    return [
        Raw("HEAD", (b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n",), (405,)),
        Raw("OPTIONS", (b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n",), (405,)),
        Raw("CONNECT", (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",), (404, 405)),
        Raw("method of 60 KB", (b"A" * 60_000 + b" /health HTTP/1.1\r\nHost: x\r\n\r\n",), (400, 405)),
        Raw("absolute target", (b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n",), (200, 400, 404)),
        Raw("HTTP/1.0", (b"GET /health HTTP/1.0\r\n\r\n",), (200,)),
        Raw("HTTP/2", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), (400, 404)),
        Raw("TLS", (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),), (400, None)),
        Raw("no host", (b"GET /health HTTP/1.1\r\n\r\n",)),
        Raw("two hosts", (get + b"Host: y\r\n\r\n",)),
        Raw("header name of 300 KB", (get + b"a" * 300_000 + b": 1\r\n\r\n",)),
        Raw("30,000 headers", (get + b"a:1\r\n" * 30_000 + b"\r\n",)),
        Raw("header with a zero", (get + b"A: \0\r\n\r\n",)),
        Raw("space before a colon", (get + b"A : 1\r\n\r\n",)),
        Raw("websocket", (get + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",), (200, 400, 404)),
        Raw("5,000 requests at once", ((get + b"\r\n") * 5_000,), (200,)),
        Raw("length of -1", (post + b"Content-Length: -1\r\n\r\n",)),
        Raw("length of 1e3", (post + b"Content-Length: 1e3\r\n\r\n",)),
        Raw("length of 30 digits", (post + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",), (400, 413)),
        Raw("length of a terabyte", (post + b"Content-Length: 1000000000000\r\n\r\n",), (413,)),
        Raw("Transfer-Encoding: gzip", (post + b"Transfer-Encoding: gzip\r\n\r\n",), (400, 501)),
        Raw("Expect without a body", (post + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",), (100, 408)),
        Raw("chunks of a byte", (chunked, b"1\r\na\r\n" * 400_000), (400, None)),
        Raw("chunks without end", (chunked, *[b"400\r\n" + b" " * 1024 + b"\r\n"] * 3_000), (408,), 0.02),
        Raw("size of a chunk, 30 digits", (chunked + b"f" * 30 + b"\r\n",)),
        Raw("size of a chunk, -1", (chunked + b"-1\r\n",)),
        Raw("extension of a chunk, 100 KB", (chunked + b"1;" + b"a" * 100_000 + b"\r\na\r\n",), (400, 408)),
        Raw("headers behind the chunks", (chunked + b"0\r\n" + b"a:1\r\n" * 30_000 + b"\r\n",), (400, None)),
        Raw("head, byte by byte", tuple(bytes([each]) for each in get * 20), (None,), 0.05),
        Raw("body, byte by byte", (post + b"Content-Length: 999\r\n\r\n", *[b" "] * 900), (408,), 0.05),
    ]


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
    requests += hostile_values(size) + hostile_images()
    return [replace(each, body=each.body.replace(MODEL.encode(), model.encode(), 1)) for each in requests]


async def send(client: httpx.AsyncClient, url: str, hostile: Hostile) -> tuple[int, int]:
    """Send a request; return its status and the bytes of its answer."""
    address = url.removesuffix("/v1") + hostile.path
    response = await client.post(address, content=hostile.body, headers=hostile.headers)
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


async def send_raw(url: str, raw: Raw, seconds: float) -> int | None:
    """Send bytes; return the status of the first response, None if the connection is closed without one."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)

    async def write() -> None:
        for piece in raw.sent:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(raw.pause)

    writing = asyncio.create_task(write())
    try:
        line = await asyncio.wait_for(reader.readline(), seconds)
    except OSError:
        line = b""
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.transport.abort()
    return int(line.split()[1]) if line else None


@dataclass
class Outcome:
    """Outcome of a request, sent several times at once.

    Attributes:
        name: name of the request.
        statuses: number of answers by status.
        seconds: seconds until the last answer.
        cpu: CPU seconds of the server and of the processes that it waited for.
        health: longest wait for /health in seconds.
        wrong: reasons why the outcome is wrong; empty if it is right.
    """

    name: str
    statuses: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    cpu: float = 0.0
    health: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Prober:
    """Sends the requests one after the other, several of each at a time."""

    def __init__(self, url: str, server: int, options: argparse.Namespace):
        self.url, self.server, self.options = url, server, options
        turns = math.ceil(options.together / MAX_PROCESSES)
        self.document_seconds = options.seconds + turns * EngineOptions.image_seconds
        self.client = httpx.AsyncClient(timeout=self.document_seconds + 10, verify=False, limits=NEW_CONNECTIONS)
        self.health: list[float] = []

    async def run(self, requests: list[Hostile | Raw]) -> list[Outcome]:
        watching = asyncio.create_task(self._watch_health())
        outcomes = []
        for each in requests:
            outcome = await self._send(each)
            outcomes.append(outcome)
            statuses = " ".join(f"{number} x {status}" for status, number in outcome.statuses.items())
            wrong = "".join(f"; {said}" for said in outcome.wrong)
            times = f"{outcome.seconds:6.2f} s, {outcome.cpu:5.2f} CPU s, /health {outcome.health:.2f} s"
            print(f"{outcome.name:40} {statuses:18} {times}{wrong}", flush=True)
        watching.cancel()
        return outcomes

    async def _watch_health(self) -> None:
        parts = urlsplit(self.url)
        while True:
            started = time.monotonic()
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await reader.read()
            writer.close()
            self.health.append(time.monotonic() - started)
            await asyncio.sleep(HEALTH_INTERVAL)

    async def _send(self, each: Hostile | Raw) -> Outcome:
        outcome, started, cpu = Outcome(each.name), time.monotonic(), _cpu_seconds(self.server)
        self.health.clear()

        async def one() -> None:
            try:
                if isinstance(each, Raw):
                    status, size = await send_raw(self.url, each, self.options.seconds + 10), 0
                else:
                    status, size = await send(self.client, self.url, each)
            except (httpx.WriteError, httpx.ReadError):  # closed before all of the body was sent
                status, size = None, 0
            except (httpx.TimeoutException, TimeoutError):
                outcome.wrong.append("no answer")
                return
            outcome.statuses[status] += 1
            # A client that is still sending a large body may not see the answer.
            unseen = (None,) if isinstance(each, Hostile) and len(each.body) > MIB else ()
            if status not in (*each.statuses, 429, 503, *unseen):
                outcome.wrong.append(f"{status} instead of {each.statuses}")
            if size > 10_000:
                outcome.wrong.append(f"an answer of {size} bytes")

        await asyncio.gather(*(one() for _ in range(self.options.together)))
        outcome.seconds = time.monotonic() - started
        outcome.cpu = _cpu_seconds(self.server) - cpu
        await asyncio.sleep(HEALTH_INTERVAL)
        outcome.health = max(self.health, default=0.0)
        is_document = isinstance(each, Hostile) and each.is_document
        if outcome.seconds > (self.document_seconds if is_document else self.options.seconds):
            outcome.wrong.append("late")
        if outcome.health > self.options.health:
            outcome.wrong.append("/health late")
        return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="model to serve (default: tiny)")
    parser.add_argument("--together", type=int, default=4, help="number of each request at a time (default: 4)")
    parser.add_argument("--only", help="requests whose name holds this text alone")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds until the last answer (default: 20)")
    parser.add_argument("--health", type=float, default=1.0, help="seconds for /health (default: 1)")
    parser.add_argument("--settle", type=float, default=15.0, help="seconds until memory is measured (default: 15)")
    options = parser.parse_args()
    requests: list[Hostile | Raw] = [*hostile_requests("hostile"), *raw_requests()]
    requests = [each for each in requests if not options.only or options.only in each.name]
    command = [sys.executable, "-m", "llava_uhd.cli", "serve", "--model", options.model, "--port", "0", "--json"]
    command += ["--name", "hostile", "--body-timeout", "10", "--head-timeout", "5"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            url = json.loads(server.stdout.readline())["url"]
            warm = Hostile("warm", request(messages=message(data_url(one_bit_png(500)))).replace(b"MODEL", b"hostile"))

            async def measure() -> tuple[list[Outcome], int]:
                async with httpx.AsyncClient(timeout=60, verify=False) as client:
                    for _ in range(3):
                        await send(client, url, warm)
                return await Prober(url, server.pid, options).run(requests), _memory(server.pid)

            time.sleep(6)  # its memory is trimmed once it is idle
            start = _memory(server.pid)
            outcomes, peak = asyncio.run(measure())
            time.sleep(options.settle)
            end = _memory(server.pid)
        finally:
            server.terminate()
            server.wait(60)
        log.seek(0)
        tracebacks = log.read().count("Traceback")
    wrong = [f"{outcome.name}: {said}" for outcome in outcomes for said in outcome.wrong]
    report = {
        "requests": len(outcomes),
        "together": options.together,
        "longest_cpu_s": round(max(outcome.cpu for outcome in outcomes), 2),
        "longest_s": round(max(outcome.seconds for outcome in outcomes), 2),
        "health_s": round(max(outcome.health for outcome in outcomes), 2),
        "memory_mib": {"before": start, "after_the_last": peak, "settled": end},
        "tracebacks": tracebacks,
        "wrong": wrong,
    }
    print(json.dumps(report, ensure_ascii=False))
    sys.exit(bool(wrong) or bool(tracebacks) or end > 1.2 * start)


def _memory(process: int) -> int:
    """Return the resident memory of a process in MiB; Linux."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 // MIB


def _cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process and of its children that ended; Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
