"""The counted operations against those that PyTorch counts, and against the published sizes' figures."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_uhd import flops
from llava_uhd.benchmark.compare import Setting, hiwin_of, random_views
from llava_uhd.benchmark.reference import tokens
from llava_uhd.benchmark.sizes import Sizes, build

SMALL = Sizes(
    hidden=256, heads=4, vision_hidden=64, vision_layers=3, vision_intermediate=128, vision_heads=4, view_size=168
)


@pytest.mark.parametrize("levels", [(1, 2, 4), (1, 4), (1,)])
def test_counts_are_those_of_the_matrix_products(levels):
    sizes = Sizes(**{**vars(SMALL), "levels": levels, "upsampler": "none" if levels == (1,) else "jbu"})
    projector = hiwin_of(build(sizes, torch.device("cpu"), torch.float32)).requires_grad_(False)
    features, pixels = random_views(sizes, 2, Setting(torch.device("cpu"), torch.float32, 1, 1.0))
    with torch.no_grad():
        projector(features, pixels)
        counted = {}
        for name, run in (
            ("plain", lambda: tokens(projector, features, pixels)),
            ("fused", lambda: projector(features, pixels)),
        ):
            with FlopCounterMode(display=False) as counter:
                run()
            counted[name] = counter.get_total_flops()
    config = sizes.config()
    fused, plain = flops.fused_projector(config, sizes.grid), flops.reference_projector(config, sizes.grid)
    # Shifts and similarities are no matrix products, and PyTorch counts none; the tiles' matrices are not calculated.
    assert counted["fused"] == pytest.approx(2 * (fused.total - fused.jbu_kernels), rel=0.15)
    assert counted["plain"] == pytest.approx(2 * (plain.total - plain.jbu_kernels - plain.up_sampling), rel=0.15)


def test_published_sizes():
    config = Sizes().config()
    plain, fused = flops.reference_projector(config, (24, 24)), flops.fused_projector(config, (24, 24))
    encoder = flops.tower_flops(config, (24, 24), 24)
    assert plain.projections == pytest.approx(101e9, rel=0.01) and plain.attention + plain.output > 1080e9
    assert encoder == pytest.approx(382e9, rel=0.03)
    assert fused.total < encoder / 4
    assert 65e9 < fused.total < 90e9
    used = flops.tower_flops(config, (24, 24), 23)
    assert flops.vision_flops(config, [(24, 24)] * 2) == 2 * (used + fused.total)
    assert flops.vision_flops(config, [(24, 24)], reference=True) == encoder + plain.total
