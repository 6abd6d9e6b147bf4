"""Servers to compare: vLLM with the plug-in, and the package's own."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

NAME = "model"
START_SECONDS = 1800  # on a busy machine; half a minute on a quiet one


@dataclass
class Server:
    """A server that answers.

    Attributes:
        url: address, without a path.
        process: its first process.
    """

    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """CPU time of the server's processes so far."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def is_alive(self) -> bool:
        """Return True if it answers health checks."""
        try:
            return httpx.get(f"{self.url}/health", timeout=30).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def vllm_server(
    folder: str, log: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start `vllm serve` for a model folder; prefix caching and chunked prefill are on.

    Args:
        folder: model folder.
        log: file for the server's output.
        options: further options of the command.
        environment: further environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", folder, "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--trust-request-mm-kwargs"]
    command += ["--enable-prefix-caching", "--enable-chunked-prefill", "--max-num-batched-tokens", "512"]
    command += ["--max-num-seqs", "32", *options]
    if "--compilation-config" not in options:
        command += ["--enforce-eager"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **(environment or {})}
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | variables)
        try:
            server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
            deadline = time.monotonic() + START_SECONDS
            while not server.is_alive():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"vLLM did not start; its last lines:\n{log.read_text()[-3000:]}")
                time.sleep(1)
            yield server
        finally:
            process.terminate()
            process.wait(300)


@contextmanager
def own_server(folder: str, log: Path, *options: str) -> Iterator[Server]:
    """Start `llava-uhd serve` for a model folder."""
    command = [sys.executable, "-m", "llava_uhd.cli", "serve", "--model", folder, "--port", "0", "--json"]
    command += ["--name", NAME, "--dtype", "float32", "--device", "cpu", *options]
    with (
        open(log, "w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"].removesuffix("/v1")
            yield Server(url, psutil.Process(process.pid))
        finally:
            process.terminate()
