"""Quality of up-sampled maps: what each measure sees and what it is blind to, and the command."""

import json

import pytest
import torch
from safetensors.torch import save_file

from llava_uhd.model.pyramid import JBUPyramid
from llava_uhd.training.upsampler.quality import BASELINES, Moments, measure
from tests.conftest import random_image

CPU = torch.device("cpu")


class Looks:
    """A tower whose map of an image is its pixels pooled by 4, and whose closer look is that of the large image."""

    def __call__(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 4)

    def of_tiles(self, pixels, tiles):
        return self(pixels)


class Noise:
    """Images of correlated noise with a large common offset; a large one shows the same at twice the size."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(count, 6, 16, 16, generator=generator) * torch.tensor([1, 2, 3, 1, 2, 3])[:, None, None]
        self.large = 5 + torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic")

    def __len__(self):
        return len(self.large)

    def __getitem__(self, index):
        return torch.nn.functional.avg_pool2d(self.large[index], 2)

    def at_scale(self, index, scale):
        return self.large[index] if scale == 2 else self[index]


def test_measures_of_maps_whose_quality_is_known():
    images, looks = Noise(6), Looks()
    closer = {tuple(images[i].shape) + (images[i].sum().item(),): looks(images.large[i][None]) for i in range(6)}

    def exact(features, pixels, size):
        return closer[tuple(pixels[0].shape) + (pixels[0].sum().item(),)]

    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    candidates = {
        "exact": exact,
        "scaled": lambda *call: 3 * exact(*call) + 7,
        "mixed": lambda *call: torch.einsum("nchw,cd->ndhw", exact(*call), mixing) - 2,
    }
    found = measure(candidates, looks, images, [2], CPU)["2x"]
    assert set(found) == {*BASELINES, *candidates, "constant"}
    assert found["exact"]["nmse"] == pytest.approx(0, abs=1e-6)
    assert found["exact"]["centered_cosine"] == pytest.approx(1) == found["scaled"]["centered_cosine"]
    assert found["scaled"]["nmse"] > 3
    # The penalty leaves something unexplained; a constant explains nothing.
    assert found["exact"]["ridge_r2"] > 0.85 and found["mixed"]["ridge_r2"] > 0.5
    constant = found["constant"]
    assert constant["nmse"] == pytest.approx(1) and constant["centered_cosine"] == pytest.approx(0, abs=1e-3)
    assert abs(constant["ridge_r2"]) < 0.05
    # What raw cosine rewards: the constant, which no other measure does.
    assert constant["cosine"] > 0.9
    assert found["bilinear"]["nmse"] < 1 and found["bilinear"]["centered_cosine"] > 0.5


def test_ridge_readout_is_the_penalized_least_squares_solution():
    torch.manual_seed(0)
    x, y = torch.randn(50, 4) + 2, torch.randn(50, 4) - 1
    moments = Moments(4, CPU)
    for rows in (slice(0, 20), slice(20, 50)):
        moments.add(x[rows], y[rows])
    readout = moments.ridge()
    with_bias = torch.cat([x, torch.ones(50, 1)], dim=1).double()
    assert moments.squared_error(readout).item() == pytest.approx((with_bias @ readout - y).square().sum().item())
    assert moments.variance.item() == pytest.approx((y - y.mean(dim=0)).square().sum().item(), rel=1e-6)
    # The bias is free: what is left has no mean.
    assert (with_bias @ readout - y).mean(dim=0).abs().max() < 1e-9


def test_an_up_sampler_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"gave \(1, 6, 8, 8\), expected \(1, 6, 16, 16\)"):
        measure({"same": lambda features, pixels, size: features}, Looks(), Noise(2), [2], CPU)


def double_the_map():
    """A user's up-sampler."""
    return BASELINES["nearest"]


class Enlarge(torch.nn.Module):
    """A user's up-sampler as it is registered: the channels are given, and dropout must be off."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels, self.dropout = channels, torch.nn.Dropout(0.5)

    def forward(self, features, pixels, size):
        assert features.shape[1] == self.channels
        return self.dropout(BASELINES["bilinear"](features, pixels, size))


def test_the_command(run, tmp_path):
    for index in range(2):
        random_image(120, 120, seed=index).save(tmp_path / f"{index}.png")
    command = ("upsampler", "quality", "--images", tmp_path)
    code, table, err = run(*command)
    assert code == 0, err
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "2x nearest",
        "2x bilinear",
        "2x bicubic",
        "2x jbu",
        "2x constant",
    ]
    torch.manual_seed(0)
    save_file(JBUPyramid(160, [1, 2]).state_dict(), tmp_path / "upsampler.safetensors")
    named = ("--upsampler", f"fresh={tmp_path}", "--upsampler", f"mine={__name__}:double_the_map")
    found = json.loads(run(*command, *named, "--json")[1])
    assert found["pictures"] == 2  # former name, kept for readers of the JSON
    assert found["quality"]["2x"]["mine"] == found["quality"]["2x"]["nearest"]
    others = (
        "--upsampler",
        "shipped=tiny",
        "--upsampler",
        "new=untrained",
        "--upsampler",
        f"module={__name__}:Enlarge",
    )
    found["quality"]["2x"] |= json.loads(run(*command, *others, "--json")[1])["quality"]["2x"]
    assert f"| 2x jbu | {found['quality']['2x']['shipped']['cosine']:.3f} |" in table
    assert found["quality"]["2x"]["module"] == found["quality"]["2x"]["bilinear"]
    assert found["quality"]["2x"]["new"] != found["quality"]["2x"]["module"]
    assert found["quality"]["2x"]["fresh"]["nmse"] != found["quality"]["2x"]["bicubic"]["nmse"]
    for arguments, code, message in [
        (("--level", "4"), 1, "has levels [1, 2], not [4]"),
        (("--level", "3"), 2, "levels are 2, 4 and 8"),
        (("--upsampler", "mine"), 2, "expected name=PATH"),
        (("--upsampler", "mine=nowhere:build"), 1, "nowhere:build cannot be imported"),
        (("--upsampler", f"fresh={tmp_path}", "--level", "4"), 1, "up-samples by 2 at most"),
    ]:
        found_code, _, err = run(*command, *arguments)
        assert found_code == code and message in " ".join(err.replace("│", " ").split()), err
