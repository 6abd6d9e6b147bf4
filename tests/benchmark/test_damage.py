"""`benchmarks/damage.py` finds the faults it looks for, and a sample of its damages is named by the readers."""

import json
import random
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import damage  # noqa: E402

from llava_uhd.errors import InputError  # noqa: E402


def outcomes(read, tmp_path, *names, content=b"line\n" * 20):
    """Damage one file in the ways named, read it in a process of its own; return the outcomes by damage."""
    whole, place = tmp_path / "whole", tmp_path / "place"
    whole.mkdir()
    (whole / "a.txt").write_bytes(content)
    target = damage.Target(whole, ["a.txt"], read)
    found = {}
    for file, name, changed in damage.cases(target, "test"):
        if name not in names:
            continue
        place.mkdir()
        (place / file).write_bytes(content)
        damage.damage_file(place / file, changed, name == "a folder")
        answer = damage.run_child(read, place, tmp_path / "log", 5)
        found[name] = damage.judge(target, [20], answer, file)[0]
        if (place / file).is_dir():
            (place / file).rmdir()
        else:
            (place / file).unlink(missing_ok=True)
        place.rmdir()
    return found


def test_a_reader_that_swallows_damage_is_found(tmp_path):
    def read(place):
        return [(place / "a.txt").read_bytes().count(b"\n")]

    # The error of the system names a file that is missing.
    assert outcomes(read, tmp_path, "empty", "missing", "a folder", "bit flipped, end") == {
        "empty": "silent",
        "missing": "named",
        "a folder": "named",
        "bit flipped, end": "silent",
    }


def test_tracebacks_and_lines_without_a_name_are_found(tmp_path):
    def read(place):
        if not (place / "a.txt").is_file():
            raise InputError("a file is damaged")
        return [len(json.loads((place / "a.txt").read_bytes())[5])]

    found = outcomes(read, tmp_path, "missing", "another type")
    assert found == {"missing": "not named", "another type": "traceback"}


def test_a_reader_without_end_is_found(tmp_path):
    def read(place):
        while not (place / "a.txt").read_bytes():
            pass
        return [20]

    target = damage.Target(tmp_path, ["a.txt"], read)
    (tmp_path / "a.txt").touch()
    assert damage.judge(target, [20], damage.run_child(read, tmp_path, tmp_path / "log", 0.3), "a.txt")[0] == "hang"


@pytest.mark.parametrize(("kind", "number"), [("plan", 5), ("tar", 3), ("manifest", 2)])
def test_a_sample_of_damages_is_named(kind, number, tmp_path, monkeypatch):
    every = damage.cases
    monkeypatch.setattr(damage, "cases", lambda *args: random.Random(kind).sample(list(every(*args)), number))
    found = list(damage.damage_kind(kind, tmp_path, set(), 1.0, float("inf")))
    assert len(found) == number
    assert [outcome for outcome in found if outcome["outcome"] not in damage.RIGHT] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", damage.KINDS)
def test_more_damages_of_every_kind_are_named(kind, tmp_path):
    found = list(damage.damage_kind(kind, tmp_path, set(), 0.1, float("inf")))
    assert [outcome for outcome in found if outcome["outcome"] not in damage.RIGHT] == []
