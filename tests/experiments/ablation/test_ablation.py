"""The ablation: labels, equal tokens, exact scores, intervals, runs that resume, and the tables of the docs."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.ablation import __main__ as command
from experiments.ablation.pages import GRID, encode_pages, make_page, page_symbols
from experiments.ablation.report import summarize, tables
from experiments.ablation.rows import QUERY_GRID, ROWS, STAGE0, TABLES
from experiments.ablation.statistics import difference_interval, score_interval
from experiments.ablation.tasks import SUB_CELLS, Characters, SubCells
from experiments.ablation.training import Reader, Run, draw_pages, measure, run_row
from experiments.tiny_v1.folder import save_folder
from experiments.tiny_v1.setting import PATCH_SIZE
from experiments.tiny_v1.symbols import EMPTY, FIRST_CHARACTER, plan_of, view_symbols
from experiments.tiny_v1.vision import build_model
from llava_uhd.model.vision_tower import patches_to_pixels


@pytest.fixture(scope="module")
def pages():
    """Four pages through a tower of random weights."""
    return encode_pages(build_model(0).model.vision_tower, "test", 4)


def test_symbols_are_those_of_the_built_in_models_training():
    for index in range(3):
        document = make_page("symbols", index)
        plan = plan_of(document)
        assert plan.grid == GRID and set(plan.view_shapes[:-1]) == {(8, 8)}
        measured = page_symbols(document, GRID)
        # Windows of two by two cells, back into rows of cells.
        cells = measured.view(6, 4, 4, 2, 2, 4).transpose(2, 3).reshape(6, 64, 4)
        assert np.array_equal(cells.numpy(), np.stack(view_symbols(document, plan)[:-1]))
        # Cells hold one line of text, so nearly all characters have a place; those of an overview hold several.
        characters = sum(1 for _ in document.page.characters())
        assert 0.98 * characters < (measured != EMPTY).sum() <= characters
        assert (page_symbols(document, (1, 1)) != EMPTY).sum() < characters


@pytest.mark.parametrize("name", ROWS)
def test_rows_give_equal_numbers_of_tokens_and_train_what_they_say(name):
    row = ROWS[name]
    reader = Reader(row, 5, None)
    assert reader(torch.randn(2, 160, 8, 8), torch.randn(2, 3, 112, 112)).shape == (2, QUERY_GRID**2, 5)
    trained = {key for key, parameter in reader.projector.named_parameters() if parameter.requires_grad}
    assert trained and not any(".up1." in key or key == "positions" for key in trained)
    assert any("fixup_proj" in key for key in trained) == (row.stage0 is not None)
    learned = row.stage0 is not None or row.projector.get("upsampler") == "deconvolution"
    assert any(key.startswith("upsampler.") for key in trained) == learned
    assert row.stage0 is None or row.stage0 in STAGE0


def test_tables_name_rows_that_exist_and_compare_rows_that_they_show():
    for table in TABLES.values():
        assert set(table.rows) <= set(ROWS) and {name for pair in table.pairs for name in pair} <= set(table.rows)
    assert {name for table in TABLES.values() for name in table.rows} | {"overview-both"} == set(ROWS)


def test_characters_are_counted_at_their_places(pages):
    task, letter = Characters(), FIRST_CHARACTER + ord("e") - 32
    reader = Reader(ROWS["mlp"], task.outputs, None)
    with torch.no_grad():
        reader.readout.weight.zero_()
        reader.readout.bias.view(16, -1).zero_()[:, letter] = 5.0
    scores = measure(reader, ROWS["mlp"], task, pages)
    assert [right for right, _ in scores] == [(of_page == letter).sum() for of_page in pages.slices.symbols]
    assert [characters for _, characters in scores] == pages.characters and sum(right for right, _ in scores) > 0


def test_sub_cells_are_the_mean_gray_of_half_patches(pages):
    task = SubCells(pages)
    targets = task.targets(pages.slices, torch.tensor([1]))  # N, T, K
    pixels = patches_to_pixels(pages.slices.patches[1].float(), (8, 8), PATCH_SIZE).mean(dim=1)  # N, 112, 112
    side, view, window, cell = PATCH_SIZE // 2, 2, 6, 9  # window (1, 2), sub-cell (2, 1)
    top, left = (1 * SUB_CELLS + 2) * side, (2 * SUB_CELLS + 1) * side
    expected = (pixels[view, top : top + side, left : left + side].mean() - task.mean) / task.std
    assert targets.shape == (6, 16, 16) and targets[view, window, cell] == pytest.approx(expected.item(), abs=1e-4)
    numerator, denominator = task.score(torch.zeros_like(targets), targets, 0)
    assert numerator == pytest.approx(0, abs=1e-3) and denominator > 0  # the constant explains nothing
    assert task.score(targets, targets, 0)[0] == denominator


@pytest.mark.parametrize("name", ["characters", "sub-cells"])
def test_a_run_learns_and_repeats(pages, name):
    task = Characters() if name == "characters" else SubCells(pages)
    runs = [run_row("mlp", ROWS["mlp"], name, task, s, "steps", 40, 2, pages, pages, None) for s in (0, 0, 1)]
    assert runs[0].pages == runs[1].pages != runs[2].pages and runs[0].tokens == 96
    assert [point[0] for point in runs[0].curve][-1] == 40 and len(runs[0].curve) == 6
    # The few characters that 40 steps read are not more than chance; the darkness is.
    assert name == "characters" or (runs[0].score > 0.03 and runs[0].curve[-1][2] > runs[0].curve[0][2])


def test_every_page_comes_once_before_any_comes_again():
    stream = draw_pages(7, 2, seed=3)
    first = torch.cat([next(stream) for _ in range(3)]).tolist()
    assert len(set(first)) == 6 and first != torch.cat([next(stream) for _ in range(3)]).tolist()


def make_run(row, seed, right, task="characters", budget="steps", seconds=7.0):
    pages = [[float(count), 10.0] for count in right]
    return Run(row, task, seed, budget, 10, 96, 1234, seconds, pages, [[5, 3.0, 0.1], [10, 7.0, 0.2]])


def test_a_paired_difference_is_narrower_than_the_scores():
    hard = np.array([1, 2, 8, 9, 1, 9])
    first = [make_run("a", seed, hard + 1) for seed in (0, 1)]
    second = [make_run("b", seed, hard) for seed in (0, 1, 2)]
    found = difference_interval(first, second)
    assert (found.value, found.seeds) == (pytest.approx(0.1), 2)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)  # one more on every page
    alone = score_interval(second)
    assert alone.value == pytest.approx(0.5) and alone.low < 0.4 < 0.6 < alone.high
    assert difference_interval(first, [make_run("b", 5, hard)]) is None


def test_intervals_contain_the_spread_of_seeds():
    runs = [make_run("a", seed, [count] * 6) for seed, count in enumerate((2, 5, 8))]
    found = score_interval(runs)
    assert found.value == pytest.approx(0.5) and found.low <= 0.3 and found.high >= 0.7


def test_tables_and_summary():
    runs = [make_run("hiwin-1", seed, [2, 4]) for seed in (0, 1)]
    runs += [make_run("hiwin-1-bins", seed, [6, 8]) for seed in (0, 1)]
    runs += [make_run("hiwin-1-bins", 0, [9, 9], budget="30 s", seconds=30.0)]
    runs += [make_run("hiwin-1-bins", 0, [7, 7], budget="9.5 s", seconds=9.5)]
    text = tables(runs)
    assert "| HiWin, 1x | 96 | 1,234 | **30.0** [20.0, 40.0] (30.0, 30.0) |  |  | 7 |" in text
    assert "| characters, %, equal steps | characters, %, 9.5 s of a core | characters, %, 30 s of a core |" in text
    assert "| **70.0** [70.0, 70.0] (70.0) | **90.0** [90.0, 90.0] (90.0) | 7 |" in text
    assert "| HiWin, 1x, bin embedding - HiWin, 1x | +40.0 [+40.0, +40.0] |  |  |" in text
    found = summarize(runs)
    assert len(found["rows"]) == 4 and found["differences"][0]["value"] == pytest.approx(0.4)


@pytest.fixture
def model(tmp_path):
    save_folder(build_model(0), tmp_path / "random")
    return str(tmp_path / "random")


def test_the_command_resumes_and_refuses_other_settings(model, tmp_path, capsys):
    out = tmp_path / "ablation"
    arguments = ["--out", str(out), "--model", model, "--pages", "4", "--held-out", "2", "--batch", "2"]
    rows = ["--rows", "mlp", "hiwin-1", "--tasks", "characters"]
    command.main([*arguments, "--steps", "2", *rows, "--seeds", "0"])
    lines = (out / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["mlp", "hiwin-1"]
    # A kill in the middle of a line, and another seed.
    (out / "runs.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    command.main([*arguments, "--steps", "2", *rows, "--seeds", "0", "1"])
    again = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert {(line["row"], line["seed"]) for line in again} == {(v, s) for v in ("mlp", "hiwin-1") for s in (0, 1)}
    assert json.loads(lines[0]) == again[0] and json.loads(lines[1])["pages"] == again[1]["pages"]
    # Equal core seconds: the number of steps follows from the runs of equal steps.
    command.main([*arguments, "--steps", "2", "--seconds", "0.5", *rows, "--seeds", "0"])
    command.main([*arguments, "--steps", "2", "--seconds", "0.25", *rows, "--seeds", "0"])
    timed = [run for run in command.finished_runs(out / "runs.jsonl") if run.budget != "steps"]
    assert [run.budget for run in timed] == ["0.5 s"] * 2 + ["0.25 s"] * 2 and timed[0].steps > timed[2].steps > 2
    assert (out / "curves.png").stat().st_size > 1000
    with pytest.raises(SystemExit) as exit_:
        command.main([*arguments, "--steps", "3", *rows])
    assert exit_.value.code == 2 and "--steps was" in capsys.readouterr().err
    # No time left: nothing further is begun, and the report stays.
    command.main([*arguments, "--steps", "2", *rows, "--seeds", "5", "--minutes", "-1"])
    assert "the same command continues" in capsys.readouterr().out
    assert len((out / "runs.jsonl").read_text().splitlines()) == 8


def test_runs_of_earlier_versions_have_the_core_seconds_of_their_folder(tmp_path):
    runs = [make_run("mlp", 0, [1, 2]), make_run("mlp", 0, [1, 2], budget="seconds")]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(asdict(run)) + "\n" for run in runs))
    (tmp_path / "settings.json").write_text('{"seconds": 30.0}')
    assert [run.budget for run in command.finished_runs(tmp_path / "runs.jsonl")] == ["steps", "30 s"]


@pytest.mark.slow
def test_upsamplers_come_from_stage_0(model, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "STAGE0_IMAGES", 8)
    monkeypatch.setattr(command, "STAGE0_HELD_OUT", 2)
    for name in ("published", "closer-look"):
        monkeypatch.setitem(command.STAGE0, name, {**STAGE0[name], "max_steps": 2})
    monkeypatch.setitem(ROWS, "jbu", replace(ROWS["jbu"], stage0="published"))
    out = tmp_path / "ablation"
    arguments = [
        "--out",
        str(out),
        "--model",
        model,
        "--pages",
        "2",
        "--held-out",
        "2",
        "--batch",
        "2",
        "--steps",
        "1",
    ]
    command.main([*arguments, "--seeds", "0", "--rows", "jbu", "jbu-both", "jbu-closer-look-both"])
    assert {path.name for path in out.glob("upsampler-*")} == {
        "upsampler-published",
        "upsampler-shipped",
        "upsampler-closer-look",
    }
    assert len((out / "runs.jsonl").read_text().splitlines()) == 6


RESULTS = Path(command.__file__).parent / "results"


@pytest.mark.parametrize("folder", sorted(file.parent for file in RESULTS.rglob("runs.jsonl")))
def test_the_docs_show_what_the_command_makes_of_the_committed_runs(folder, tmp_path, capsys):
    for name in ("runs.jsonl", "settings.json"):
        shutil.copy(folder / name, tmp_path)
    command.main(["--out", str(tmp_path), "--report"])
    printed = capsys.readouterr().out.removesuffix("\n")
    assert printed.count("| HiWin, 1x 2x, JBU, both |") > 0
    assert printed in (RESULTS.parents[2] / "docs" / "ablation.md").read_text()
    for name in ("tables.md", "results.json"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    assert (tmp_path / "curves.png").is_file() and len(list(tmp_path.iterdir())) == 5


def test_a_report_needs_a_finished_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--out", str(tmp_path), "--report"])
    assert exit_.value.code == 2 and "has no finished run" in capsys.readouterr().err
