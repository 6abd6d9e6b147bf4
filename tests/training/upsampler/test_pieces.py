"""The pieces of stage 0 against values of the reference implementation."""

import random

import pytest
import torch

from llava_uhd.model.pyramid import JBUPyramid
from llava_uhd.training.upsampler.jitter import Move, draw_move, move
from llava_uhd.training.upsampler.losses import crf_loss, reconstruction_loss, total_variation
from llava_uhd.training.upsampler.reconstruction import AttentionDownsampler, ScaleNet, gaussian_blur
from llava_uhd.training.upsampler.training import stage_maps
from tests.golden import load, relative_error, under

GOLDEN = load("stage0.npz")


def test_blur():
    assert relative_error(gaussian_blur(GOLDEN["down.hr"]), GOLDEN["down.blur"]) < 1e-5


def test_attention_downsampler():
    golden = under("down.", GOLDEN)
    downsampler = AttentionDownsampler(8, 4).eval()
    downsampler.load_state_dict(
        {
            "weight": golden["w.w"],
            "bias": golden["w.b"],
            "attention.1.weight": golden["w.attention_net.1.weight"],
            "attention.1.bias": golden["w.attention_net.1.bias"],
        }
    )
    hr = golden["hr"].clone().requires_grad_()
    out = downsampler(hr, (6, 6), golden["rand"])
    assert relative_error(out, golden["out"]) < 1e-5
    out.square().sum().backward()
    assert relative_error(hr.grad[:, :2], golden["grad_hr_of_sumsq"]) < 1e-5
    assert relative_error(downsampler.weight.grad, golden["grad_w"]) < 1e-5


def test_scale_net_and_reconstruction_loss():
    golden = under("scale.", GOLDEN)
    net = ScaleNet(8)
    net.load_state_dict({"conv.weight": golden["weight"], "conv.bias": golden["bias"]})
    scales = net(golden["lr_feats"])
    assert relative_error(scales, golden["scales"]) < 1e-5
    loss = reconstruction_loss(GOLDEN["down.out"], golden["lr_feats"], scales, golden["proj"]) / 2
    assert relative_error(loss[None], golden["rec_loss_njit2"]) < 1e-5


def test_crf():
    golden = under("crf.", GOLDEN)
    features = golden["features"].clone().requires_grad_()
    loss = crf_loss(golden["guidance"], features, golden["coords"])
    assert relative_error(loss[None], golden["loss"]) < 1e-5
    loss.backward()
    assert relative_error(features.grad[:, 0], golden["grad_features_ch0"]) < 1e-5


def test_total_variation():
    assert relative_error(total_variation(GOLDEN["tv.in"])[None], GOLDEN["tv.loss"]) < 1e-5


@pytest.mark.parametrize("number", range(4))
def test_moves(number):
    zoom, top, left, flip = GOLDEN[f"jit.params_{number}"].tolist()
    moved = move(GOLDEN["jit.img"], Move(zoom, int(top), int(left), bool(flip)), max_pad=5)
    assert relative_error(moved, GOLDEN[f"jit.out_{number}"]) < 1e-5


def test_drawn_moves_stay_within_the_picture():
    rng = random.Random(0)
    image = torch.zeros(1, 1, 37, 52)
    moves = [draw_move((37, 52), 9, 2.0, rng) for _ in range(300)]
    assert all(move(image, by, 9).shape == image.shape for by in moves)
    assert len({by.flip for by in moves}) == 2 and min(by.zoom for by in moves) == 1.0 < max(by.zoom for by in moves)
    with pytest.raises(ValueError, match="max_pad 37"):
        move(image, moves[0], 37)


def test_stage_maps_and_their_gradients():
    """Each level learns for itself: the map below it is taken as given."""
    golden = under("stage.", GOLDEN)
    pyramid = JBUPyramid(8, [1, 2, 4]).eval()
    pyramid.load_state_dict(under("w.", golden))
    two, four = stage_maps(pyramid, golden["lr"], golden["img"])
    assert relative_error(two, golden["feat2x"]) < 1e-5 and relative_error(four, golden["feat4x"]) < 1e-5
    (two.square().mean() + four.square().mean()).backward()
    parameters = dict(pyramid.named_parameters())
    for name, expected in under("grad.", golden).items():
        # The golden's first level is guided by nothing (a gradient of 0): only rounding is left of some.
        error = (parameters[name].grad - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max() + 1e-7, name
