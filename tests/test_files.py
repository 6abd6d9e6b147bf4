"""Files and folders are there whole or not at all; damage is named; one process holds a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_uhd.distributed import Rank, is_main_process, world_size
from llava_uhd.files import (
    append_line,
    find_damage,
    lock_folder,
    new_folder,
    read_checked,
    read_json,
    replace_file,
    seal_folder,
    write_checked,
    write_json,
    write_text,
)


def test_a_failed_write_keeps_the_file_before_and_names_it(tmp_path):
    file = tmp_path / "state.json"
    write_json(file, {"step": 1})
    for error, message in (
        (OSError(28, "No space left on device"), "No space left on device: .*state.json"),
        (KeyError("key"), "key"),
    ):
        with pytest.raises((OSError, KeyError), match=message), replace_file(file) as temporary:
            temporary.write_text("{")
            raise error
    assert read_json(file) == {"step": 1} and os.listdir(tmp_path) == ["state.json"]
    with pytest.raises(ValueError):
        write_json(file, {"loss": float("nan")})
    assert read_json(file) == {"step": 1}


def test_damaged_json_is_named(tmp_path):
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match="a.json is damaged"):
            read_json(tmp_path / "a.json")


def test_a_new_folder_appears_whole(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise KeyError
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
        with pytest.raises(ValueError, match="in use by another run"), new_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out" / "a").read_text() == "a" and os.listdir(tmp_path) == ["out"]
    with pytest.raises(ValueError, match="exists already"), new_folder(tmp_path / "out"):
        pass


def test_every_damage_of_a_sealed_folder_is_found(tmp_path):
    (tmp_path / "deep").mkdir()
    files = {"a": b"first file", "deep/b": b"second file" * 1000}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert "not written to its end" in find_damage(tmp_path, "complete")
    seal_folder(tmp_path, "complete")
    assert find_damage(tmp_path, "complete") is None
    for name, content in files.items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for damaged, message in ((content[:-3], "bytes"), (b"", "has 0 of"), (bytes(flipped), "checksum")):
            (tmp_path / name).write_bytes(damaged)
            assert name in find_damage(tmp_path, "complete") and message in find_damage(tmp_path, "complete")
        (tmp_path / name).unlink()
        assert f"{name} is missing" in find_damage(tmp_path, "complete")
        (tmp_path / name).write_bytes(content)
    seal = (tmp_path / "complete").read_text()
    for damaged in (seal[:40], json.dumps({"files": 3}), json.dumps([])):
        (tmp_path / "complete").write_text(damaged)
        assert "list of files" in find_damage(tmp_path, "complete")


def test_checked_files(tmp_path):
    file = tmp_path / "state"
    write_checked(file, b"content" * 50)
    assert read_checked(file) == b"content" * 50
    whole = file.read_bytes()
    for place in (45, len(whole) - 1, 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            read_checked(file)
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="349 bytes"):
        read_checked(file)
    file.write_bytes(b"PK of an earlier version")
    assert read_checked(file) == b"PK of an earlier version"


def test_a_lock_ends_with_its_process(tmp_path):
    """Also when the process is killed; a folder that was made for the lock alone is removed."""
    code = f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    code += "from pathlib import Path; from llava_uhd.files import lock_folder\n"
    code += f"with lock_folder(Path({str(tmp_path / 'run')!r})):\n    print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="run is in use by another run"), lock_folder(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path / "run"):
        pass
    with lock_folder(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists() and not list((tmp_path / "run").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"), lock_folder(tmp_path / "file"):
        pass


def test_text_and_lines(tmp_path):
    write_text(tmp_path / "a", "é\n")
    append_line(tmp_path / "a", "ü")
    assert (tmp_path / "a").read_bytes() == "é\nü\n".encode()


def test_rank_of_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Rank.from_environment() == Rank(0, 1) and is_main_process()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert world_size() == 8 and not is_main_process()
    for name, value, message in (
        ("RANK", "8", "RANK=8 and WORLD_SIZE=8"),
        ("RANK", "one", "must be an integer, got 'one'"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=message):
            Rank.from_environment()
