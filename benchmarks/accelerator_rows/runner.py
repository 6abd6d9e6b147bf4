"""Run measurements one after another, each in a process that can be killed, and write every row as it comes."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .plan import Measurement
from .setting import Setting

# Errors of a process that was forked from one which had touched the device.
FORK_ERRORS = ("re-initialize CUDA in forked subprocess", "CUDA initialization error", "initialization error")


def _child(measurement: Measurement, setting: Setting, log: Path, results: Connection) -> None:
    """Run one measurement: send each row, or the error's last line, and leave all output in the log."""
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        for cells in measurement.rows(setting):
            results.send({"status": "ok", **cells})
    except BaseException as error:
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        results.send({"measured": measurement.name, "status": f"failed: {type(error).__name__}: {reason}"[:300]})
    finally:
        sys.stdout.flush()
        results.close()


def _nothing() -> None:
    """Return at once: the target of a process that only waits for the imports of the server."""


@dataclass
class Runner:
    """Runs measurements and writes their rows.

    Attributes:
        out: folder of the results and logs.
        setting: device and size.
        budget: seconds for all of it; what does not fit is a row that says so.
        limit_factor: factor of every limit, for a slow machine.
    """

    out: Path
    setting: Setting
    budget: float
    limit_factor: float = 1.0

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        self.file = self.out / "results.jsonl"
        self.file.write_text("")
        # Without it, asking whether there is a device would bind the process that the others are forked from.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        # A server imports everything once, without touching the device, and each measurement is forked from it. Before
        # Python 3.13 it does not get this process's path.
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["accelerator_rows.plan"])
        first = self.context.Process(target=_nothing)  # so that no measurement's limit counts the imports
        first.start()
        first.join(self.budget)

    def run(self, measurement: Measurement) -> list[dict[str, Any]]:
        """Run one measurement; return its rows, with a row for what was lost."""
        rows = self._run(measurement)
        if any(error in row["status"] for row in rows for error in FORK_ERRORS):
            self.context = multiprocessing.get_context("spawn")
            rows = self._run(measurement)
        with self.file.open("a") as file:
            for row in rows:
                print(json.dumps(row), file=file, flush=True)
        return rows

    def _run(self, measurement: Measurement) -> list[dict[str, Any]]:
        start = time.monotonic()
        limit = min(measurement.limit * self.limit_factor, self.budget - (start - self.started))
        about = {"measurement": measurement.name, "section": measurement.section}
        if limit < 3:
            over = f"not measured: the {self.budget:.0f} s of the command are over"
            return [{**about, "measured": measurement.name, "status": over}]
        receiver, sender = self.context.Pipe(duplex=False)
        log = self.out / "logs" / f"{measurement.name}.log"
        process = self.context.Process(target=_child, args=(measurement, self.setting, log, sender))
        process.start()
        sender.close()
        rows: list[dict[str, Any]] = []
        try:
            while (left := start + limit - time.monotonic()) > 0:
                if receiver.poll(left):
                    rows.append({**about, **receiver.recv(), "after s": round(time.monotonic() - start, 2)})
            over = f"failed: over its limit of {limit:.0f} s, see logs/{log.name}"
            rows.append({**about, "measured": measurement.name, "status": over})
        except EOFError:
            process.join(2)
            if process.exitcode:
                ended = f"failed: the process ended with code {process.exitcode}, see logs/{log.name}"
                rows.append({**about, "measured": measurement.name, "status": ended})
        finally:
            _end(process)
        return rows


def _end(process: Any) -> None:
    """Kill a measurement's process and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all of it has ended, or it had no group of its own yet
        process.kill()
    process.join(5)
