"""The HiWin projector against the published one, at every mask it knows."""

from collections.abc import Callable
from operator import call

import pytest
import torch

from llava_uhd import LlavaUhdConfig
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from llava_uhd.model.hiwin import HiWinProjector
from tests.golden import hiwin_state, load, relative_error, under

SHAPES = [(9, 13), (9, 13), (12, 10), (8, 15), (8, 15), (8, 15), (15, 8)]
NUM_VIEWS = [3, 1, 3]
MASKS = {"mask7": [1, 2, 4], "mask5": [1, 4], "mask3": [1, 2], "mask15": [1, 2, 4, 8]}


@pytest.fixture(scope="module")
def golden():
    return load("hiwin.npz")


def build(golden, mask: str, box_dtype: str = "float32") -> HiWinProjector:
    levels = MASKS[mask]
    upsampler = under(f"{'mask7' if mask == 'mask5' else mask}.w.upsampler.upsampler.", golden)
    state = hiwin_state(under("w.", golden), levels) | {f"upsampler.{key}": value for key, value in upsampler.items()}
    config = LlavaUhdProjectorConfig(levels=levels, num_attention_heads=2, box_dtype=box_dtype)
    projector = HiWinProjector(config, 16, 64).eval()
    projector.load_state_dict(state)
    return projector


def project(
    golden, projector: HiWinProjector, dtype: torch.dtype = torch.float32, through: Callable[..., torch.Tensor] = call
) -> list[torch.Tensor]:
    """The tokens of the golden's three images, view by view."""
    tokens = []
    for view, (height, width) in enumerate(SHAPES):
        features = golden["features"][view, : height * width].T.reshape(1, 16, height, width)
        with torch.no_grad():
            image = golden[f"image_{view}"][None].to(dtype)
            tokens.append(through(projector, features.to(dtype), image)[0].float())
    return [torch.stack(of_image) for of_image in (tokens[:3], tokens[3:4], tokens[4:])]


@pytest.mark.parametrize("mask", MASKS)
def test_masks(golden, mask):
    for image, tokens in enumerate(project(golden, build(golden, mask))):
        assert relative_error(tokens[:, :: 1 if mask == "mask7" else 3], golden[f"{mask}.out_image{image}"]) < 1e-5


def test_rounded_boxes(golden):
    for image, tokens in enumerate(project(golden, build(golden, "mask7", "bfloat16"))):
        assert relative_error(tokens[:, ::6], golden[f"mask7.bf16boxes.out_image{image}"]) < 1e-5


def test_bf16(golden):
    expected = load("hiwin_bf16.npz")
    for image, tokens in enumerate(project(golden, build(golden, "mask7", "bfloat16").bfloat16(), torch.bfloat16)):
        reference = expected[f"mask7.out_image{image}"]
        assert (tokens[:, ::3] - reference).std() < 0.05 * reference.std()


def test_views_together_equal_views_alone(golden):
    projector = build(golden, "mask7")
    features = torch.stack([golden["features"][view, :120].T.reshape(16, 8, 15) for view in (3, 4, 5)])
    images = torch.stack([golden[f"image_{view}"].float() for view in (3, 4, 5)])
    with torch.no_grad():
        together = projector(features, images)
        alone = torch.cat([projector(features[view : view + 1], images[view : view + 1]) for view in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_published_sizes():
    """The defaults are the published v2: 32 heads of 128 channels, 168 M parameters without the dead ones."""
    with torch.device("meta"):
        projector = HiWinProjector(LlavaUhdConfig().projector, 1024, 4096)
    assert projector.attention.num_heads == 32
    assert round(sum(parameter.numel() for parameter in projector.parameters()) / 1e6) == 168
