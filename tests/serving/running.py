"""A server on a thread, and requests for it."""

import base64
import http.client
import json
import threading
import time

import openai
import uvicorn

from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.server import ServerOptions, create_app

DEADLINE = 2.0


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


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


def image_part(content: bytes, **extra) -> dict:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url, **extra}}


def file_part(content: bytes, name: str | None = "report.pdf") -> dict:
    data = "data:application/pdf;base64," + base64.b64encode(content).decode()
    return {"type": "file", "file": {"file_data": data, **({} if name is None else {"filename": name})}}


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


def ask_raw(running, body, headers=None) -> tuple[int, dict, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, answer = running.request("POST", "/v1/chat/completions", content, headers)
    return status, error_of(answer) if status != 200 else {}, headers


def valid(**changes) -> dict:
    return {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **changes}


def with_parts(*parts) -> dict:
    return valid(messages=[{"role": "user", "content": list(parts)}])
