"""The one count of operations, against those that PyTorch counts while the model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_uhd.flops import folding_in_training, fused_projector, sample_flops, training_flops
from llava_uhd.training.parts import train_only
from tests.conftest import build_model, small_config

SHAPE, LENGTH = (12, 12), 24


def config_of(**projector):
    config = small_config(**projector)
    config.vision_config.image_size = 168
    return config


def inputs(config, views=2):
    tokens = config.projector.query_grid**2
    ids = torch.tensor([[5] + [423] * tokens + [7] * LENGTH] * views)
    return {
        "input_ids": ids,
        "labels": ids.clamp(max=400),
        "pixel_values": torch.randn(views * SHAPE[0] * SHAPE[1], 588),
        "view_shapes": torch.tensor([SHAPE] * views),
        "num_views": torch.tensor([1] * views),
        "grids": torch.zeros(views, 2).long(),
    }


@pytest.mark.parametrize("projector", [{"levels": [1, 2, 4]}, {"type": "resampler"}], ids=["hiwin", "resampler"])
@pytest.mark.parametrize("trained", [["projector"], ["language_model", "projector", "vision_tower"]], ids=["1", "2"])
def test_the_meter_counts_what_pytorch_counts(projector, trained):
    """One forward and one backward pass of the whole model; recomputation in the backward pass is no progress."""
    config = config_of(**projector)
    model = build_model(config).train()
    model.set_attn_implementation("eager")  # PyTorch does not count the fused attention of a CPU
    train_only(model, config, trained)
    batch = inputs(config)
    with FlopCounterMode(display=False) as forward:
        loss = model(**batch).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counted = forward.get_total_flops() + backward.get_total_flops()
    length = batch["input_ids"].shape[1]
    sample = sample_flops(config, [SHAPE], length, length)
    expected = 2 * training_flops(sample, trained) + folding_in_training(config, trained)
    # The fused path computes more again in its backward pass the less of the model is trained.
    most = 1.6 if config.projector.type == "hiwin" and trained == ["projector"] else 1.1
    assert 0.9 * expected < counted < most * expected


def test_the_fused_path_takes_a_fraction_of_the_formula(golden_model):
    from llava_uhd.training.assembly import planned_config
    from llava_uhd.training.recipe import load_recipe

    config = planned_config(load_recipe("vicuna-7b-align").model)
    assert 65e9 < fused_projector(config, (24, 24)).total < 90e9
