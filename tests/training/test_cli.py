"""`llava-uhd train` and `llava-uhd data` as a user meets them."""

import json

import pytest
import yaml

from llava_uhd.training.recipe import shipped_recipes


def test_list(run):
    code, out, _ = run("train", "list", "--json")
    assert code == 0 and json.loads(out)["recipes"] == shipped_recipes()


def test_dry_runs(run):
    code, out, _ = run("train", "vicuna-7b-align", "schedule.epochs=2", "--dry-run", "--devices", "8", "--json")
    planned = json.loads(out)
    assert code == 0 and planned["recipe"]["schedule"]["epochs"] == 2.0
    assert planned["plan"]["steps"] == 4362 and planned["plan"]["accumulation"] == 1
    code, out, _ = run("train", "vicuna-7b-instruct", "--dry-run", "--devices", "64", "monitoring.peak_tflops=989")
    assert code == 1  # 128 samples do not divide among 64 devices with 8 each
    code, out, _ = run("train", "vicuna-7b-instruct", "--dry-run", "--devices", "16", "monitoring.peak_tflops=989")
    assert code == 0 and "upsampler_fixup" in out and "memory with fsdp2" in out and "time at 40% of peak" in out
    code, out, _ = run("train", "clip-l-upsampler", "--dry-run", "--devices", "8")
    assert code == 0 and "scale nets" in out


def test_a_stage(run, recipe_values, tmp_path):
    recipe_values["schedule"]["max_steps"] = 1
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_values))
    code, out, _ = run("train", tmp_path / "mine.yaml", "--json")
    trained = json.loads(out)
    assert code == 0 and trained["steps"] == 1 and trained["model"] == f"{recipe_values['out']}/model"


def test_failures_are_one_line(run, recipe_values, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_values))
    for arguments, said in [
        (("train", "nothing"), "no recipe 'nothing'"),
        (("train", "vicuna-7b-align", "schedule.epoch=1"), "nearest: schedule.epochs"),
        (("train", tmp_path / "mine.yaml", "data.train.0.path=gone.json"), "no file gone.json"),
        (("train", tmp_path / "mine.yaml", "model.start=nowhere"), "nowhere"),
        (("train", tmp_path / "mine.yaml", "optimization.learning_rates={language_model: 1e30}"), "the run stopped"),
        (("data", "check", "gone.json"), "no file gone.json"),
    ]:
        code, out, err = run(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, out, len(errors)) == (1, "", 1) and said in errors[0], (arguments, code, out, err[-500:])
        assert "Traceback" not in err
    assert run("train", "all")[0] == 2
    assert run("train", "all", "tiny", "seed=1")[0] == 2


def test_data_check_and_synthetic(run, data_folder, model_folder, tmp_path):
    arguments = ("data", "check", data_folder / "train.json", "--images", data_folder, "--model", model_folder)
    code, out, _ = run(*arguments, "--manifest", tmp_path / "manifest.jsonl", "--json")
    found = json.loads(out)
    assert code == 0 and found["samples"] == 18 and found["images"] == 14 and found["tokens"] > 1000
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 18
    code, out, err = run("data", "check", data_folder / "train.json", "--images", tmp_path)
    assert code == 1 and "13 of 18 samples cannot be used" in err and "sample 0: there is no file" in out
    code, _, _ = run("data", "synthetic", "--out", tmp_path / "tiny", "--count", "2", "--held-out", "1")
    assert code == 0
    for part in ("train", "held-out"):
        folder = tmp_path / "tiny" / part
        assert run("data", "check", folder / "questions.jsonl", "--images", folder / "images")[0] == 0


@pytest.mark.slow
def test_all_stages_in_one_go(run, model_folder, tmp_path):
    """Align, instruct, evaluate, on the recipes of the built-in model with a smaller one in its place."""
    assert run("data", "synthetic", "--out", tmp_path / "data", "--count", "4", "--held-out", "1")[0] == 0
    overrides = []
    for stage, name, pages in (("align", "captions", "overviews"), ("instruct", "questions", "images")):
        for part, key in (("train", "train"), ("held-out", "held_out")):
            overrides += [
                f"{stage}.data.{key}.0.path={tmp_path / 'data' / part / name}.jsonl",
                f"{stage}.data.{key}.0.images={tmp_path / 'data' / part / pages}",
            ]
        overrides += [
            f"{stage}.out={tmp_path / stage}",
            f"{stage}.schedule.max_steps=1",
            f"{stage}.data.workers=0",
        ]
        overrides += [f"{stage}.data.template=qwen", f"{stage}.data.max_slices=1"]
    overrides += [f"align.model.start={model_folder}", "align.model.upsampler=null"]
    arguments = ("train", "all", "tiny", *overrides, "--eval-limit", "2", "--json")
    for mistake in (("instruct.schedule.epoch=2",), ("--benchmarks", "synthdocc"), ("--benchmarks", "docvqa_val")):
        assert run(*arguments, *mistake)[0] != 0 and not (tmp_path / "align").exists()
    code, out, err = run(*arguments)
    assert code == 0, err[-2000:]
    results = json.loads(out)
    assert results["align"]["steps"] == results["instruct"]["steps"] == 1 and results["evaluation"]["synthdoc"]
    code, out, _ = run(*arguments)
    assert code == 0 and json.loads(out)["instruct"] == {
        "model": str(tmp_path / "instruct" / "model"),
        "finished_before": True,
    }
    code, _, err = run(*arguments, "instruct.seed=7")  # another run than the one that is there
    assert code == 1 and "holds the run of another recipe (seed" in err
    assert run("train", "run", "tiny-align", "--devices", "8")[0] == 2
