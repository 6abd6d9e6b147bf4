"""Damage each file that the package reads again, read it, and look at what the reader says.

    python benchmarks/damage.py --out damaged
    python benchmarks/damage.py --out damaged --only ask checkpoint --minutes 10
    python benchmarks/damage.py --out damaged --sample 100

Each file of a model folder, a checkpoint, a run folder, a data file and an evaluation is missing, empty, cut, has one
bit flipped, holds noise or another type, or is a folder. The reader of the file then runs in a process of its own and
must end as if nothing had happened, or name the file in one line. Anything else is a failure: another result without a
word, a traceback, a line that names no file, or no end within the limit of time.

Outcomes are appended to DIR/outcomes.jsonl; run again, the command continues with what is left. Prints a line per kind
and exits 1 if there is a failure.
"""

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from damage_targets import KINDS, Target  # noqa: E402

from llava_uhd.errors import is_user_error, report  # noqa: E402
from llava_uhd.files import append_line, drop_partial_line  # noqa: E402
from llava_uhd.training.watch import RunStopped  # noqa: E402

LIMIT = 10.0  # seconds, beyond those of reading the whole files
RIGHT = ("same", "named")


@dataclass
class Outcomes:
    """Number of outcomes of one kind, and the first failures."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)

    def add(self, outcome: dict[str, str]) -> None:
        self.counts[outcome["outcome"]] += 1
        if outcome["outcome"] not in RIGHT:
            self.failures.append(outcome)


def damages(content: bytes, seed: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each damage of a file and its content afterwards; None removes it."""
    rng = random.Random(seed)
    size = len(content)
    yield "missing", None
    yield "empty", b""
    for name, cut in (("cut in its head", size // 20), ("cut in its middle", size // 2), ("cut at its end", size - 1)):
        if 0 < cut < size:
            yield name, content[:cut]
    offsets = {"head": min(9, size - 1), "middle": size // 2, "end": size - 1}
    offsets |= {f"place {number}": rng.randrange(max(size, 1)) for number in range(1, 5)}
    for name, place in offsets.items():
        if size:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            yield f"bit flipped, {name}", bytes(flipped)
    yield "noise", rng.randbytes(max(size, 1))
    yield "zeros", bytes(size)
    yield "another type", b"[1, 2]\n"
    yield "null", b"null\n"


def run_child(read: Callable[[Path], Any], place: Path, log: Path, limit: float) -> dict[str, Any]:
    """Read a folder in a forked process; return its result, or the line of its error."""
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(read, place, log, answer)
    end = time.monotonic() + limit
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"hang": limit, "log": log.read_text(errors="replace")}
        time.sleep(0.005)
    said = log.read_text(errors="replace") if log.exists() else ""
    if not answer.is_file():
        return {"died": True, "log": said}
    return {**json.loads(answer.read_text()), "log": said}


def _child(read: Callable[[Path], Any], place: Path, log: Path, answer: Path) -> None:
    values: dict[str, Any] = {}
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        values = {"result": read(place)}
    except BaseException as error:
        traceback.print_exc()
        values = {"error": report(error) if isinstance(error, Exception) else repr(error)}
        values["is_user_error"] = is_user_error(error) or isinstance(error, RunStopped)
        if isinstance(error, RunStopped):
            values["error"] = str(error)  # the command line prints it as it is
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        answer.write_text(json.dumps(values))
        os._exit(0)


def judge(target: Target, expected: Any, found: dict[str, Any], file: str) -> tuple[str, str]:
    """Return the outcome, and what was said."""
    name, log = Path(file).name, found["log"]
    if "hang" in found:
        return "hang", log[-300:]
    if "died" in found:
        return "killed", log[-300:]
    if "error" in found:
        said = found["error"]
        if not found["is_user_error"]:
            return "traceback", said + log[-600:]
        if "\n" in said:
            return "several lines", said
        names = [name, target.also_named or name]
        return ("named" if any(each in said + log for each in names) else "not named"), said
    if found["result"] == expected:
        return "same", ""
    is_named = name in log or (target.tells is not None and target.tells(found["result"], expected))
    return ("named" if is_named else "silent"), log[-300:]


def damage_file(place: Path, content: bytes | None, is_folder: bool) -> None:
    place.unlink()
    if is_folder:
        place.mkdir()
    elif content is not None:
        place.write_bytes(content)


def cases(target: Target, kind: str) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield file, damage and content of every case."""
    for file in target.files:
        for damage, content in damages((target.whole / file).read_bytes(), f"{kind} {file}"):
            yield file, damage, content
        yield file, "a folder", None


def damage_kind(
    kind: str, out: Path, done: set[tuple[str, str, str]], sample: float, until: float
) -> Iterator[dict[str, str]]:
    """Damage and read all files of a kind but those done; yield the outcomes.

    Args:
        kind: name in `KINDS`.
        out: folder for the work.
        done: kind, file and damage of the cases of an earlier run.
        sample: share of the cases that are run, drawn by their names.
        until: end on the clock of `time.monotonic`; the cases left are not run.
    """
    scratch = out / kind
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        target = KINDS[kind](scratch)
        place, log, limit = scratch / "place", scratch / "child.log", 300.0
        began = time.monotonic()
        shutil.copytree(target.whole, place)
        whole = run_child(target.read, place, log, limit)
        if "result" not in whole:
            raise RuntimeError(f"{kind}: the whole files cannot be read: {whole}")
        limit = LIMIT + 3 * (time.monotonic() - began)
        for file, damage, content in cases(target, kind):
            drawn = random.Random(f"{kind} {file} {damage}").random() < sample
            if (kind, file, damage) in done or not drawn:
                continue
            if time.monotonic() > until:
                return
            shutil.rmtree(place)
            shutil.copytree(target.whole, place)
            damage_file(place / file, content, damage == "a folder")
            began = time.monotonic()
            found = run_child(target.read, place, log, limit)
            outcome, said = judge(target, whole["result"], found, file)
            seconds = f"{time.monotonic() - began:.2f}"
            said = re.sub(re.escape(str(scratch)), "", said)
            yield {"kind": kind, "file": file, "damage": damage, "outcome": outcome, "said": said, "seconds": seconds}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for outcomes and work; continued if it exists")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of files (default: all)")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the cases that are run (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time (default: none)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "outcomes.jsonl"
    drop_partial_line(record)
    earlier = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {(outcome["kind"], outcome["file"], outcome["damage"]) for outcome in earlier}
    until = time.monotonic() + 60 * args.minutes
    found = {kind: Outcomes() for kind in args.only}
    for outcome in earlier:
        if outcome["kind"] in found:
            found[outcome["kind"]].add(outcome)
    for kind, outcomes in found.items():
        if time.monotonic() <= until:
            for outcome in damage_kind(kind, args.out.resolve(), done, args.sample, until):
                append_line(record, json.dumps(outcome, ensure_ascii=False))
                outcomes.add(outcome)
                if outcome["outcome"] not in RIGHT:
                    print(json.dumps(outcome, ensure_ascii=False), file=sys.stderr, flush=True)
        counts = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.counts.items()))
        print(f"{kind:10} {sum(outcomes.counts.values()):4} cases: {counts or 'none run'}", flush=True)
    sys.exit(any(outcomes.failures for outcomes in found.values()))


if __name__ == "__main__":
    main()
