"""Cost of an answer of `llava-uhd serve` in two revisions, whose servers take turns.

    python benchmarks/compare_serving.py --before cd161ef
    python benchmarks/compare_serving.py --before cd161ef --clients 16 --rounds 12

Both servers run the built-in model on one thread. In each round either server is asked the same new questions, each
about a document of its own, which no cache holds; the order changes from round to round. The figure of a revision is
the CPU time of its server for an answer, median of the rounds, which other work on the machine disturbs less than the
clock; the ratio is after over before. Fails if one answer differs.
"""

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))

from compare_revisions import ROOT, unpack  # noqa: E402

from llava_uhd.synthetic.documents import make_document  # noqa: E402
from llava_uhd.synthetic.render import render  # noqa: E402

MAX_TOKENS = 32


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its address, with `/v1`.
        process: its process.
        cpu_seconds: CPU time of an answer, of each round.
        seconds: time of a round's answers by the clock.
        loading: CPU time until it was ready.
    """

    url: str
    process: psutil.Process
    cpu_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loading: float = 0.0

    def used(self) -> float:
        """CPU time of the server so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serve(checkout: Path, log: Path, *options: str, one_thread: bool = True) -> Iterator[Server]:
    """Start the server of a checkout.

    Args:
        checkout: folder of the revision.
        log: file for what the server writes.
        options: further options of `serve`.
        one_thread: run it with `OMP_NUM_THREADS=1`; otherwise as a user's shell would.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    if not one_thread:
        del environment["OMP_NUM_THREADS"]
    command = [sys.executable, "-m", "llava_uhd.cli", "serve", "--model", "tiny", "--port", "0", "--json"]
    command += ["--dtype", "float32", "--device", "cpu", *options]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=checkout
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server of {checkout} did not start:\n{log.read_text()[-3000:]}")
            server = Server(json.loads(line)["url"], psutil.Process(process.pid))
            server.loading = server.used()
            yield server
        finally:
            process.terminate()


def body(seed: str, index: int) -> dict[str, Any]:
    """A request with a document that no other request has."""
    document = make_document(seed, index, num_slices=1 + index % 6)
    file = io.BytesIO()
    render(document.page).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": document.questions[0].text},
    ]
    return {
        "model": "tiny",
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "messages": [{"role": "user", "content": content}],
    }


def ask(server: Server, bodies: list[dict[str, Any]], clients: int) -> list[str]:
    """Ask a server, so many clients at a time; note its CPU time, and return the answers."""
    with httpx.Client(timeout=600, limits=httpx.Limits(max_connections=clients)) as client:

        def answer(request: dict[str, Any]) -> str:
            response = client.post(f"{server.url}/chat/completions", json=request)
            response.raise_for_status()
            text: str = response.json()["choices"][0]["message"]["content"]
            return text

        began, used = time.perf_counter(), server.used()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(answer, bodies))
        server.seconds.append((time.perf_counter() - began) / len(bodies))
        server.cpu_seconds.append((server.used() - used) / len(bodies))
    return answers


def main() -> int:
    """Take turns, and print the table; return 1 if an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="revision to compare with, such as cd161ef")
    parser.add_argument("--after", help="revision that is compared (default: this checkout as it is)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16], help="clients at a time (default: 1 16)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds for each number of clients (default: 10)")
    parser.add_argument("--questions", type=int, default=24, help="questions of a round (default: 24)")
    options = parser.parse_args()
    differing = 0
    print("| clients | CPU s an answer before | after | ratio | s an answer before | after | questions |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        checkouts = {"before": unpack(options.before, folder / "before"), "after": ROOT}
        if options.after:
            checkouts["after"] = unpack(options.after, folder / "after")
        servers = {
            revision: stack.enter_context(serve(checkout, folder / f"{revision}.log"))
            for revision, checkout in checkouts.items()
        }
        loading = {revision: server.loading for revision, server in servers.items()}
        for clients in options.clients:
            for server in servers.values():
                server.cpu_seconds, server.seconds = [], []
            for round_ in range(options.rounds + 1):
                seed = f"serving:{clients}:{round_}"
                bodies = [body(seed, index) for index in range(options.questions)]
                order = ("before", "after") if round_ % 2 == 0 else ("after", "before")
                answers = {revision: ask(servers[revision], bodies, clients) for revision in order}
                differing += sum(a != b for a, b in zip(answers["before"], answers["after"], strict=True))
            figures = [
                [statistics.median(series[1:]) for series in (server.cpu_seconds, server.seconds)]  # one to warm up
                for server in (servers["before"], servers["after"])
            ]
            (cpu_before, clock_before), (cpu_after, clock_after) = figures
            print(
                f"| {clients} | {cpu_before:.4f} | {cpu_after:.4f} | {cpu_after / cpu_before:.3f} "
                f"| {clock_before:.4f} | {clock_after:.4f} | {options.rounds * options.questions} |",
                flush=True,
            )
    print(f"\nUntil ready: {loading['before']:.2f} CPU s before, {loading['after']:.2f} after.")
    print(f"{differing} answers differ.")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
