"""Ray Serve around the built-in engine: two replicas, answers and streams as `generate` gives them.

Runs the deployment that docs/vllm.md shows, read from there.
"""

import asyncio
import re
import sys
from pathlib import Path

import httpx
import openai

from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.loading import load

from .documents import Question, one_image

GUIDE = Path(__file__).parents[2] / "docs" / "vllm.md"
MAX_TOKENS = 32
DOCUMENTS = 40
CONCURRENCY = 8


def shown_deployment() -> str:
    """The Python code of the guide's section on Ray Serve."""
    (section,) = re.findall(r"^## Ray Serve\n(.*?)(?=^## |\Z)", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return code


async def ask(client: openai.AsyncOpenAI, question: Question, stream: bool) -> str:
    """Ask the served model."""
    request = question.body("tiny")
    if not stream:
        (choice,) = (await client.chat.completions.create(**request)).choices
        return choice.message.content or ""
    text = ""
    async for chunk in await client.chat.completions.create(**request, stream=True):
        text += chunk.choices[0].delta.content or ""
    return text


async def ask_all(questions: list[Question]) -> list[str]:
    """Ask all questions, every other one as a stream."""
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", timeout=300)
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def one(index: int, question: Question) -> str:
        async with semaphore:
            return await ask(client, question, stream=index % 2 == 1)

    return await asyncio.gather(*(one(index, question) for index, question in enumerate(questions)))


def main() -> int:
    """Compare; return 1 if an answer differs."""
    from ray import serve

    questions = one_image(DOCUMENTS, "ray-serve")
    model, processor = load("tiny", device="cpu", dtype="float32")
    expected = []
    for question in questions:
        inputs = prepare(model, processor, [question_message(question.images, question.text)], MAX_TOKENS)
        expected.append(answer(model, processor, inputs, MAX_TOKENS, do_sample=False))
    module: dict = {"__name__": "deployment"}
    exec(compile(shown_deployment(), str(GUIDE), "exec"), module)  # it ends with `serve.run`
    try:
        answers = asyncio.run(ask_all(questions))
        replicas = serve.status().applications["default"].deployments
        running = {name: dict(status.replica_states) for name, status in replicas.items()}
        odd = httpx.post("http://127.0.0.1:8000/v1/chat/completions", content=b"{").status_code
    finally:
        serve.shutdown()
    same = sum(left == right for left, right in zip(answers, expected, strict=True))
    print(f"{same} of {DOCUMENTS} answers as generate, half of them streamed; replicas {running}; malformed: {odd}")
    return int(same != DOCUMENTS or odd != 400)


if __name__ == "__main__":
    sys.exit(main())
