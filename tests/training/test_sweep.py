"""Sweeps: the grid, resumption, the job array and the table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
import yaml

from llava_uhd.training.recipe import load_recipe
from llava_uhd.training.sweep import Sweep, collect, half_width, parse_grid, run_sweep, table_text, write_results

GRID = {"schedule.warmup": [0.0, 0.5], "schedule.type": ["cosine", "linear"]}
# In place of `train run`: after a time, a loss that follows from the overrides. It imports nothing of the package.
FAKE = """
import json, sys, time
from pathlib import Path

values = dict(entry.split("=", 1) for entry in sys.argv[2:])
out = Path(json.loads(values["out"]))
out.mkdir(parents=True, exist_ok=True)
time.sleep(float((out.parents[1] / "sleep").read_text()))
loss = float(values["schedule.warmup"]) + 0.1 * int(values["seed"]) + (json.loads(values["schedule.type"]) == "linear")
lines = [{"loss": 9.0, "step": 1}, {"loss": loss, "step": 2}, {"train_loss": 5.0, "step": 2}]
(out / "log.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(out / "model").mkdir()
"""
DRIVER = """
import sys
from pathlib import Path
from llava_uhd.training import sweep
fake = str(Path(__file__).parent / "fake.py")
sweep.run_command = lambda cell, gpus: [sys.executable, fake, cell.recipe, *cell.overrides]
sweep.run_sweep(sweep.Sweep(Path(sys.argv[1]), ("v1-align",), (), {grid}, (0, 1), "loss"), jobs=2)
"""


def test_a_sweep_killed_and_resumed_gives_the_same_table(tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    (tmp_path / "driver.py").write_text(DRIVER.replace("{grid}", repr(GRID)))
    for name, seconds in (("whole", 0), ("killed", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sleep").write_text(str(seconds))
    # One sweep in a process of its own, to be killed; it imports the package while the other one runs here.
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = subprocess.Popen([sys.executable, tmp_path / "driver.py", tmp_path / "killed"], env=environment)
    monkeypatch.setattr(
        "llava_uhd.training.sweep.run_command",
        lambda cell, gpus: [sys.executable, str(fake), cell.recipe, *cell.overrides],
    )
    said: list[str] = []
    assert run_sweep(sweep_of(tmp_path / "whole"), jobs=2, show=said.append) == []
    assert said[0] == "8 runs, 0 finished"
    cells = tmp_path / "killed" / "cells"
    while len(list(cells.glob("*/model"))) < 3:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(0.2)
    done = len(list(cells.glob("*/model")))
    time.sleep(1.3)
    # The kernel ended the runs that were in progress, too: none of them finishes after the kill.
    assert 3 <= done < 8 and len(list(cells.glob("*/model"))) == done
    (tmp_path / "killed" / "sleep").write_text("0")
    assert run_sweep(sweep_of(tmp_path / "killed"), jobs=2, show=said.append) == []
    assert f"8 runs, {done} finished" in said
    for name in ("table.md", "results.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert (tmp_path / "whole" / "table.md").read_text().count("2 of 2") == 4


def sweep_of(tmp_path, **changes):
    values = {"recipes": ("v1-align",), "overrides": (), "grid": GRID, "seeds": (0, 1), "metric": "loss", **changes}
    return Sweep(tmp_path, **values)


def finish(cell, *entries):
    (cell.out / "model").mkdir(parents=True)
    (cell.out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_every_cell_is_a_recipe_of_its_own(tmp_path):
    cells = sweep_of(tmp_path / "a b", overrides=("optimization.micro_batch=4",)).cells()
    recipes = [load_recipe(cell.recipe, cell.overrides) for cell in cells]
    assert len({recipe.out for recipe in recipes}) == len(cells) == 8
    found = {(recipe.schedule.warmup, recipe.schedule.type, recipe.seed) for recipe in recipes}
    assert len(found) == 8 and {recipe.optimization.micro_batch for recipe in recipes} == {4}


def test_table_has_means_intervals_and_paired_differences(tmp_path):
    sweep = sweep_of(tmp_path, grid={"optimization.warmup": [0.0, 0.5]}, seeds=(0, 1, 2))
    losses = {0.0: (1.0, 1.2, 1.7), 0.5: (1.1, 1.3, None)}
    for cell in sweep.cells():
        loss = losses[cell.values["optimization.warmup"]][cell.seed]
        if loss is not None:
            finish(cell, {"loss": 9.0}, {"loss": loss}, {"train_loss": 3.0})
    first, second = collect(sweep)
    assert first.mean == pytest.approx(1.3) and second.mean == pytest.approx(1.2)
    spread = (sum((value - 1.3) ** 2 for value in losses[0.0]) / 2) ** 0.5
    assert first.interval == pytest.approx(4.303 * spread / 3**0.5) and first.difference is None
    assert second.difference == pytest.approx(0.1) and second.difference_interval == pytest.approx(0, abs=1e-12)
    text = table_text(sweep, [first, second])
    assert "| v1-align | 0.5 | 1.2000 | -0.0706 to 2.4706 | +0.1000 ± 0.0000 | 2 of 3 |" in text
    assert half_width([1.0]) is None and half_width([0.0] * 20 + [1.0] * 20) == pytest.approx(0.162, abs=1e-3)


def test_metrics_of_stage_0_and_held_out_data(tmp_path):
    sweep = sweep_of(
        tmp_path / "0", recipes=("tiny-upsampler",), grid={}, seeds=(3,), metric="quality.2x.jbu.ridge_r2"
    )
    (cell,) = sweep.cells()
    cell.out.mkdir(parents=True)
    (cell.out / "upsampler.safetensors").touch()
    (cell.out / "quality.json").write_text(json.dumps({"2x": {"jbu": {"ridge_r2": 0.25}}}))
    assert collect(sweep)[0].scores == {3: 0.25}
    with pytest.raises(ValueError, match="no metric 'quality.2x.jbu.gone'"):
        collect(Sweep(**{**vars(sweep), "metric": "quality.2x.jbu.gone"}))
    sweep = sweep_of(tmp_path / "1", recipes=("tiny-align",), grid={}, seeds=(0,), metric=None)
    (cell,) = sweep.cells()
    finish(cell, {"loss": 1.0}, {"eval_loss": 2.0})
    assert collect(sweep)[0].scores == {0: 2.0}  # the recipe has held-out data
    assert "| eval_loss, mean |" in table_text(sweep, collect(sweep))
    mixed = sweep_of(tmp_path / "2", recipes=("tiny-align", "v1-align"), grid={}, seeds=(0,), metric=None)
    for cell in mixed.cells():
        finish(cell, {"loss": 1.0}, {"eval_loss": 2.0})
    assert [setting.scores for setting in collect(mixed)] == [{0: 1.0}, {0: 1.0}]
    assert "| loss, mean |" in table_text(mixed, collect(mixed))


def test_wrong_sweeps_are_refused_before_anything_runs(tmp_path):
    for grid, said in (("a", "expected key="), ("a=1", "expected key="), ("a=[1", "not YAML"), ("=[1]", "expected")):
        with pytest.raises(ValueError, match=said):
            parse_grid([grid])
    with pytest.raises(ValueError, match="given twice"):
        parse_grid(["a=[1]", "a=[2]"])
    assert parse_grid(["a=[1e-3, 2]", "b=[[1, 2], [1]]"]) == {"a": ["1e-3", 2], "b": [[1, 2], [1]]}
    with pytest.raises(ValueError, match="nearest: schedule.warmup"):
        run_sweep(sweep_of(tmp_path, grid={"optimization.warmups": [1]}))
    for override in ("seed=3", "out=elsewhere"):
        with pytest.raises(ValueError, match="a sweep sets .* of every run itself"):
            sweep_of(tmp_path, overrides=(override,)).claim()
    for change, said in (
        ({"seeds": (3, 1, 3)}, "seed 3 is given twice"),
        ({"recipes": ("v1-align", "v1-align")}, 'recipe "v1-align" is given twice'),
        ({"grid": {"optimization.warmup": [0.5, 0.0, 0.5]}}, "optimization.warmup 0.5 is given twice"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep_of(tmp_path / "twice", **change).claim()
    assert not (tmp_path / "twice").exists()
    sweep_of(tmp_path).claim()
    with pytest.raises(ValueError, match=r"seeds was \[0, 1\] and is \[2\]"):
        sweep_of(tmp_path, seeds=(2,)).claim()
    sweep_of(tmp_path, metric="eval_loss").claim()  # the same runs


def run_cli(*arguments, **options):
    command = [sys.executable, "-m", "llava_uhd", "train", "sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_job_array_runs_every_cell(run, tmp_path):
    out = tmp_path / "sweep out"
    grid = "optimization.warmup=[0.0, 0.5]"
    arguments = ("v1-align", "optimization.micro_batch=4", "--out", out, "--grid", grid, "--seeds", "0,1")
    code, _, error = run("train", "sweep", *arguments, "--gpus", "8", "--slurm", "--jobs", "3")
    assert code == 0, error
    text = (out / "sweep.sbatch").read_text()
    assert "#SBATCH --array=0-3%3" in text and "#SBATCH --gpus-per-node=8" in text
    subprocess.run(["bash", "-n", out / "sweep.sbatch"], check=True)
    (command,) = re.findall(r"^python .*$", text, flags=re.MULTILINE)
    # The script's own line, with a task's number and a python that records how it is called.
    script = f'python() {{ printf "%s\\n" "$@"; }}\nSLURM_ARRAY_TASK_ID=2\n{command}\n'
    called = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert called[:4] == ["-m", "llava_uhd", "train", "sweep"] and called[-2:] == ["--cell", "2"]
    assert called[called.index("--grid") + 1] == grid and "optimization.micro_batch=4" in called
    code, _, error = run(*called[2:-1], "9")
    assert code == 2 and "4 cells" in error


@pytest.mark.slow
def test_real_runs_killed_and_resumed_give_the_same_table(recipe_values, tmp_path):
    recipe_values["schedule"]["max_steps"] = 3
    recipe_values["data"]["held_out"] = recipe_values["data"]["train"]
    recipe_values["monitoring"]["eval_every"] = 3
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_values))
    grid = "optimization.learning_rates.projector=[1e-3, 5e-3]"

    def arguments(name):
        return (tmp_path / "mine.yaml", "--out", tmp_path / name, "--grid", grid, "--seeds", "0,1")

    whole = run_cli(*arguments("whole"), "--json")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "llava_uhd", "train", "sweep", *map(str, arguments("killed"))]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "cells" / "001-mine-seed1" / "checkpoint-2").is_dir():
        assert killed.poll() is None
        time.sleep(0.2)
    killed.kill()
    killed.wait()
    time.sleep(3)
    resumed = run_cli(*arguments("killed"))
    assert resumed.returncode == 0, resumed.stderr
    tables = [(tmp_path / name / "table.md").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1] and tables[0].count("2 of 2") == 2
    settings = json.loads(whole.stdout)["settings"]
    assert settings[0]["mean"] == pytest.approx(mean(settings[0]["scores"].values()))


def test_a_failed_run_is_reported_and_tried_again(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path, grid={}, seeds=(0, 1))
    broken = [sys.executable, "-c", "import sys; sys.exit('the run stopped: the loss is nan')"]
    monkeypatch.setattr("llava_uhd.training.sweep.run_command", lambda cell, gpus: broken)
    said: list[str] = []
    failures = run_sweep(sweep, show=said.append)
    assert len(failures) == 2 and "the loss is nan" in failures[0] and "2 runs, 0 finished" in said
    for cell in sweep.cells():
        finish(cell, {"loss": float(cell.seed)})
    assert run_sweep(sweep, show=said.append) == []
    assert write_results(sweep)[0].mean == 0.5 and Path(tmp_path / "table.md").read_text().count("2 of 2") == 1
