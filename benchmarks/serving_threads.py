"""`llava-uhd serve` with its default threads and with one, on a quiet machine and beside other work.

    python benchmarks/serving_threads.py

Other work is a process for each CPU that multiplies matrices on one thread. Each server is asked the same new
questions in turns, eight clients at a time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from compare_revisions import ROOT  # noqa: E402
from compare_serving import ask, body, serve  # noqa: E402

CLIENTS = 8
SETTINGS: dict[str, tuple[str, ...]] = {"default": (), "--threads 1": ("--threads", "1")}
WORK = "import torch; torch.set_num_threads(1); x = torch.randn(1000, 1000)\nwhile True: x @ x"


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    """Keep so many CPUs busy."""
    running = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(processes)]
    time.sleep(3 if processes else 0)  # until they multiply
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    """Take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--questions", type=int, default=32, help="questions of a round (default: 32)")
    options = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    print(f"| machine of {cpus} CPUs | threads | answers/s | CPU s an answer | slowest round, answers/s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {
            name: stack.enter_context(serve(ROOT, Path(folder, f"{len(arguments)}.log"), *arguments, one_thread=False))
            for name, arguments in SETTINGS.items()
        }
        for state, processes in (("quiet", 0), ("busy", cpus)):
            for server in servers.values():
                server.cpu_seconds, server.seconds = [], []
            with other_work(processes):
                for round_ in range(options.rounds + 1):  # one to warm up
                    bodies = [body(f"threads:{state}:{round_}", index) for index in range(options.questions)]
                    for server in servers.values():
                        ask(server, bodies, CLIENTS)
            for name, server in servers.items():
                seconds, cpu_seconds = server.seconds[1:], server.cpu_seconds[1:]
                print(
                    f"| {state} | {name} | {1 / statistics.median(seconds):.2f} "
                    f"| {statistics.median(cpu_seconds):.3f} | {1 / max(seconds):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
