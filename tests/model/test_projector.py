"""The v1 resampler against the published one, and the shapes of the plain baseline."""

import pytest
import torch

from llava_uhd.model.attention import resize_positions, sincos_position_embedding
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from llava_uhd.model.hiwin import HiWinProjector
from llava_uhd.model.projector import SpatiallyConstrainedResampler, UnshuffleMLP
from tests.golden import load, relative_error, resampler_state, under

SHAPES = [(24, 24), (19, 29), (9, 40)]


def build(box_dtype: str) -> SpatiallyConstrainedResampler:
    config = LlavaUhdProjectorConfig(type="resampler", num_attention_heads=2, box_dtype=box_dtype)
    resampler = SpatiallyConstrainedResampler(config, 16, 64).eval()
    resampler.load_state_dict(resampler_state(under("w.", load("v1.npz"))))
    return resampler


def resample(box_dtype: str, case: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    features = load("v1.npz")[f"x_{case}"].transpose(1, 2).unflatten(2, SHAPES[case]).to(dtype)
    with torch.no_grad():
        return build(box_dtype).to(dtype)(features, features[:, :3]).float()


@pytest.mark.parametrize("case", range(3))
def test_tokens(case):
    golden = load("v1.npz")
    assert relative_error(resample("float32", case)[:, ::2], golden[f"out_{case}"]) < 1e-5
    assert relative_error(resample("bfloat16", case)[:, ::6], golden[f"out_bf16boxes_{case}"]) < 1e-5


@pytest.mark.parametrize("case", range(3))
def test_bf16(case):
    expected = load("v1_bf16.npz")[f"out_{case}"]
    assert (resample("bfloat16", case, torch.bfloat16)[:, ::2] - expected).std() < 0.05 * expected.std()


def test_positions():
    golden = load("v1.npz")
    assert relative_error(sincos_position_embedding(64, 12), golden["sincos_64_12"]) < 1e-6
    assert relative_error(sincos_position_embedding(16, 5), golden["sincos_16_5"]) < 1e-6
    resized = resize_positions(golden["w.pos_embed"], (19, 29)).flatten(0, 2)
    assert relative_error(resized[:, ::4], golden["pos_embed_resized_1"]) < 1e-5


def test_equal_widths_need_no_projection():
    config = LlavaUhdProjectorConfig(type="resampler", num_attention_heads=2)
    resampler = SpatiallyConstrainedResampler(config, 64, 64)
    assert not any("kv_proj" in name for name, _ in resampler.named_parameters())


@pytest.mark.parametrize("shape, tokens", [((24, 24), 144), ((5, 7), 12), ((1, 3), 2)])
def test_unshuffle_completes_odd_sides(shape, tokens):
    mlp = UnshuffleMLP(LlavaUhdProjectorConfig(type="mlp"), 8, 16)
    out = mlp(torch.randn(2, 8, *shape), torch.empty(0))
    assert out.shape == (2, tokens, 16)


def test_features_of_one_group_with_pixels_of_several_are_refused():
    projector = UnshuffleMLP(LlavaUhdProjectorConfig(type="mlp"), 4, 8)
    features, pixels = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 28, 28)
    with pytest.raises(ValueError, match="pixels of 2 groups"):
        projector(features, [pixels, pixels])
    with pytest.raises(ValueError, match="features of 2 groups"):
        projector([features, features], pixels)


def test_pixels_are_needed_where_they_guide_alone():
    features = torch.randn(2, 4, 4, 4)
    resampler = SpatiallyConstrainedResampler(LlavaUhdProjectorConfig(type="resampler", num_attention_heads=2), 4, 16)
    plain = LlavaUhdProjectorConfig(levels=[1, 2], upsampler="bilinear", query_grid=2, num_attention_heads=2)
    guided = LlavaUhdProjectorConfig(levels=[1, 2], upsampler="jbu", query_grid=2, num_attention_heads=2)
    for projector in (resampler, HiWinProjector(plain, 4, 16)):
        tokens = projector.eval()(features, None)
        assert torch.equal(tokens, projector(features, torch.randn(2, 3, 8, 8)))
        assert torch.equal(projector([features], [None])[0], tokens)
    for mode in (True, False):
        with pytest.raises(ValueError, match=r"guided by the pixels of the views, got none: \(2, 3, 0, 0\)"):
            HiWinProjector(guided, 4, 16).train(mode)(features, None)
