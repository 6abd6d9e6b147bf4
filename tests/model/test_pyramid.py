"""The pyramid against the published up-sampler."""

import pytest
import torch
from torch.nn import functional as F

from llava_uhd.model.pyramid import (
    BilinearPyramid,
    JBUPyramid,
    build_pyramid,
    similarities_by_rows,
    similarities_by_shifts,
)
from tests.golden import load, relative_error, under

STACKS = {"jbu2x": [1, 2], "jbu4x": [1, 2, 4], "jbu8x": [1, 2, 4, 8]}


@pytest.fixture(scope="module")
def golden():
    return load("jbu.npz")


def build(golden, name: str, levels: list[int] | None = None) -> JBUPyramid:
    pyramid = JBUPyramid(16, levels or STACKS[name]).eval()
    pyramid.load_state_dict(under(f"{name}.w.", golden))
    return pyramid


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("case", [0, 1])
def test_levels(golden, name, case):
    pyramid = build(golden, name)
    with torch.no_grad():
        maps = pyramid(golden[f"src_{case}"], golden[f"img_{case}"].float())
    compared = 0
    for level, actual in zip(STACKS[name], maps, strict=True):
        for kind in ("internal", "stageloss"):
            expected = golden.get(f"{name}.{kind}.feat{level}x_{case}")
            if expected is not None:
                assert relative_error(actual[: len(expected)], expected) < 1e-5
                compared += 1
    assert compared >= 1


def test_kernels(golden):
    up = build(golden, "jbu4x").up1
    guidance = F.adaptive_avg_pool2d(golden["img_0"].float(), (10, 8))
    with torch.no_grad():
        assert relative_error(guidance, golden["jbu4x.up1.guidance"]) < 1e-6
        assert relative_error(up.range_kernel(guidance), golden["jbu4x.up1.range_kernel"]) < 1e-5
        assert relative_error(up.spatial_kernel(), golden["jbu4x.up1.spatial_kernel"]) < 1e-5
        assert relative_error(up(guidance), golden["jbu4x.up1.combined_kernel"]) < 1e-5


def test_levels_left_out_change_nothing(golden):
    source, image = golden["src_1"], golden["img_1"].float()
    with torch.no_grad():
        whole = build(golden, "jbu4x")(source, image)
        without = build(golden, "jbu4x", [1, 4])(source, image)
    assert torch.equal(without[1], whole[2]) and torch.equal(without[0], source)


def test_bilinear_and_level_one():
    features, pixels = torch.randn(1, 4, 3, 5), torch.randn(1, 3, 42, 70)
    maps = BilinearPyramid([1, 2, 8])(features, pixels)
    assert [tuple(map_.shape[-2:]) for map_ in maps] == [(3, 5), (6, 10), (24, 40)]
    torch.testing.assert_close(maps[1], F.interpolate(features, scale_factor=2, mode="bilinear"))
    assert list(build_pyramid("jbu", 4, [1]).parameters()) == []
    assert list(build_pyramid("jbu", 4, [1, 8]).parameters()) != []


@pytest.mark.parametrize("shape", [(9, 12), (2, 3), (1, 5)])
def test_similarities_by_rows_and_by_shifts_are_the_same(shape):
    keys = torch.randn(2, 4, *shape)
    by_rows = similarities_by_rows(keys)
    assert by_rows.shape == (2, 49, *shape)
    torch.testing.assert_close(by_rows, similarities_by_shifts(keys))
