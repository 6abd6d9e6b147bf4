"""Stage 0 on a folder of small images: loss and quality, resuming, run folders of earlier versions, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_uhd.training.recipe import build_recipe, load_recipe
from llava_uhd.training.recipe_files import FORMER_UPSAMPLER
from llava_uhd.training.upsampler import stage_trainer, training
from llava_uhd.training.upsampler.features import Features
from llava_uhd.training.upsampler.images import Images, batches, find_images
from llava_uhd.training.upsampler.jitter import Move
from llava_uhd.training.upsampler.quality import false_colors
from llava_uhd.training.upsampler.stage_trainer import UpsamplerTrainer
from llava_uhd.training.upsampler.training import train_upsampler
from llava_uhd.training.watch import RunStopped
from tests.conftest import random_image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small tower, and 14 images of two shapes in nested folders."""
    tower, images = tmp_path_factory.mktemp("tower"), tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    CLIPVisionModel(config).save_pretrained(tower)
    (images / "nested").mkdir()
    for index in range(14):
        size = (160, 120) if index % 2 else (90, 140)
        random_image(*size, seed=index).save(images / ("nested" if index % 3 else ".") / f"{index:02}.png")
    return tower, images


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
        return build_recipe(options | changes)

    return recipe


def test_it_trains_and_reports_quality_in_numbers(recipe, tmp_path):
    long = recipe(epochs=8, projection=0, crf=0.0, tv=0.0)
    trained = train_upsampler(long)
    assert trained.steps == 32 and trained.resumed_from is None
    logs = [loss for _, loss in losses(tmp_path / "run")]
    assert len(logs) == 32 and sum(logs[-8:]) < sum(logs[:8])
    weights = load_file(trained.upsampler)
    assert weights["up1.range_temp"].shape == (1,) and weights["fixup_proj.1.weight"].shape == (16, 16, 1, 1)
    ways = {"jbu", "untrained", "nearest", "bilinear", "bicubic", "constant"}
    assert {level: set(found) for level, found in trained.quality.items()} == {"2x": ways, "4x": ways}
    assert json.loads((tmp_path / "run" / "quality.json").read_text()) == trained.quality
    assert trained.quality["2x"]["jbu"] != trained.quality["2x"]["untrained"]
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    with pytest.raises(ValueError, match="holds a finished run"):
        train_upsampler(long)


@pytest.mark.parametrize("highest, keep_aspect", [(2, True), (8, False)])
def test_levels_and_aspect_ratios(recipe, highest, keep_aspect):
    changes = {"highest": highest, "keep_aspect": keep_aspect, "batch": 2, "epochs": 1, "max_steps": 1}
    trained = train_upsampler(recipe(**changes, normalization="clip", resample="bicubic"))
    assert f"{highest}x" in trained.quality and f"{2 * highest}x" not in trained.quality


class Killed(BaseException):
    """Exception that no handler catches, like a kill."""


def losses(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def test_killed_run_resumes_bit_by_bit(recipe, tmp_path, monkeypatch):
    whole = train_upsampler(recipe("whole"))
    original = UpsamplerTrainer._backward

    def kill(self, *arguments):
        if self.state.global_step == 5:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(UpsamplerTrainer, "_backward", kill)
    with pytest.raises(Killed):
        train_upsampler(recipe("killed"))
    monkeypatch.undo()
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # killed in the middle of a line
    resumed = train_upsampler(recipe("killed"))
    assert resumed.resumed_from == 3 and resumed.steps == whole.steps == 8
    first, second = load_file(whole.upsampler), load_file(resumed.upsampler)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.quality == whole.quality and resumed.loss == whole.loss
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 8


FORMER = Path(__file__).parent / "former_run"


def former_run(folders, out):
    """Copy a run that an earlier version left at step 3 of 8, with its state in `state.pt`."""
    shutil.copytree(FORMER, out)
    text = (FORMER / "recipe.yaml").read_text()
    for name, path in (("OUT", out), ("TOWER", folders[0]), ("IMAGES", folders[1])):
        text = text.replace(name, str(path))
    (out / "recipe.yaml").write_text(text)
    return load_recipe(str(out / "recipe.yaml"))


def test_run_folder_of_an_earlier_version_resumes(recipe, folders, tmp_path):
    options = former_run(folders, tmp_path / "former")
    resumed = train_upsampler(options)
    assert resumed.resumed_from == 3 and resumed.steps == 8
    whole = train_upsampler(replace(options, out=str(tmp_path / "whole")))
    first, second = load_file(whole.upsampler), load_file(resumed.upsampler)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-3)
    steps, values = zip(*losses(tmp_path / "former"), strict=True)
    assert steps == tuple(range(1, 9))
    torch.testing.assert_close(values, tuple(loss for _, loss in losses(tmp_path / "whole")), rtol=1e-3, atol=0)
    assert not (tmp_path / "former" / "state.pt").exists()


@pytest.mark.parametrize("how", ["cut", "empty", "recipe"])
def test_what_is_wrong_with_a_former_run_is_named(folders, tmp_path, how):
    out = tmp_path / "former"
    options = former_run(folders, out)
    content = (out / "state.pt").read_bytes()
    if how == "recipe":
        options = replace(options, seed=1)
    else:
        (out / "state.pt").write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    expected = "another recipe .seed was 0 and is 1" if how == "recipe" else "state.pt cannot be read .*: remove it to"
    with pytest.raises((RunStopped, ValueError), match=expected):
        train_upsampler(options)
    assert not list(out.glob("checkpoint-*"))


def test_the_closer_look_objective_lowers_the_error_against_the_closer_look(recipe):
    trained = train_upsampler(recipe(objective="closer_look", highest=2, epochs=15, jitters=1))
    found = trained.quality["2x"]
    assert found["jbu"]["nmse"] < 0.9 * found["untrained"]["nmse"] and found["jbu"]["nmse"] < found["bicubic"]["nmse"]


@pytest.mark.parametrize("objective", ["reconstruction", "closer_look"])
def test_one_loss_on_the_highest_level_trains_all_levels_below(recipe, objective):
    options = recipe(objective=objective, loss_levels="highest", tv=0.0, crf=0.0)
    torch.manual_seed(0)
    kind = training.CloserLook if objective == "closer_look" else training.Reconstruction
    module = kind(16, options)
    features, pixels = torch.randn(1, 16, 4, 4), torch.randn(1, 3, 56, 56)
    if objective == "closer_look":
        loss = module(features, pixels, [torch.randn(1, 16, 8, 8), torch.randn(1, 16, 16, 16)])
    else:
        assert len(module.downsamplers) == len(module.scale_nets) == 1
        loss = module(features, pixels, features, pixels, Move(1.0, 6, 6, False), True)
    loss.backward()
    assert module.pyramid.up1.sigma_spatial.grad.abs() > 0 and module.pyramid.up2.sigma_spatial.grad.abs() > 0
    whole = kind(16, recipe(objective=objective, loss_levels="every", tv=0.0, crf=0.0))
    whole.load_state_dict(module.state_dict(), strict=False)
    maps = training.stage_maps(whole.pyramid, features, pixels)
    (first,) = torch.autograd.grad(maps[-1].sum(), whole.pyramid.up1.sigma_spatial, allow_unused=True)
    assert first is None


def test_scalars_have_rates_of_their_own(recipe):
    options = recipe(learning_rates={"sigma_spatial": 0.5, "range_temp": 0.0}, highest=2, max_steps=3)
    trained = load_file(train_upsampler(options).upsampler)
    assert (trained["up1.sigma_spatial"] - 1).abs() > 0.3 and trained["up1.range_temp"] == 0
    with pytest.raises(ValueError, match=r"learning_rates.sigma: .*\(nearest: sigma_spatial\)"):
        recipe(learning_rates={"sigma": 1.0})


def test_groups_of_pictures_draw_their_own_jitters(recipe, monkeypatch):
    drawn = []
    original = stage_trainer.draw_move

    def draw(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(stage_trainer, "draw_move", draw)
    train_upsampler(recipe("one", batch=4, max_steps=1, jitters=2))
    assert len(drawn) == 2
    drawn.clear()
    train_upsampler(recipe("two", batch=4, max_steps=1, jitters=2, pictures_per_jitter=2))
    assert len(set(drawn)) == 4


def test_adam_is_not_nadam(recipe):
    weights = [
        load_file(train_upsampler(recipe(name, optimizer=name, max_steps=3, highest=2)).upsampler)
        for name in ("adam", "nadam")
    ]
    assert not torch.equal(*(of_run["up1.range_proj.0.weight"] for of_run in weights))


def test_a_run_begun_before_a_recipe_key_existed_resumes(recipe, tmp_path, monkeypatch):
    options = recipe(max_steps=4)
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_file", _killed)
        with pytest.raises(KeyboardInterrupt):
            train_upsampler(options)
    file = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    newer = ("objective", "loss_levels", "optimizer", "learning_rates", "pictures_per_jitter")
    flat = {key: values[key] for key in ("stage", "out", "seed")}
    for former, now in FORMER_UPSAMPLER.items():
        section, key = now.split(".")
        if former not in newer:
            flat[former] = values[section][key]
    file.write_text(yaml.safe_dump(flat))
    assert train_upsampler(options).resumed_from == 4


def _killed(*arguments, **options):
    raise KeyboardInterrupt


def test_a_loss_that_is_no_number_stops(recipe, tmp_path):
    with pytest.raises(RunStopped, match="the loss is nan"):
        train_upsampler(recipe(learning_rate=1e30, clip_first=0))
    assert list((tmp_path / "run").glob("stopped-step-*-rank-0.pt"))


def test_pictures(folders):
    files, held_out = find_images(str(folders[1]), 2)
    assert len(files) == 12 and len(held_out) == 2
    for place, said in ((folders[1] / "nowhere", "there is no folder"), (files[0], "is a file, not a folder")):
        with pytest.raises(ValueError, match=said):
            find_images(str(place), 2)
    with pytest.raises(ValueError, match="14 images, of which 14"):
        find_images(str(folders[1]), 14)
    square = Images(files, 56, 14, False, "nearest", "imagenet")
    assert square[0].shape == (3, 56, 56) and square.at_scale(1, 2).shape == (3, 112, 112)
    shapes = Images(files, 56, 14, True, "bicubic", "clip")
    assert {tuple(shapes[index].shape[1:]) for index in range(12)} == {(42, 56), (56, 42)}
    for batch in batches(shapes, 2, seed=0, epoch=0):
        assert len({shapes.size(index) for index in batch}) == 1
    restored = shapes.denormalize(shapes[0])
    assert 0 <= restored.min() and restored.max() <= 1


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_narrow_image_is_refused_by_name(tmp_path, keep_aspect):
    """A view has a limited number of patches, and an image that is cropped is not enlarged without limit."""
    random_image(90_000, 1).save(tmp_path / "narrow.png")
    images = Images([tmp_path / "narrow.png"], 56, 14, keep_aspect, "bicubic", "clip")
    with pytest.raises(ValueError, match=r"narrow.png: .*max_view_patches"):
        images[0]
    random_image(1500, 1).save(tmp_path / "narrow.png")
    started = perf_counter()
    assert images.at_scale(0, 16).shape[1] >= 16 and perf_counter() - started < 5


def test_features_of_tiles_are_those_of_the_parts(folders):
    features = Features(CLIPVisionModel.from_pretrained(folders[0]).eval(), -2)
    pixels = torch.randn(1, 3, 112, 112)
    tiles = features.of_tiles(pixels, 2)
    assert tiles.shape == (1, 16, 8, 8)
    torch.testing.assert_close(tiles[..., 4:, :4], features(pixels[..., 56:, :56]))
    image = false_colors([tiles[0], features(pixels[..., :56, :56])[0]], (20, 30))
    assert image.shape == (3, 20, 60) and 0 <= image.min() and image.max() <= 1


def test_changed_images_are_refused_on_resume(recipe, folders, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(folders[1], images)
    options = recipe(images=str(images), max_steps=3, highest=2)
    train_upsampler(options)
    (tmp_path / "run" / "upsampler.safetensors").unlink()
    next(images.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match=r"data changed since the run in .*12 samples \(sha256 \w{12}\) then"):
        train_upsampler(options)
