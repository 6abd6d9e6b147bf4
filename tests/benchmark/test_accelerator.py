"""`benchmarks/accelerator.py`: its counts, its processes with time limits, and its table."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from accelerator_rows import counting, plan, runner, table  # noqa: E402
from accelerator_rows import training as training_rows  # noqa: E402
from accelerator_rows.setting import SMALL, Setting, dearest, difference, num_launches  # noqa: E402

CPU = Setting(torch.device("cpu"), small=True)


def test_views_and_allocations_are_no_launches():
    a = torch.ones(4, 4)
    assert num_launches(lambda: (a.t(), a.view(16), torch.empty(3)), CPU) == 0
    assert num_launches(lambda: torch.relu(a @ a) + 1, CPU) == 3


def test_operands_products_and_attention_are_counted():
    a, q = torch.ones(4, 8), torch.ones(2, 3, 5, 16)
    counter = counting.counted(lambda: a @ a.T)
    assert counter.flop == {torch.float32: 2 * 4 * 8 * 4} and counter.bytes == 4 * (32 + 32 + 16)
    counter = counting.counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert counter.launches == 1 and counter.flop == {torch.float32: 4 * 2 * 3 * 5 * 5 * 16}


def test_layers_add_launches_operations_and_bytes():
    parts = counting.count(SMALL, (336, 224))
    deeper = counting.count(replace(SMALL, vision_layers=6, text_layers=3), (336, 224))
    for index in (0, 2, 3):  # encoder, prefill, one new token
        assert deeper[index].counted.launches > parts[index].counted.launches > 0
        assert deeper[index].flop > parts[index].flop > 0
        assert deeper[index].counted.bytes > parts[index].counted.bytes > 0
    assert deeper[1].counted.bytes == parts[1].counted.bytes and deeper[1].flop == parts[1].flop


def test_counted_products_agree_with_the_calculated_ones():
    """Similarities of neighbors by matrix products take more than the 49 that are calculated: much at toy width."""
    for part in counting.count(replace(SMALL, hidden=256, vision_hidden=128, view_size=224), (672, 448)):
        tolerance = 0.3 if part.name == "projector" else 0.1
        assert sum(part.counted.flop.values()) == pytest.approx(part.flop, rel=tolerance), part.name


def test_time_limits_add_up_to_less_than_eight_minutes():
    measurements = plan.plan()
    assert sum(measurement.limit for measurement in measurements) <= plan.BUDGET < 480 and plan.SMALL_BUDGET < 300
    assert len({measurement.name for measurement in measurements}) == len(measurements)
    assert {measurement.section for measurement in measurements} == set(plan.SECTIONS)


def works(setting: Setting) -> Iterator[dict]:
    yield {"measured": "first", "ms": 1.5}


def fails_after_a_row(setting: Setting) -> Iterator[dict]:
    yield {"measured": "second", "ms": 2.5}
    raise RuntimeError("no memory | left")


def hangs(setting: Setting) -> Iterator[dict]:
    yield {"measured": "third", "ms": 3.5}
    time.sleep(60)


def dies(setting: Setting) -> Iterator[dict]:
    import os

    os._exit(7)
    yield {}


def test_a_failing_measurement_loses_its_own_rows_alone(tmp_path):
    run = runner.Runner(tmp_path, CPU, budget=1000)
    rows = []
    for function, limit in ((fails_after_a_row, 60.0), (hangs, 4.0), (dies, 60.0), (works, 60.0)):
        rows += run.run(plan.Measurement(function.__name__, "Device", limit, function))
    assert [row["status"].split(" in ")[0] for row in rows] == [
        "ok",
        "failed: RuntimeError: no memory | left",
        "ok",
        "failed: over its limit of 4 s, see logs/hangs.log",
        "failed: the process ended with code 7, see logs/dies.log",
        "ok",
    ]
    assert "Traceback" in (tmp_path / "logs" / "fails_after_a_row.log").read_text()
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == rows
    text = table.markdown(rows, "command", 1.0)
    assert "| third | 3.5 |" in text and "no memory / left" in text and "**Goals**" in text
    assert "**Goals**" not in table.markdown(rows, "command", 1.0, is_small=True)


def test_what_the_budget_leaves_no_time_for_is_named(tmp_path):
    (row,) = runner.Runner(tmp_path, CPU, budget=1).run(plan.Measurement("late", "Device", 60.0, works))
    assert row["status"].startswith("not measured: the 1 s")


def test_goals_are_read_from_the_rows():
    rows = [
        {"section": "Vision path", "measured": "encoder, 7 views", "status": "ok", "ms": 10.0},
        {"section": "Vision path", "measured": "projector, 7 views", "status": "ok", "ms": 1.5},
        {"section": "Training", "measured": "stage 2, 8 text layers", "status": "ok", "samples/s": 8.0},
        {
            "section": "Training",
            "measured": "stage 2, 32 text layers, by arithmetic",
            "status": "ok",
            "samples/s": 4.0,
        },
        {"section": "Evaluation and input", "measured": "input pipeline, one core", "status": "ok", "samples/s": 2.0},
    ]
    found = dict(table.goals(rows))
    assert found["projector at most 20 % of the encoder at 7 views, eager"] == "15%"
    assert found["the same in CUDA graphs"] == "not measured"
    assert found["cores of the input pipeline that feed a stage-2 step"] == "2.0"


def test_a_difference_that_is_noise_is_no_measurement():
    assert difference(2.5, 1.0, "8 further questions") == 1.5
    with pytest.raises(RuntimeError, match="8 further questions took no time"):
        difference(1.0, 1.0, "8 further questions")


def test_stage_0_is_measured_by_todays_recipe():
    recipe = training_rows.stage_0_recipe(112, 1)
    assert recipe.data.image_size == 112 and recipe.loss.max_pad == 28 and recipe.optimization.global_batch == 1


def test_dearest_kernels_are_named():
    a = torch.ones(64, 64)
    assert any("mm" in line for line in dearest(lambda: a @ a, CPU))


@pytest.mark.slow
def test_rows_of_the_device_and_of_one_view(tmp_path):
    options = ["--out", str(tmp_path), "--device", "cpu", "--small", "--profile"]
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), *options, "--only", "rates", "vision-1-eager"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_name = {row["measured"]: row for row in rows}
    for name in ("projector, 1 views", "vision, 1 views", "vision, plain, 1 views"):
        row = by_name[name]
        assert row["error"] < 1e-5 and row["launches"] > 0 and row["MB moved"] > row["MB fewest"] and row["kernels"]
    assert output == (tmp_path / "table.md").read_text() + "\n"
    assert "| matrix product |" in output and "Dearest kernels of vision, 1 views" in output


@pytest.mark.slow
def test_the_dry_run_fills_every_row(tmp_path):
    options = ["--out", str(tmp_path), "--device", "cpu", "--small"]
    process = subprocess.run(
        [sys.executable, str(BENCHMARKS / "accelerator.py"), *options], capture_output=True, text=True
    )
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert process.returncode == 0, process.stderr
    assert {row["measurement"] for row in rows} == {measurement.name for measurement in plan.plan()}
    assert {row["status"] for row in rows} == {"ok", "skipped: CUDA graphs need a CUDA device"}


def test_the_command_asks_for_one_thing():
    command = [sys.executable, str(BENCHMARKS / "accelerator.py")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2 and "either --out DIR or --count" in process.stderr
