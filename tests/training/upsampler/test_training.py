"""Stage 0 on a folder of small pictures: it learns, beats its beginning, and goes on where it was killed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_uhd.training.recipe import UpsamplerRecipe
from llava_uhd.training.upsampler import training
from llava_uhd.training.upsampler.features import Features
from llava_uhd.training.upsampler.pictures import Pictures, batches, find_pictures
from llava_uhd.training.upsampler.quality import false_colours
from llava_uhd.training.upsampler.training import train_upsampler
from llava_uhd.training.watch import RunStopped
from tests.conftest import picture


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small tower, and 14 pictures of two shapes in nested folders."""
    tower, pictures = tmp_path_factory.mktemp("tower"), tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    CLIPVisionModel(config).save_pretrained(tower)
    (pictures / "nested").mkdir()
    for index in range(14):
        size = (160, 120) if index % 2 else (90, 140)
        picture(*size, seed=index).save(pictures / ("nested" if index % 3 else ".") / f"{index:02}.png")
    return tower, pictures


@pytest.fixture
def recipe(folders, tmp_path):
    def recipe(out="run", **changes):
        options = {
            "stage": "upsampler",
            "out": str(tmp_path / out),
            "vision_tower": str(folders[0]),
            "images": str(folders[1]),
            "held_out": 2,
            "image_size": 56,
            "max_pad": 6,
            "batch": 3,
            "epochs": 2,
            "projection": 5,
            "crf_samples": 20,
            "tv": 1e-4,
            "save_every": 3,
            "log_every": 1,
            "workers": 0,
            "learning_rate": 1e-2,
            "clip_first": 1,
        }
        return UpsamplerRecipe(**options | changes)

    return recipe


def test_it_trains_and_reports_quality_in_numbers(recipe, tmp_path):
    long = recipe(epochs=8, projection=0, crf=0.0, tv=0.0)
    trained = train_upsampler(long)
    assert trained.steps == 32 and trained.resumed_from is None
    logs = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(logs) == 32 and sum(logs[-8:]) < sum(logs[:8])
    weights = load_file(trained.upsampler)
    assert weights["up1.range_temp"].shape == (1,) and weights["fixup_proj.1.weight"].shape == (16, 16, 1, 1)
    levels, ways = ("2x", "4x"), ("jbu", "jbu_before", "bilinear", "bilinear_before")
    assert {f"{level}_{way}" for level in levels for way in ways} <= trained.quality.keys()
    assert all(-1 <= value <= 1 for value in trained.quality.values())
    assert trained.quality["2x_bilinear"] == trained.quality["2x_bilinear_before"]
    assert trained.quality["2x_jbu"] > trained.quality["2x_jbu_before"]
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    with pytest.raises(ValueError, match="holds a finished run"):
        train_upsampler(long)


@pytest.mark.parametrize("highest, keep_aspect", [(2, True), (8, False)])
def test_levels_and_aspect_ratios(recipe, highest, keep_aspect):
    changes = {"highest": highest, "keep_aspect": keep_aspect, "batch": 2, "epochs": 1, "max_steps": 1}
    trained = train_upsampler(recipe(**changes, normalization="clip", resample="bicubic"))
    assert f"{highest}x_jbu" in trained.quality and f"{2 * highest}x_jbu" not in trained.quality


def test_a_killed_run_goes_on_bit_by_bit(recipe, monkeypatch):
    whole = train_upsampler(recipe("whole"))

    class Killed(BaseException):
        pass

    def kill(*arguments):
        if arguments[5] == 6:
            raise Killed
        return original(*arguments)

    original = training._step
    monkeypatch.setattr(training, "_step", kill)
    with pytest.raises(Killed):
        train_upsampler(recipe("killed"))
    monkeypatch.undo()
    resumed = train_upsampler(recipe("killed"))
    assert resumed.resumed_from == 3 and resumed.steps == whole.steps == 8
    first, second = load_file(whole.upsampler), load_file(resumed.upsampler)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.quality == whole.quality


def test_a_loss_that_is_no_number_stops(recipe, tmp_path):
    with pytest.raises(RunStopped, match="the loss is nan"):
        train_upsampler(recipe(learning_rate=1e30, clip_first=0))
    assert list((tmp_path / "run").glob("stopped-step-*-rank-0.pt"))


def test_pictures(folders):
    files, held_out = find_pictures(str(folders[1]), 2)
    assert len(files) == 12 and len(held_out) == 2
    with pytest.raises(ValueError, match="14 pictures, of which 14"):
        find_pictures(str(folders[1]), 14)
    square = Pictures(files, 56, 14, False, "nearest", "imagenet")
    assert square[0].shape == (3, 56, 56) and square.at_scale(1, 2).shape == (3, 112, 112)
    shapes = Pictures(files, 56, 14, True, "bicubic", "clip")
    assert {tuple(shapes[index].shape[1:]) for index in range(12)} == {(42, 56), (56, 42)}
    for batch in batches(shapes, 2, seed=0, epoch=0):
        assert len({shapes.size(index) for index in batch}) == 1
    restored = shapes.denormalize(shapes[0])
    assert 0 <= restored.min() and restored.max() <= 1


def test_features_of_tiles_are_those_of_the_parts(folders):
    features = Features(CLIPVisionModel.from_pretrained(folders[0]).eval(), -2)
    pixels = torch.randn(1, 3, 112, 112)
    tiles = features.of_tiles(pixels, 2)
    assert tiles.shape == (1, 16, 8, 8)
    torch.testing.assert_close(tiles[..., 4:, :4], features(pixels[..., 56:, :56]))
    picture = false_colours([tiles[0], features(pixels[..., :56, :56])[0]], (20, 30))
    assert picture.shape == (3, 20, 60) and 0 <= picture.min() and picture.max() <= 1
