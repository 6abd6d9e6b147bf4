"""Threads of PyTorch: as many as a container may use, and none that spins while it waits."""

import json
import os
import subprocess
import sys

import pytest

from llava_uhd import cli
from llava_uhd.errors import InputError
from llava_uhd.threads import available_cpus, cpu_limit


@pytest.mark.parametrize(
    "files, limit",
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_control_group(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit
    cpus = available_cpus(tmp_path)
    assert 1 <= cpus <= (os.cpu_count() or 1)
    assert limit is None or cpus <= max(limit, 1)


@pytest.mark.parametrize("threads", [None, "ACTIVE"])
def test_threads_wait_passively_and_their_number_is_set(threads):
    code = (
        "import os; from llava_uhd.threads import use_threads, wait_passively; wait_passively(); "
        "print(os.environ['OMP_WAIT_POLICY'], use_threads(1)); import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
    environment |= {} if threads is None else {"OMP_WAIT_POLICY": threads}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [threads or "PASSIVE", "1", "1"]


@pytest.mark.parametrize("verb", ["ask", "chat", "serve", "web", "eval run"])
def test_threads_is_an_option_of_every_verb_that_answers(tmp_path, monkeypatch, capsys, verb):
    def refuse(number: int | None) -> int:
        raise InputError(f"{number} threads before the model is loaded")

    monkeypatch.setattr("llava_uhd.threads.use_threads", refuse)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "What?", "answer": "12"}))
    arguments = {
        "ask": ["examples/receipt.png", "What is the total?"],
        "serve": ["--port", "0"],
        "web": ["--port", "0"],
        "eval run": [str(questions), "--out", str(tmp_path / "results")],
    }
    monkeypatch.setattr(sys, "argv", ["llava-uhd", *verb.split(), *arguments.get(verb, []), "--threads", "3"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "error: 3 threads before the model is loaded" in capsys.readouterr().err
