"""Kill every kind of run at each of its file operations, run it again, and compare with a run that was not killed.

    python benchmarks/kill_operations.py
    python benchmarks/kill_operations.py --only train upsampler --every 5
    python benchmarks/kill_operations.py --only train lora --sample 60 --minutes 10 --out kills

A kill leaves the files as they are at that moment. So one run is enough to have all kills: before each of its file
operations (an opening for writing, a renaming, a removal, a new folder, a truncation) its folder is copied, and beside
each copy there is one for each file that was being written, cut in its middle. From every copy that differs from the
others the run is started again, in a process of its own and with the same loaders as any run. It must end with the
same files, byte by byte, and leave no temporary ones.

Runs: `train` (stage 2), `lora`, `upsampler` and `closer_look` (stage 0), `convert`, `export`, `evaluate`, `manifest`
(`data check`). Prints one JSON object; exits 1 if a run ends differently.

With `--out` the outcome of each state is kept in a file; the command, run again after `--minutes` were over, records
the run anew and continues with the states that were not started yet. A state is known by its place among the file
operations, which are the same in every recording of an unchanged program.
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llava_uhd.files import append_line, drop_partial_line

sys.path.insert(0, str(Path(__file__).parent))
from kill_runs import RUNS, Run  # noqa: E402

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
SMALL = 2**16  # bytes of a file that is always read: two writings within a tick of the clock have one time
NOT_STARTED = "not started"
LEFTOVERS = (".tmp", ".partial", ".replaced", ".lock")


@dataclass
class Report:
    """Kills of one kind of run."""

    operations: int = 0
    states: int = 0
    started: int = 0
    wrong: list[str] = field(default_factory=list)


class Recorder:
    """Copies a folder before each file operation below it; installed as an audit hook of a process.

    Args:
        folder: folder that the run writes.
        copies: folder for the copies.
    """

    def __init__(self, folder: Path, copies: Path):
        self.folder, self.copies = folder, copies
        self.number = 0
        self.inside = False
        self.before: dict[str, tuple[os.stat_result, Path]] = {}

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.inside or not self._is_operation(event, arguments):
            return
        self.inside = True
        try:
            self.copy()
        finally:
            self.inside = False

    def _is_operation(self, event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        elif event not in EVENTS:
            return False
        return any(str(self.folder) in path for path in self._paths(event, arguments))

    @staticmethod
    def _paths(event: str, arguments: tuple) -> Iterator[str]:
        """Yield the absolute paths of an operation, those relative to an open folder among them."""
        descriptors = [each for each in arguments[1:] if event != "open" and type(each) is int and each >= 0]
        for argument in arguments[:2]:
            if isinstance(argument, str | bytes | os.PathLike):
                path = os.fsdecode(argument)
                yield path
                for descriptor in descriptors:
                    if not os.path.isabs(path) and os.path.exists(f"/proc/self/fd/{descriptor}"):
                        yield os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)

    def copy(self) -> None:
        """Copy the folder, and each file that was being written once more, cut in its middle."""
        self.number += 1
        copy = self.copies / f"{self.number:05}"
        copy.mkdir(parents=True)
        last, now = self.before, {}
        by_inode = {(stat.st_dev, stat.st_ino): kept for stat, kept in last.values()}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                (copy / name).mkdir(parents=True, exist_ok=True)
                continue
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            stat = path.stat()
            before = last.get(name)
            if before and _is_same(before[0], stat):
                os.link(before[1], copy / name)
            else:
                shutil.copyfile(path, copy / name)
                older = by_inode.get((stat.st_dev, stat.st_ino))
                self._cut(name, path, older)
            now[name] = (stat, copy / name)
        self.before = now

    def _cut(self, name: str, path: Path, older: Path | None) -> None:
        """Copy the folder as it was before, with the file that was written since then half there."""
        content, begun = path.read_bytes(), older.read_bytes() if older else b""
        if content == begun:
            return  # renamed
        kept = len(begun) if content.startswith(begun) else 0
        half = content[: kept + (len(content) - kept) // 2]
        if half in (content, begun):
            return
        cut = self.copies / f"{self.number:05}-{hashlib.sha1(name.encode()).hexdigest()[:6]}"
        cut.mkdir()
        for folder in sorted(path for path in self.folder.rglob("*") if path.is_dir()):
            (cut / folder.relative_to(self.folder)).mkdir(parents=True, exist_ok=True)
        for other, (_, kept_file) in self.before.items():
            if other != name:
                (cut / other).parent.mkdir(parents=True, exist_ok=True)
                os.link(kept_file, cut / other)
        (cut / name).parent.mkdir(parents=True, exist_ok=True)
        (cut / name).write_bytes(half)


def _is_same(before: os.stat_result, now: os.stat_result) -> bool:
    def key(stat: os.stat_result) -> tuple:
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    return now.st_size > SMALL and key(before) == key(now)


def in_child(function: Callable[[], None], log: Path) -> int:
    """Call a function in a forked process; return its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        function()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(status)


def digest(folder: Path) -> str:
    """Return a hash of all names and contents below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"\0{path.relative_to(folder)}\0{path.is_dir()}\0".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files and folders."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(LEFTOVERS)]


def kill_everywhere(
    run: Run,
    every: int,
    jobs: int,
    scratch: Path,
    sample: int | None = None,
    until: float = float("inf"),
    outcomes: Path | None = None,
) -> Report:
    """Record a run, start it again from each distinct state, compare.

    Args:
        run: kind of run.
        every: start from each N-th state only.
        jobs: runs at a time.
        scratch: folder for the work.
        sample: number of states, drawn by chance; None starts from all.
        until: end on the clock of `time.monotonic`; states left are not started.
        outcomes: file that keeps the outcome of each state; those in it are not started again.
    """
    report, log = Report(), scratch / "log"
    whole, copies, modules = scratch / "whole", scratch / "copies", scratch / "modules"
    whole.mkdir(parents=True)

    def record() -> None:
        recorder = Recorder(whole, copies)
        sys.addaudithook(recorder)
        run.start(whole)
        recorder.copy()
        modules.write_text("\n".join(sys.modules))

    if in_child(record, log) != 0:
        raise RuntimeError(f"the run that is not killed fails: {log.read_text()[-500:]}")
    for name in modules.read_text().splitlines():
        with suppress(Exception):  # a module that only its package can import
            importlib.import_module(name)  # once here instead of in each process that is forked
    gc.freeze()  # collections in forked processes leave these objects, and their pages, alone
    expected = run.product(whole)
    assert expected, "the run has no product"
    states, digests = [], set()
    recorded = sorted(copies.iterdir())
    report.operations = sum("-" not in copy.name for copy in recorded) - 1
    for copy in recorded:
        if (state := digest(copy)) not in digests:
            digests.add(state)
            states.append(copy)
    states = states[::every]
    report.states = len(states)
    if sample is not None:
        states = sorted(random.Random(0).sample(states, min(sample, len(states))))
    known_outcomes = _read_outcomes(outcomes)
    report.wrong = [wrong for wrong in known_outcomes.values() if wrong]
    report.started = len(known_outcomes)
    states = [state for state in states if state.name not in known_outcomes]

    def again(state: Path) -> str | None:
        if time.monotonic() > until:
            return NOT_STARTED
        place = scratch / f"place-{state.name}"
        shutil.copytree(state, place)
        log = scratch / f"log-{state.name}"
        was_whole = _product_or_none(run, place) == expected
        status = in_child(lambda: run.start(place), log)
        said = log.read_text(errors="replace").strip()
        try:
            if status and not (was_whole and said.rpartition("\n")[2].startswith("ValueError:")):
                return f"{state.name}: {said[-300:]}"
            found = _product_or_none(run, place)
            if found != expected:
                names = sorted(found.keys() ^ expected.keys()) if found is not None else ["everything"]
                names += [name for name in expected if found and name in found and found[name] != expected[name]]
                return f"{state.name}: other files: {', '.join(names[:5])}"
            if not status and (left := leftovers(place)):
                return f"{state.name}: left behind: {', '.join(left[:5])}"
        finally:
            shutil.rmtree(place)
        return None

    with ThreadPoolExecutor(jobs) as threads:
        for number, (state, wrong) in enumerate(zip(states, threads.map(again, states), strict=True), 1):
            if wrong == NOT_STARTED:
                continue
            report.started += 1
            report.wrong += [wrong] if wrong else []
            if outcomes is not None:
                append_line(outcomes, json.dumps({"state": state.name, "wrong": wrong}))
            print(
                f"\r{number} of {len(states)} states, {len(report.wrong)} wrong", end="", file=sys.stderr, flush=True
            )
    print(file=sys.stderr)
    return report


def _read_outcomes(file: Path | None) -> dict[str, str | None]:
    """Return what went wrong by state; None where nothing did."""
    if file is None or not file.exists():
        return {}
    drop_partial_line(file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["state"]: line["wrong"] for line in lines}


def _product_or_none(run: Run, place: Path) -> dict[str, bytes] | None:
    try:
        return run.product(place)
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder, in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 8 * 2**30
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="kinds of runs (default: all)")
    parser.add_argument("--every", type=int, default=1, help="start again from each N-th state only (default: 1)")
    parser.add_argument("--sample", type=int, help="start again from N states drawn by chance (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no state after this time")
    parser.add_argument("--out", type=Path, help="folder that keeps the outcomes, to continue with what is left")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    options = parser.parse_args()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    reports = {}
    for name in options.only:
        if time.monotonic() > until:
            break
        started = time.perf_counter()
        with scratch_folder() as folder:
            (folder / "data").mkdir()
            outcomes = None if options.out is None else options.out / f"{name}.jsonl"
            report = kill_everywhere(
                RUNS[name](folder / "data"),
                options.every,
                options.jobs,
                folder / "runs",
                options.sample,
                until,
                outcomes,
            )
        seconds = round(time.perf_counter() - started)
        reports[name] = {**vars(report), "wrong": report.wrong[:5], "num_wrong": len(report.wrong), "seconds": seconds}
        print(json.dumps({name: reports[name]}, indent=1), file=sys.stderr, flush=True)
    print(json.dumps(reports, indent=1))
    sys.exit(any(report["num_wrong"] for report in reports.values()))


if __name__ == "__main__":
    main()
