"""Probes of the pyramid's levels: features, labels, fits, and activation against autograd."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from llava_uhd import LlavaUhdProcessor
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.inspection import linear_probe, probe_data
from llava_uhd.inspection.activation import Activation, LevelActivation, activation_figure, level_activation
from llava_uhd.inspection.figure import view_pyramid
from llava_uhd.inspection.linear_probe import (
    Sample,
    fit_probe,
    level_features,
    probe_levels,
    probe_table,
    sample_points,
)
from llava_uhd.loading import load
from llava_uhd.synthetic import make_document
from tests.conftest import build_model, random_image, small_config

IMAGE = random_image(300, 200)


@pytest.fixture(scope="module")
def small(qwen_tokenizer):
    """A model of three levels."""
    config = small_config(layout="stitched", levels=[1, 2, 4])
    return build_model(config, seed=4), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


def test_points_are_sampled_where_they_lie():
    map_ = torch.arange(12.0).view(1, 3, 4)  # C, H, W
    centers = np.array([[(column + 0.5) / 4, (row + 0.5) / 3] for row in range(3) for column in range(4)])
    assert torch.allclose(sample_points(map_, centers).flatten(), torch.arange(12.0), atol=1e-5)
    assert sample_points(map_, np.array([[0.25, 1 / 6]])).item() == pytest.approx(0.5)


def test_features_of_a_level_are_the_pyramids(small):
    points = np.array([[0.2, 0.7], [0.9, 0.1]])
    found = level_features(*small, Sample(IMAGE, points, np.array([0, 1])))
    maps = view_pyramid(*small, IMAGE, max_slices=1)
    assert list(found) == [1, 2, 4]
    for level, actual in found.items():
        assert torch.equal(actual, sample_points(maps[level], points))
    whole = level_features(*small, Sample(IMAGE, None, np.array([0])))
    assert whole[2].shape == (1, 2 * maps[2].shape[0])
    assert torch.allclose(whole[2][0, : maps[2].shape[0]], maps[2].mean(dim=(1, 2)))


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 8, generator=generator) * 5 + 3
    directions = torch.randn(8, 4, generator=generator)
    labels = ((features - 3) @ directions).argmax(dim=1)
    probe = fit_probe(features[:400], labels[:400], 4)
    assert (probe.predict(features[400:]) == labels[400:]).float().mean() > 0.9
    shuffled = labels[torch.randperm(600, generator=generator)]
    noise = fit_probe(features[:400], shuffled[:400], 4)
    assert (noise.predict(features[400:]) == shuffled[400:]).float().mean() < 0.5
    assert torch.equal(fit_probe(features[:400], labels[:400], 4).weights, probe.weights)


def test_levels_are_ranked_by_what_their_features_say(small, monkeypatch):
    """Features of 2x hold the label, those of the other levels do not."""

    def features(model, processor, sample):
        labels = torch.from_numpy(sample.labels).float()[:, None]
        noise = torch.from_numpy(np.random.default_rng(int(sample.image)).normal(size=(len(labels), 3))).float()
        return {1: noise, 2: torch.cat([noise, labels], dim=1), 4: noise}

    monkeypatch.setattr(linear_probe, "level_features", features)
    rng = np.random.default_rng(1)
    samples = [Sample(index, np.zeros((20, 2)), rng.integers(0, 2, 20)) for index in range(12)]
    result = probe_levels(*small, "task", [*samples, Sample(0, np.zeros((0, 2)), np.zeros(0, dtype=int))])
    assert (result.images, result.held_out, result.labels, result.classes) == (9, 3, 60, 2)
    one, two, four = result.levels
    assert two.accuracy == 1.0 == two.high and two.difference_low > 0.1 and one.difference == 0
    assert four.accuracy == one.accuracy < 0.8
    assert "| task | 2x | 100.0 [100.0, 100.0] | +" in probe_table([result])
    with pytest.raises(ValueError, match="at least 4"):
        probe_levels(*small, "task", samples[:3])
    with pytest.raises(ValueError, match="only one class"):
        probe_levels(*small, "task", [replace(sample, labels=np.zeros(20, dtype=int)) for sample in samples])


def test_labels_of_rendered_pages():
    first, again = (next(iter(probe_data.character_samples(1, 112))) for _ in range(2))
    assert np.array_equal(first.labels, again.labels) and len(first.labels) > 20
    assert ((first.points >= 0) & (first.points < 1)).all() and ((first.labels > 0) & (first.labels < 95)).all()
    document = make_document("probe:0", 0, num_slices=1)
    document = replace(document, page=replace(document.page, tilt=0.0))
    mask = probe_data.page_mask(document)
    text = document.page.texts[0]
    middle = round(text.baseline - 0.3 * text.size), round(text.x + text.width / 2)
    assert mask.shape == document.page.size[::-1] and mask[middle] == probe_data.TEXT
    sample = next(iter(probe_data.dense_samples(1, points=50)))
    indices = (sample.points * np.array(mask.shape[::-1])).astype(int)
    assert np.array_equal(mask[indices[:, 1], indices[:, 0]], sample.labels) and len(set(sample.labels)) > 1
    kinds = [int(sample.labels[0]) for sample in probe_data.class_samples(30)]
    assert len(set(kinds)) == 4


def test_folders_of_images(tmp_path):
    for name in ("cat/1.png", "cat/deep/2.jpg", "dog/1.png", "dog/2.png"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(40, 30).save(tmp_path / "classes" / name)
    (tmp_path / "classes" / "empty").mkdir()
    labels = [int(sample.labels[0]) for sample in probe_data.folder_class_samples(tmp_path / "classes")]
    assert sorted(labels) == [0, 0, 1, 1]
    assert len(list(probe_data.folder_class_samples(tmp_path / "classes", limit=1))) == 2
    with pytest.raises(ValueError, match="in 1 subfolders"):
        list(probe_data.folder_class_samples(tmp_path / "classes" / "cat"))
    images, masks = tmp_path / "classes" / "dog", tmp_path / "masks"
    masks.mkdir()
    mask = np.full((30, 40), 255, dtype=np.uint8)
    mask[10:20, 5:9] = 7
    for name in ("1.png", "2.png"):
        Image.fromarray(mask).save(masks / name)
    samples = list(probe_data.folder_dense_samples(images, masks))
    assert [set(sample.labels) for sample in samples] == [{7}, {7}] and len(samples[0].labels) == 40
    assert (samples[0].points[:, 0] * 40).min() == 5.5
    Image.fromarray(mask[:-1]).save(masks / "2.png")
    with pytest.raises(ValueError, match=r"shape \(29, 40\)"):
        list(probe_data.folder_dense_samples(images, masks))
    (masks / "2.png").unlink()
    with pytest.raises(ValueError, match="no mask"):
        list(probe_data.folder_dense_samples(images, masks))


@pytest.fixture
def inputs(small):
    return prepare(*small, [question_message([IMAGE], "What is it?")], 8)


class Scaled(torch.nn.Module):
    """An up-sampler whose 2x map is scaled at one position of one view, counted over the groups of views."""

    def __init__(self, upsampler, view, row, column, scale):
        super().__init__()
        self.upsampler, self.place, self.scale, self.seen = upsampler, (row, column), scale, -view

    def forward(self, features, pixels):
        maps = [map_.clone() for map_ in self.upsampler(features, pixels)]
        if 0 <= -self.seen < len(features):
            maps[1][-self.seen, :, self.place[0], self.place[1]] *= self.scale
        self.seen += len(features)
        return maps


def test_activation_is_gradient_times_input():
    """Scale the 2x map of `tiny` where the activation is largest: the logit changes as much as it says."""
    model, processor = load("tiny", "cpu", "float32")
    names = ("pixel_values", "view_shapes", "num_views", "grids")
    inputs = prepare(model, processor, [question_message(["examples/receipt.png"], "What is the total?")], 8)
    answer_ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ].tolist()
    # A difference of logits as small as this one has few digits in float32.
    model, inputs["pixel_values"] = model.double(), inputs["pixel_values"].double()
    levels = level_activation(model, inputs, answer_ids, [1])
    (columns, rows), shapes = inputs["grids"][0].tolist(), inputs["view_shapes"]
    height, width = (2 * side for side in shapes[0].tolist())
    assert levels[1].slices.shape == (rows * height, columns * width)
    assert levels[1].overview.shape == tuple(2 * side for side in shapes[-1].tolist())
    y, x = np.unravel_index(levels[1].slices.argmax(), levels[1].slices.shape)
    view = int(y // height * columns + x // width)
    sequence = torch.cat([inputs["input_ids"], torch.tensor([answer_ids])], dim=1)
    place = torch.tensor([inputs["input_ids"].shape[1]])
    # Groups of views of one shape, one after the other; a view's first patch tells which it is.
    groups = model.model.group_views(len(inputs["pixel_values"]), *(inputs[name] for name in names[1:])).groups
    starts = shapes.prod(dim=1).cumsum(0) - shapes.prod(dim=1)
    in_groups = int((torch.cat([group.patch_indices[:, 0] for group in groups]) == starts[view]).nonzero())
    projector = model.model.multi_modal_projector
    upsampler = projector.upsampler

    @torch.no_grad()
    def logit(scale: float) -> float:
        projector.upsampler = Scaled(upsampler, in_groups, y % height, x % width, scale)
        features = torch.cat(model.get_image_features(**{name: inputs[name] for name in names}).pooler_output)
        outputs = model(input_ids=sequence, image_features=features, use_cache=False, logits_to_keep=place)
        return float(outputs.logits[0, 0, answer_ids[1]])

    slope = (logit(1.02) - logit(0.98)) / 0.04
    assert abs(slope) == pytest.approx(levels[1].slices[y, x], rel=0.05) and abs(slope) > 1e-4


def test_activation_refuses_what_it_cannot_do(small, inputs, qwen_tokenizer):
    with pytest.raises(ValueError, match="has 3 tokens"):
        level_activation(small[0], inputs, [1, 2, 3], [3])
    two = prepare(*small, [question_message([IMAGE, IMAGE], "Same?")], 8)
    with pytest.raises(ValueError, match="one image, got 2"):
        level_activation(small[0], two, [1], [0])


def test_activation_figure_and_shares():
    levels = [LevelActivation(1, np.ones((2, 4)), np.ones((2, 2))), LevelActivation(2, None, np.full((4, 4), 2.25))]
    found = Activation("an answer", None, levels)
    assert found.shares() == {1: pytest.approx(0.25), 2: pytest.approx(0.75)}
    figure = activation_figure(random_image(40, 30), found, "title")
    assert len(figure.axes) == 6


def test_commands(run, tmp_path):
    code, out, err = run("probe", "levels", "--count", "8", "--json")
    assert code == 0, err
    probes = json.loads(out)["probes"]
    assert [probe["task"] for probe in probes] == ["characters", "dense", "classes"]
    assert all([level["level"] for level in probe["levels"]] == [1, 2] for probe in probes)
    characters = probes[0]["levels"][0]
    assert characters["accuracy"] > 2 * probes[0]["majority"]  # the tower of tiny reads
    save = tmp_path / "activation.png"
    code, out, err = run("probe", "activation", "examples/receipt.png", "What is the total?", "--save", save)
    assert code == 0 and "1x" in out and "2x" in out and save.stat().st_size > 10_000, err
    code, _, err = run("probe", "activation", "examples/receipt.png", "What is the total?", "--word", "zebra")
    assert code == 1 and "no word like 'zebra'" in err
    assert run("probe", "levels", "--masks", tmp_path)[0] == 2
    assert run("probe", "levels", "--task", "words")[0] == 2
    assert run("probe", "levels", "--images", tmp_path, "--task", "characters")[0] == 2
    code, _, err = run("probe", "levels", "--images", tmp_path / "gone")
    assert code == 1 and "no folder" in err


def test_softmax_penalty_is_small(small):
    """The penalty keeps weights finite where classes are separable."""
    features = torch.cat([torch.full((20, 1), -1.0), torch.full((20, 1), 1.0)])
    probe = fit_probe(features, torch.tensor([0] * 20 + [1] * 20), 2)
    assert F.cross_entropy(features * probe.weights[0] + probe.weights[1], torch.tensor([0] * 20 + [1] * 20)) < 0.1
    assert probe.weights.abs().max() < 50
