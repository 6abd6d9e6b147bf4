"""`benchmarks/kill_operations.py` finds the faults it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_uhd.files import write_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import kill_operations  # noqa: E402
import kill_runs  # noqa: E402

CONTENT = "line\n" * 1000


def kills(start, tmp_path):
    run = kill_runs.Run(start, lambda place: kill_runs.files_of(place, "out/*.txt"))
    return kill_operations.kill_everywhere(run, 1, 1, tmp_path / "runs")


def test_atomic_writes_survive_every_kill(tmp_path):
    def start(place: Path) -> None:
        (place / "out").mkdir(exist_ok=True)
        for name in ("a.txt", "b.txt"):
            if not (place / "out" / name).exists():
                write_text(place / "out" / name, CONTENT)

    report = kills(start, tmp_path)
    assert report.wrong == []
    # One new folder; of each file an opening to write, one to flush, and a renaming.
    assert report.operations == 7 and report.states >= 6


def test_a_file_that_is_written_in_place_is_found_half_written(tmp_path):
    def start(place: Path) -> None:
        (place / "out").mkdir(exist_ok=True)
        if not (place / "out" / "a.txt").exists():
            (place / "out" / "a.txt").write_text(CONTENT)

    assert any("other files: out/a.txt" in each for each in kills(start, tmp_path).wrong)


def test_a_temporary_file_that_stays_is_found(tmp_path):
    def start(place: Path) -> None:
        (place / "out").mkdir(exist_ok=True)
        temporary = place / "out" / f"{len(list((place / 'out').iterdir()))}.tmp"
        temporary.write_text(CONTENT)
        temporary.rename(place / "out" / "a.txt")

    assert any("left behind: out/0.tmp" in each for each in kills(start, tmp_path).wrong)


def test_states_are_sampled_and_those_left_are_started_later(tmp_path):
    def start(place: Path) -> None:
        (place / "out").mkdir(exist_ok=True)
        (place / "out" / "a.txt").write_text(CONTENT)

    run = kill_runs.Run(start, lambda place: kill_runs.files_of(place, "out/*.txt"))

    def kills(number, **options):
        return kill_operations.kill_everywhere(
            run, 1, 1, tmp_path / str(number), outcomes=tmp_path / "outcomes.jsonl", **options
        )

    assert kills(1, until=0.0).started == 0
    first = kills(2, sample=2)
    assert first.started == 2 and first.states > 2
    last = kills(3)
    assert last.started == last.states == first.states
    assert len((tmp_path / "outcomes.jsonl").read_text().splitlines()) == last.states


@pytest.mark.slow
def test_a_conversion_survives_kills():
    command = [sys.executable, str(BENCHMARKS / "kill_operations.py"), "--only", "export", "manifest", "--every", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(done.stdout)
    assert reports["export"]["operations"] > 15 and reports["export"]["num_wrong"] == 0
