"""Clients: many at a time, every answer compared."""

import asyncio
import time
from collections.abc import Sequence

import httpx

from ..documents import Question
from .servers import NAME, Server

CONCURRENCY = 32
TURN = 100  # questions


def ask_all(server: Server, questions: Sequence[Question], model: str = NAME) -> list[list[int]]:
    """Ask vLLM all questions; return the token ids of the answers.

    Args:
        server: server to ask.
        questions: questions, at most `CONCURRENCY` of them at a time.
        model: name of the model or of an adapter.

    Raises:
        RuntimeError: a request is refused, with the server's message.
    """

    async def ask(client: httpx.AsyncClient, semaphore: asyncio.Semaphore, question: Question) -> list[int]:
        body = {**question.body(model), "return_token_ids": True}
        async with semaphore:
            response = await client.post(f"{server.url}/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} for {question.text!r}: {response.text[:500]}")
        return response.json()["choices"][0]["token_ids"]

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:
            semaphore = asyncio.Semaphore(CONCURRENCY)
            return await asyncio.gather(*(ask(client, semaphore, question) for question in questions))

    return asyncio.run(run())


def measure_in_turns(servers: dict[str, Server], questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Ask every server all questions once, `TURN` at a time in turns, so that other work slows all of them alike.

    Returns:
        Answers per second and the server's CPU seconds per answer, by server.
    """
    seconds, cpu_seconds = dict.fromkeys(servers, 0.0), dict.fromkeys(servers, 0.0)
    for first in range(0, len(questions), TURN):
        for name, server in servers.items():
            before = server.cpu_seconds()
            seconds[name] += asyncio.run(_seconds(server, questions[first : first + TURN]))
            cpu_seconds[name] += server.cpu_seconds() - before
    return {
        name: {
            "answers_per_second": round(len(questions) / seconds[name], 2),
            "cpu_seconds_per_answer": round(cpu_seconds[name] / len(questions), 3),
        }
        for name in servers
    }


async def _seconds(server: Server, questions: Sequence[Question]) -> float:
    bodies = [question.body(NAME) for question in questions]
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def ask(client: httpx.AsyncClient, body: dict) -> None:
        async with semaphore:
            response = await client.post(f"{server.url}/v1/chat/completions", json=body)
        response.raise_for_status()

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:
        started = time.perf_counter()
        await asyncio.gather(*(ask(client, body) for body in bodies))
        return time.perf_counter() - started
