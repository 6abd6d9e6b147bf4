"""Up-samplers other than JBU: registered ones, deconvolution, and the errors of names that are unknown."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_uhd import LlavaUhdForConditionalGeneration, register_upsampler
from llava_uhd.model import upsampler_registry
from llava_uhd.model.assembly import initialize
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from llava_uhd.model.folded_weights import reason_not_to_fuse
from llava_uhd.model.hiwin import HiWinProjector
from llava_uhd.model.pyramid import build_pyramid
from llava_uhd.training.parts import parts_of, train_only
from tests.conftest import small_config

ROOT = Path(__file__).parents[2]


class Sharpen(nn.Module):
    """Bilinear map times learned gains, plus brightness; the tables are what a pretrained up-sampler would load."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.arange(1.0, channels + 1))
        self.linear = nn.Linear(1, channels)
        nn.init.constant_(self.linear.weight, 0.25)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("saved", torch.full((channels,), 3.0))
        self.register_buffer("computed", torch.full((channels,), 5.0), persistent=False)

    def forward(self, features, pixels, size):
        bright = F.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), size).permute(0, 2, 3, 1)
        enlarged = F.interpolate(features, size=size, mode="bilinear")
        added = self.linear(bright).permute(0, 3, 1, 2)
        return enlarged * self.gain[:, None, None] + added + (self.saved + self.computed)[:, None, None]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(upsampler_registry, "_REGISTERED", {})
    register_upsampler("sharpen", Sharpen)


def view(channels: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, channels, 6, 4), torch.randn(2, 3, 84, 56)


def test_registered_upsampler_makes_every_level(registered):
    features, pixels = view()
    maps = build_pyramid("sharpen", 16, [1, 2, 8])(features, pixels)
    assert torch.equal(maps[0], features)
    assert torch.equal(maps[2], Sharpen(16)(features, pixels, (48, 32)))


def test_projector_computes_a_registered_upsampler_by_the_formula(registered):
    config = LlavaUhdProjectorConfig(levels=[1, 2], upsampler="sharpen", query_grid=3, num_attention_heads=2)
    projector = HiWinProjector(config, 16, 32)
    assert "not known to be linear" in reason_not_to_fuse(projector)
    features, pixels = view()
    tokens = projector(features, pixels)
    assert not torch.allclose(tokens, projector(features, pixels + 1))
    tokens.sum().backward()
    assert projector.upsampler.module.gain.grad.abs().max() > 0


def test_saved_model_holds_the_weights_of_the_upsampler(registered, tmp_path):
    model = LlavaUhdForConditionalGeneration(small_config(levels=[1, 2], upsampler="sharpen"))
    module = model.model.multi_modal_projector.upsampler.module
    # The factory's own values, though the model initializes every linear layer in it.
    assert module.gain[1] == 2 and (module.linear.weight == 0.25).all() and (module.saved == 3).all()
    with torch.no_grad():
        module.gain.fill_(7)
        module.saved.fill_(4)
    model.save_pretrained(tmp_path)
    again = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path).model.multi_modal_projector.upsampler.module
    assert (again.gain == 7).all() and (again.saved == 4).all() and (again.computed == 5).all()
    initialize(model, model.model.multi_modal_projector.upsampler)
    assert module.gain[1] == 2


def test_loading_before_registering_is_one_clear_error(registered, tmp_path, monkeypatch):
    LlavaUhdForConditionalGeneration(small_config(levels=[1, 2], upsampler="sharpen")).save_pretrained(tmp_path)
    monkeypatch.setattr(upsampler_registry, "_REGISTERED", {})
    with pytest.raises(ValueError, match="'sharpen' is not registered: .* before the model is built or loaded"):
        LlavaUhdForConditionalGeneration.from_pretrained(tmp_path)


def test_unknown_name_is_refused_with_the_nearest(registered):
    with pytest.raises(ValueError, match="'sharpem' is not registered: did you mean sharpen"):
        LlavaUhdProjectorConfig(upsampler="sharpem")
    with pytest.raises(ValueError, match="did you mean bilinear"):
        LlavaUhdProjectorConfig(upsampler="bilinaer")


@pytest.mark.parametrize("name, factory", [("jbu", Sharpen), ("", Sharpen), ("mine", 3)])
def test_what_cannot_be_registered(name, factory):
    with pytest.raises(ValueError, match="registered|callable"):
        register_upsampler(name, factory)


def test_map_of_another_shape_is_refused(registered):
    register_upsampler("small", lambda channels: Small())
    features, pixels = view()
    with pytest.raises(ValueError, match=r"'small' returned \(2, 16, 6, 4\), expected \(2, 16, 12, 8\)"):
        build_pyramid("small", 16, [1, 2])(features, pixels)
    register_upsampler("wrong", lambda channels: "a string")
    with pytest.raises(ValueError, match="must return a torch module, got str"):
        build_pyramid("wrong", 16, [1, 2])


class Small(nn.Module):
    def __init__(self, channels: int = 16):
        super().__init__()

    def forward(self, features, pixels, size):
        return features


def test_installed_package_registers_by_entry_point(registered, monkeypatch):
    entry = EntryPoint("installed", "tests.model.test_upsamplers:Small", upsampler_registry.ENTRY_POINTS)
    monkeypatch.setattr(
        upsampler_registry,
        "entry_points",
        lambda group, name="installed": [entry] if (group, name) == (entry.group, entry.name) else [],
    )
    assert type(build_pyramid("installed", 8, [1, 2]).module).__name__ == "Small"


def test_deconvolution_begins_as_nearest_and_learns_with_the_projector():
    config = small_config(levels=[1, 2, 4], upsampler="deconvolution")
    model = LlavaUhdForConditionalGeneration(config)
    pyramid = model.model.multi_modal_projector.upsampler
    features, pixels = view(config.vision_config.hidden_size)
    for level, map_ in zip([1, 2, 4], pyramid(features, pixels), strict=True):
        assert torch.allclose(map_, F.interpolate(features, scale_factor=level, mode="nearest"))
    assert "upsampler" not in parts_of(model, config)
    train_only(model, config, ["projector"])
    assert all(parameter.requires_grad for parameter in pyramid.parameters())
    with torch.no_grad():
        pyramid.steps[1].bias.add_(1)
    assert torch.allclose(pyramid(features, pixels)[2], F.interpolate(features, scale_factor=4) + 1)


class PublishedAnyUp(nn.Module):
    """The published module's signature: image, features, keyword `output_size`; it returns the image in color 0."""

    def forward(self, hr_image, lr_features, output_size=None):
        assert hr_image.shape[1] == 3
        image = F.interpolate(hr_image[:, :1], size=output_size)
        return image.expand(-1, lr_features.shape[1], -1, -1)


def test_other_modules_of_the_example_make_pyramids(registered, monkeypatch, tmp_path):
    """The wrapper around a pretrained up-sampler, and stages of a convolutional tower."""
    from transformers import ConvNextConfig, ConvNextModel

    from examples.own_upsampler import AnyUp, ConvStages

    monkeypatch.setattr(torch.hub, "load", lambda repository, name, verbose: PublishedAnyUp())
    features = torch.randn(2, 16, 6, 4)
    white = (1 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)  # as CLIP's processor normalizes it
    register_upsampler("anyup", AnyUp)
    maps = build_pyramid("anyup", 16, [1, 2])(features, white[:, None, None].expand(2, 3, 84, 56))
    assert maps[1].shape == (2, 16, 12, 8)
    assert torch.allclose(maps[1], torch.tensor((1 - IMAGENET_DEFAULT_MEAN[0]) / IMAGENET_DEFAULT_STD[0]))

    ConvNextModel(ConvNextConfig(hidden_sizes=[4, 8, 12, 16], depths=[1] * 4)).save_pretrained(tmp_path)
    register_upsampler("convnext", lambda channels: ConvStages(channels, str(tmp_path)))
    config = LlavaUhdProjectorConfig(levels=[1, 2], upsampler="convnext", query_grid=3, num_attention_heads=2)
    projector = HiWinProjector(config, 16, 32)
    pixels = torch.randn(2, 3, 96, 64)
    tokens = projector(features, pixels)
    assert tokens.shape == (2, 9, 32) and not torch.allclose(tokens, projector(features, pixels.flip(-1)))
    tokens.sum().backward()
    stages = projector.upsampler.module
    # 12 x 8 is the size of the stage of stride 8; the tower itself is frozen.
    assert [module.weight.grad is not None for module in stages.project] == [False, True, False, False]
    assert not any(parameter.requires_grad for parameter in stages.tower.parameters())


def test_example_runs():
    command = [sys.executable, "examples/own_upsampler.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "16 tokens of a view; after loading the same" in run.stdout
