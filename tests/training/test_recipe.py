"""Recipes: the shipped ones load and carry the published values; what is wrong in one is said."""

import copy
import re

import pytest
import yaml

from llava_uhd.training.recipe import FOLDER, build_recipe, load_recipe, recipe_text, shipped_recipes

FAMILIES = ("tiny", "vicuna-7b", "vicuna-13b", "qwen2-7b", "v1")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_print_as_they_are(name):
    recipe = load_recipe(name)
    assert build_recipe(yaml.safe_load(recipe_text(recipe))) == recipe


def test_each_family_has_its_stages():
    wanted = {f"{family}-{stage}" for family in FAMILIES for stage in ("align", "instruct")}
    wanted |= {"tiny-upsampler", "clip-l-upsampler", "vicuna-7b-instruct-lora", "vicuna-7b-instruct-qlora"}
    assert set(shipped_recipes()) == wanted


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_published_values(family):
    align, instruct = load_recipe(f"{family}-align"), load_recipe(f"{family}-instruct")
    first, second = align.optimization, instruct.optimization
    assert (first.global_batch, second.global_batch) == (256, 128)
    assert first.learning_rates == {"projector": 1e-3, "positions": 1e-3}
    assert set(second.learning_rates.values()) == {2e-5} and "positions" not in second.learning_rates
    for optimization in (first, second):
        assert (optimization.schedule, optimization.warmup, optimization.weight_decay) == ("cosine", 0.03, 0.0)
    assert align.data.max_slices == 1 and instruct.data.max_slices == 7 and instruct.data.max_length == 4096
    assert instruct.model.start == f"{align.out}/model"


def test_the_published_upsampler():
    recipe = load_recipe("clip-l-upsampler")
    assert (recipe.learning_rate, recipe.jitters, recipe.max_pad, recipe.max_zoom) == (1e-3, 2, 30, 2.0)
    assert (recipe.projection, recipe.crf, recipe.tv, recipe.clip_first, recipe.max_grad_norm) == (
        30,
        1e-3,
        0,
        10,
        1e-4,
    )


def test_overrides():
    recipe = load_recipe("vicuna-7b-align", ["data.train.0.path=mine.json", "optimization.epochs=2", "seed=7"])
    assert (recipe.data.train[0].path, recipe.optimization.epochs, recipe.seed) == ("mine.json", 2.0, 7)
    assert load_recipe(
        "vicuna-7b-align", ["optimization.learning_rates={projector: 5e-4}"]
    ).optimization.learning_rates
    assert load_recipe("vicuna-7b-instruct", ["watch.report_to=tensorboard"]).watch.report_to == "tensorboard"


WRONG = [
    (["optimisation.epochs=2"], "unknown key optimisation; nearest: optimization"),
    (["optimization.epoch=2"], "unknown key optimization.epoch; nearest: optimization.epochs"),
    (["optimization.epochs=many"], "optimization.epochs must be float, got 'many'"),
    (["optimization.micro_batch=1.5"], "optimization.micro_batch must be int, got 1.5"),
    (["optimization.micro_batch=3"], "256 is no multiple of micro_batch 3"),
    (["optimization.learning_rates.language_model=1e-5"], "stage align trains projector, positions"),
    (["optimization.learning_rates.projector=0"], "projector must be above 0"),
    (["optimization.schedule=cosin"], r"must be one of cosine, .*got 'cosin' \(nearest: cosine\)"),
    (["data.train.1.path=x"], "data.train.1.path: there are 1 entries"),
    (["data.train=x"], "data.train must be a list"),
    (["data.pack=1"], "data.pack must be bool, got 1"),
    (["model.start=tiny"], "either start, or both"),
    (["model.vision_tower=null"], "either start, or both"),
    (["watch.keep=1"], "watch.keep must be at least 2"),
    (["lora={rank: 4}"], "trains language_model alone"),
    (["stage=aline"], "stage must be one of"),
    (["seed"], "expected key=value"),
    (["seed=[1"], "not YAML"),
]


@pytest.mark.parametrize("overrides, told", WRONG, ids=[overrides[0] for overrides, _ in WRONG])
def test_what_is_wrong_is_said(overrides, told):
    with pytest.raises(ValueError, match=told):
        load_recipe("vicuna-7b-align", overrides)


def test_unknown_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match="nearest: vicuna-7b-align"):
        load_recipe("vicuna-7b-alin")
    (tmp_path / "broken.yaml").write_text("stage: [align")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(str(tmp_path / "broken.yaml"))
    values = yaml.safe_load((FOLDER / "tiny-align.yaml").read_text())
    missing = copy.deepcopy(values)
    del missing["optimization"]["global_batch"]
    with pytest.raises(ValueError, match="optimization.global_batch is missing"):
        build_recipe(missing)


def test_the_guide_names_recipes_that_exist():
    """Every recipe in docs/training.md is shipped, and every shipped one is in it."""
    guide = (FOLDER.parents[2] / "docs" / "training.md").read_text()
    named = set(re.findall(r"\b[a-z0-9-]+-(?:upsampler|align|instruct(?:-q?lora)?)\b", guide))
    assert named == set(shipped_recipes())
