"""The page "Reproducing the papers": every command of it runs at toy size."""

import math
import re
import subprocess
import sys

import pytest

from llava_uhd.training.plan import make_plan
from llava_uhd.training.recipe import load_recipe
from tests.reproducing import PAGE, ROOT, commands, toy_arguments


def test_every_table_and_figure_has_a_section():
    headings = " ".join(re.findall(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE))
    for table in range(1, 7):
        assert f"v2, Table {table}" in headings
    for table in range(1, 5):
        assert f"v1, Table {table}" in headings
    for figure in ("Figures 1 to 4, 6, 9 to 11", "Figure 5", "Figure 7", "Figure 8", "Figures 12 and 13"):
        assert f"v2, {figure}" in headings
    assert "<!--" not in PAGE.read_text()


@pytest.mark.parametrize(
    "row, stages",
    [
        ("Vicuna-7B", ("vicuna-7b-paper-align", "vicuna-7b-paper-instruct")),
        ("| Vicuna-13B", ("vicuna-13b-paper-align", "vicuna-13b-paper-instruct")),
        ("Qwen2-7B", ("qwen2-7b-paper-align", "qwen2-7b-paper-instruct")),
        ("v1, Table 1 | Vicuna-13B", ("v1-align", "v1-instruct")),
    ],
)
def test_hours_and_memory_are_those_of_the_plan(row, stages):
    plans = [make_plan(load_recipe(name, ["monitoring.peak_tflops=312"]), 8) for name in stages]
    memory = ", ".join(str(math.ceil(plan.memory_gib["fsdp2"])) for plan in plans)
    hours = ", ".join(f"{plan.hours:.1f}" for plan in plans)
    assert f"{row} | {memory} GiB | {hours} |" in PAGE.read_text()


def test_every_command_has_a_toy_size():
    found = [toy_arguments(command) for command in commands()]
    assert len(found) > 30 and all(found)


@pytest.mark.slow
def test_every_command_runs():
    done = subprocess.run([sys.executable, "-m", "tests.reproducing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(f"{len(commands())} commands\n"), done.stdout + done.stderr
