"""`examples/finetune_own_data`: check, score, train, score again, by the commands of docs/own-data.md."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llava_uhd.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_recipes_load(name):
    recipe = load_recipe(str(ROOT / "examples" / "finetune_own_data" / f"{name}.yaml"))
    assert (recipe.lora is None) == (name == "full") and recipe.model.start == "tiny"


@pytest.mark.slow
def test_from_json_to_score(tmp_path):
    page = (ROOT / "docs" / "own-data.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        tool = [sys.executable, "-m", "llava_uhd"] if command[0] == "llava-uhd" else [sys.executable]
        done = subprocess.run([*tool, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    scores = []
    for name in ("before", "after"):
        (result,) = (tmp_path / "own-data" / name).rglob("result.json")
        scores.append(float(re.search(r"accuracy ([0-9.]+)", json.loads(result.read_text())["headline"])[1]))
    assert scores[0] < 20 and scores[1] > 60
    assert (tmp_path / "own-data" / "run" / "adapter").is_dir()
