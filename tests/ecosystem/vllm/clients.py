"""Clients: many at a time, every answer compared."""

import asyncio
import time
from collections.abc import Sequence

import httpx

from ..documents import Question
from .servers import NAME, Server

CONCURRENCY = 32


def ask_all(server: Server, questions: Sequence[Question]) -> list[list[int]]:
    """Ask vLLM all questions; return the token ids of the answers."""

    async def ask(client: httpx.AsyncClient, places: asyncio.Semaphore, question: Question) -> list[int]:
        body = {**question.body(NAME), "return_token_ids": True}
        async with places:
            response = await client.post(f"{server.url}/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} for {question.text!r}: {response.text[:500]}")
        return response.json()["choices"][0]["token_ids"]

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:
            places = asyncio.Semaphore(CONCURRENCY)
            return await asyncio.gather(*(ask(client, places, question) for question in questions))

    return asyncio.run(run())


def measure(server: Server, questions: Sequence[Question]) -> dict[str, float]:
    """Ask all questions once; return answers per second and the server's CPU seconds per answer."""

    async def ask(client: httpx.AsyncClient, body: dict, places: asyncio.Semaphore) -> None:
        async with places:
            response = await client.post(f"{server.url}/v1/chat/completions", json=body)
        response.raise_for_status()

    async def run() -> float:
        bodies = [question.body(NAME) for question in questions]
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:
            places = asyncio.Semaphore(CONCURRENCY)
            started = time.perf_counter()
            await asyncio.gather(*(ask(client, body, places) for body in bodies))
            return time.perf_counter() - started

    before = server.cpu_seconds()
    seconds = asyncio.run(run())
    return {
        "answers_per_second": round(len(questions) / seconds, 2),
        "cpu_seconds_per_answer": round((server.cpu_seconds() - before) / len(questions), 3),
    }
