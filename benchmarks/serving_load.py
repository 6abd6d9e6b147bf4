"""Many clients on one server: is every answer right, how long do they wait, does memory stay flat?

    python benchmarks/serving_load.py --model tiny --clients 32 --seconds 300

Clients ask about documents of mixed sizes through the real `openai` client, half of them streaming; some requests are
malformed, some clients hang up; with `--hostile`, some are made to take the server from everybody
(`hostile_requests.py`), and `--idle` connections send nothing. Every answer is compared with the one that `generate`
gives alone (greedy). There are two throughputs of one at a time to compare with: `alone`, `generate` in a process of
its own, image encoded each time, as a server without an engine would; and `one_client`, this very server asked by one
client, every image's features kept from an earlier question. Prints one JSON object; exits 1 if an answer was lost or
mixed up, if a status came that is not documented, or if memory grew (told from two minutes on) by more than a
twentieth after the first sixth.
With `--hostile` also if the p99 of /health is above 1 s, or if memory, some time after the load (`--settle`), is more
than a fifth above what it was before it: after one client had asked every question twice, so that modules are imported
and the caches, whose size is an option, are full. `cold` is memory before any request.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import openai
import torch

from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.loading import load
from llava_uhd.model.image_processing_llava_uhd import decode_image
from llava_uhd.synthetic.documents import make_document
from llava_uhd.synthetic.render import render

sys.path.insert(0, str(Path(__file__).parent))
from hostile_requests import Hostile, end_early, hold_idle, hostile_requests, send  # noqa: E402

DOCUMENTED = (429, 503)
WARM_UP = 1 / 6  # of the time: caches and pools are filled
FLAT = 1.05
SETTLED = 1.2
HEALTH_SECONDS = 1.0
HEALTH_INTERVAL = 0.25
MALFORMED: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b'{"model": "MODEL"}', 400),
    (b'{"model": "another", "messages": [{"role": "user", "content": "?"}]}', 404),
    (b'{"model": "MODEL", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
     b'{"url": "data:image/png;base64,AAAA"}}]}]}', 400),
]  # fmt: skip


@dataclass
class Question:
    """A question and the answer given alone."""

    image: bytes
    text: str
    alone: str = ""


@dataclass
class Record:
    """Outcomes of the requests."""

    statuses: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung_up: int = 0
    hostile: Counter = field(default_factory=Counter)
    health: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


def make_questions(count: int, seed: int) -> list[Question]:
    """Questions about documents of one view and of many, several about each."""
    questions: list[Question] = []
    index = 0
    while len(questions) < count:
        document = make_document(f"load:{seed}", index, num_slices=1 + index % 6)
        file = io.BytesIO()
        render(document.page).save(file, "PNG")
        questions += [Question(file.getvalue(), question.text) for question in document.questions[:4]]
        index += 1
    return questions[:count]


def answer_alone(model: Any, processor: Any, questions: list[Question], max_tokens: int) -> float:
    """Answers every question alone and notes the answer; questions per second."""
    started = time.perf_counter()
    for question in questions:
        message = question_message([decode_image(question.image)], question.text)
        inputs = prepare(model, processor, [message], max_tokens)
        question.alone = answer(model, processor, inputs, max_tokens, do_sample=False)
    return len(questions) / (time.perf_counter() - started)


def resident_bytes(process: int) -> int:
    """Memory of a process; Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096


class Load:
    """The clients."""

    def __init__(self, url: str, model: str, questions: list[Question], options: argparse.Namespace):
        self.url, self.model, self.questions, self.options = url, model, questions, options
        self.client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=options.deadline + 10)
        self.raw = httpx.AsyncClient(timeout=options.deadline + 10, limits=httpx.Limits(max_connections=None))
        self.hostile = hostile_requests(model) if options.hostile else []
        self.record = Record()

    async def run(self, seconds: float, process: int) -> float:
        """The load for a while; seconds until the last answer."""
        started = time.monotonic()
        end = started + seconds
        watching = [
            asyncio.create_task(self.watch_memory(process, started)),
            asyncio.create_task(self.watch_health()),
            asyncio.create_task(hold_idle(self.url, self.options.idle)),
        ]
        await asyncio.gather(*(self.one_client(number, end) for number in range(self.options.clients)))
        for task in watching:
            task.cancel()
        return time.monotonic() - started

    async def watch_health(self) -> None:
        """Ask for /health as a load balancer does, each time on a connection of its own."""
        while True:
            started = time.monotonic()
            try:
                async with httpx.AsyncClient(timeout=self.options.deadline) as client:
                    status = (await client.get(self.url.removesuffix("/v1") + "/health")).status_code
            except httpx.HTTPError as error:
                status = type(error).__name__
            if status != 200:
                self.record.wrong.append(f"/health: {status}")
            self.record.health.append(time.monotonic() - started)
            await asyncio.sleep(HEALTH_INTERVAL)

    async def one_hostile(self, chance: random.Random) -> None:
        if chance.random() < 0.1:
            await end_early(self.url)
            self.record.hostile["body that ends early"] += 1
            return
        hostile: Hostile = chance.choice(self.hostile)
        try:
            status, size = await send(self.raw, self.url, hostile)
        except httpx.HTTPError as error:  # the server answered and closed before it had the whole body
            self.record.hostile[f"{hostile.name}: {type(error).__name__}"] += 1
            return
        self.record.hostile[f"{hostile.name}: {status}"] += 1
        if status not in (*hostile.statuses, *DOCUMENTED) or size > 10_000:
            self.record.wrong.append(f"{status} and {size} bytes for {hostile.name}")

    async def one_client_alone(self) -> float:
        """Every question twice, one after the other: questions per second of the second round."""
        for _ in range(2):
            started = time.perf_counter()
            for question in self.questions:
                await self.ask(question, stream=False)
        seconds = time.perf_counter() - started
        self.record.statuses.clear()
        self.record.seconds.clear()
        return len(self.questions) / seconds

    async def watch_memory(self, process: int, started: float) -> None:
        while True:
            self.record.memory.append((round(time.monotonic() - started, 1), resident_bytes(process)))
            await asyncio.sleep(max(self.options.seconds / 60, 0.5))

    async def one_client(self, number: int, end: float) -> None:
        chance = random.Random(f"{self.options.seed}:{number}")
        while time.monotonic() < end:
            kind = chance.random()
            if self.hostile and chance.random() < self.options.hostile:
                await self.one_hostile(chance)
            elif kind < self.options.malformed:
                await self.malformed(chance)
            elif kind < self.options.malformed + self.options.hang_ups:
                await self.hang_up(chance)
            else:
                await self.ask(chance.choice(self.questions), stream=chance.random() < 0.5)

    def request(self, question: Question) -> dict[str, Any]:
        url = "data:image/png;base64," + base64.b64encode(question.image).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "max_tokens": self.options.max_tokens}

    async def ask(self, question: Question, stream: bool) -> None:
        started = time.monotonic()
        try:
            if stream:
                text, is_finished = "", False
                async for chunk in await self.client.chat.completions.create(**self.request(question), stream=True):
                    text += chunk.choices[0].delta.content or ""
                    is_finished = chunk.choices[0].finish_reason is not None
            else:
                (choice,) = (await self.client.chat.completions.create(**self.request(question))).choices
                text, is_finished = choice.message.content or "", choice.finish_reason is not None
        except openai.APIStatusError as error:
            self.record.statuses[error.status_code] += 1
            if error.status_code == 429:
                await asyncio.sleep(float(error.response.headers["retry-after"]))
            return
        except openai.APIError as error:
            if error.code == "deadline_exceeded":  # in a stream that had begun
                self.record.statuses[503] += 1
            else:
                self.record.wrong.append(f"{type(error).__name__}: {error}")
            return
        self.record.statuses[200] += 1
        self.record.seconds.append(time.monotonic() - started)
        if not is_finished or text != question.alone:
            self.record.wrong.append(f"{question.text!r}: {text!r} instead of {question.alone!r}")

    async def malformed(self, chance: random.Random) -> None:
        body, status = chance.choice(MALFORMED)
        try:
            response = await self.raw.post(
                f"{self.url}/chat/completions", content=body.replace(b"MODEL", self.model.encode())
            )
        except httpx.HTTPError as error:
            self.record.wrong.append(f"{type(error).__name__} for {body!r}")
            return
        self.record.statuses[response.status_code] += 1
        if response.status_code not in (status, *DOCUMENTED):
            self.record.wrong.append(f"{response.status_code} instead of {status} for {body!r}")

    async def hang_up(self, chance: random.Random) -> None:
        """Ask, and close the connection after a moment, whatever has come."""
        body = {**self.request(chance.choice(self.questions)), "stream": True}
        moment = chance.uniform(0.01, 1)
        try:
            async with self.raw.stream("POST", f"{self.url}/chat/completions", json=body, timeout=moment):
                await asyncio.sleep(chance.uniform(0, 0.2))
        except httpx.TimeoutException:
            pass
        except httpx.HTTPError as error:
            self.record.wrong.append(f"{type(error).__name__}: {error}")
        self.record.hung_up += 1


def percentile(values: list[float], share: float) -> float | None:
    return round(sorted(values)[min(int(share * len(values)), len(values) - 1)], 3) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--questions", type=int, default=96, help="different questions; four share an image")
    parser.add_argument("--malformed", type=float, default=0.05, help="share of requests")
    parser.add_argument("--hang-ups", type=float, default=0.05, help="share of requests")
    parser.add_argument("--hostile", type=float, default=0.0, help="share of requests; see hostile_requests.py")
    parser.add_argument("--idle", type=int, default=0, help="connections that send nothing")
    parser.add_argument("--settle", type=float, default=0.0, help="seconds until memory is measured after the load")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--deadline", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    questions = make_questions(options.questions, options.seed)
    model, processor = load(options.model)
    alone = answer_alone(model, processor, questions, options.max_tokens)
    del model
    command = [sys.executable, "-m", "llava_uhd.cli", "serve", "--model", options.model, "--port", "0", "--json"]
    command += ["--batch-size", str(options.batch_size), "--deadline", str(options.deadline), "--name", "load"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]

        cold = resident_bytes(server.pid) / 2**20

        async def measure() -> tuple[Load, float, float, float]:
            clients = Load(url, "load", questions, options)
            one_client = await clients.one_client_alone()
            before = resident_bytes(server.pid) / 2**20
            return clients, one_client, await clients.run(options.seconds, server.pid), before

        try:
            clients, one_client, lasted, before = asyncio.run(measure())
        except BaseException:
            server.kill()
            raise
        time.sleep(options.settle)
        settled_to = resident_bytes(server.pid) / 2**20
        metrics = httpx.get(url.removesuffix("/v1") + "/metrics").text
        server.terminate()
        exit_code = server.wait(options.deadline + 10)
    record = clients.record
    settled = [size / 2**20 for moment, size in record.memory if moment > options.seconds * WARM_UP]
    quarter = max(len(settled) // 4, 1)
    memory = {"warm": median(settled[:quarter]), "end": median(settled[-quarter:]), "peak": max(settled)}
    memory |= {"cold": cold, "before": before, "settled": settled_to}
    if options.hostile:
        has_grown = settled_to > SETTLED * before
    else:
        has_grown = options.seconds >= 120 and memory["end"] > FLAT * memory["warm"]
    is_slow = bool(options.hostile) and (percentile(record.health, 0.99) or 0) > HEALTH_SECONDS
    failed = {status: count for status, count in record.statuses.items() if status >= 500 and status not in DOCUMENTED}
    rate = record.statuses[200] / lasted
    print(
        json.dumps(
            {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
                "clients": options.clients,
                "seconds": round(lasted, 1),
                "answers": record.statuses[200],
                "statuses": dict(record.statuses),
                "hung_up": record.hung_up,
                "hostile": dict(sorted(record.hostile.items())),
                "health_p50_p99_max_seconds": [percentile(record.health, share) for share in (0.5, 0.99, 1)],
                "wrong": record.wrong[:5],
                "num_wrong": len(record.wrong),
                "p50_seconds": percentile(record.seconds, 0.5),
                "p99_seconds": percentile(record.seconds, 0.99),
                "answers_per_second": round(rate, 2),
                "alone_per_second": round(alone, 2),
                "one_client_per_second": round(one_client, 2),
                "times_alone": round(rate / alone, 2),
                "times_one_client": round(rate / one_client, 2),
                "memory_mib": {name: round(size) for name, size in memory.items()},
                "exit_code": exit_code,
                "engine": {
                    line.split()[0].removeprefix("llava_uhd_"): float(line.split()[1])
                    for line in metrics.splitlines()
                    if line.startswith("llava_uhd_") and "{" not in line and "_created" not in line
                },
            },
            indent=1,
        )
    )
    sys.exit(1 if record.wrong or failed or has_grown or is_slow or exit_code else 0)


if __name__ == "__main__":
    main()
