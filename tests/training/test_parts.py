"""Frozen parameters and cost of a sample, at the sizes of the paper."""

import pytest
import torch

from llava_uhd.flops import PartFlops, language_flops, reference_projector, tower_flops, training_flops
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.training.assembly import planned_config
from llava_uhd.training.parts import check_trainable, group_of, parts_of, table, train_only
from llava_uhd.training.plan import accumulation_of, make_plan
from llava_uhd.training.recipe import load_recipe
from tests.conftest import build_model, small_config

SQUARE = (24, 24)


@pytest.fixture(scope="module")
def published_config():
    return planned_config(load_recipe("vicuna-7b-align").model)


def test_parts_of_names():
    config = small_config()
    for name, part in {
        "model.vision_tower.embeddings.class_embedding": "vision_tower",
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight": "vision_tower",
        "model.vision_tower.encoder.layers.2.mlp.fc1.weight": "vision_tower (not run)",
        "model.vision_tower.post_layernorm.weight": "vision_tower (not run)",
        "model.multi_modal_projector.positions": "positions",
        "model.multi_modal_projector.queries": "projector",
        "model.multi_modal_projector.upsampler.up1.fixup_proj.0.weight": "upsampler",
        "model.multi_modal_projector.upsampler.fixup_proj.1.weight": "upsampler_fixup",
        "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.default.weight": "adapters",
        "base_model.model.lm_head.weight": "language_model",
    }.items():
        assert group_of(name, config) == part


def test_parts_that_are_not_run_are_those_without_gradients():
    """If everything is trainable, exactly the `not run` parameters and the fixed positions get no gradient."""
    for levels in ([1, 2], [1, 2, 8]):
        model = build_model(small_config(levels=levels))
        model.requires_grad_(True)
        image = {
            "view_shapes": torch.tensor([[4, 4]]),
            "num_views": torch.tensor([1]),
            "grids": torch.zeros(1, 2).long(),
        }
        ids = torch.tensor([[5] + [423] * 9 + [7, 8]])
        model(input_ids=ids, labels=ids.clamp(max=400), pixel_values=torch.randn(16, 588), **image).loss.backward()
        for name, parameter in model.named_parameters():
            part = group_of(name, model.config)
            assert (parameter.grad is None) == (part.endswith("(not run)") or part == "positions"), name


def test_train_only_and_its_check():
    model = build_model(small_config())
    train_only(model, model.config, ["projector", "upsampler_fixup"])
    rows = table(model, model.config)
    check_trainable(rows, ["projector", "upsampler_fixup"])
    assert sum(row.total for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(AssertionError, match="projector"):
        check_trainable(rows, ["upsampler_fixup"])
    with pytest.raises(AssertionError, match="positions"):
        check_trainable(rows, ["projector", "upsampler_fixup", "positions"])
    with pytest.raises(ValueError, match="no part 'upsampler_fixup'"):
        train_only(build_model(small_config(type="resampler")), small_config(type="resampler"), ["upsampler_fixup"])


def test_plans_of_the_published_stages():
    align, instruct = make_plan(load_recipe("vicuna-7b-align"), 8), make_plan(load_recipe("vicuna-7b-instruct"), 8)
    trained = {row.part: row.trainable for row in align.parts if row.trainable}
    assert set(trained) == {"projector", "positions"} and align.steps == 2181 and align.accumulation == 1
    # About 176 M useful parameters in the published projector, by its description; dead ones are left out here.
    assert 160e6 < sum(trained.values()) < 176e6
    frozen = {row.part for row in instruct.parts if not row.trainable}
    assert frozen == {"vision_tower (not run)", "positions", "upsampler"}
    # Float32 weights, gradients and two moments of 7.2 G parameters lie on every device, or are shared.
    assert instruct.memory_gib["ddp"] > 7.2 * 16 * 1e9 / 2**30 > 60 > instruct.memory_gib["fsdp2"]
    with pytest.raises(ValueError, match="does not divide among 7 devices"):
        accumulation_of(load_recipe("vicuna-7b-align"), 7)


def test_qwen_and_v1_are_planned_too():
    assert {row.part for row in make_plan(load_recipe("v1-instruct"), 8).parts if row.trainable} == {
        "projector",
        "language_model",
    }  # v1's tower is frozen in both stages
    config = planned_config(load_recipe("qwen2-7b-align").model)
    with torch.device("meta"):
        assert "upsampler" in parts_of(LlavaUhdForConditionalGeneration(config), config)


def test_flops_against_published_counts(published_config):
    """The description's counts of a square view: CLIP 382 G through 24 layers (23 are run), JBU 21 G."""
    assert tower_flops(published_config, SQUARE) == pytest.approx(382e9 * 23 / 24, rel=0.01)
    assert reference_projector(published_config, SQUARE).upsampler == pytest.approx(21e9, rel=0.05)
    # Two operations for each of 6.6 G weights and token, head apart.
    assert language_flops(published_config, 1, 0) == pytest.approx(2 * 32 * 202.4e6, rel=0.01)


def test_training_flops_follow_the_gradients():
    forward = PartFlops(vision_tower=1, upsampler=10, projector=100, language_model=1000)
    assert training_flops(forward, ["projector"]) == 1 + 10 + 300 + 2000
    everything = ["vision_tower", "upsampler_fixup", "projector", "language_model"]
    assert training_flops(forward, everything) == 3 * 1111
    assert training_flops(forward, everything, checkpointing=True) == 3 * 1111 + 1001
    assert training_flops(forward, ["adapters"]) == 111 + 2000


def test_former_names_warn():
    from llava_uhd.training import parts, watch
    from llava_uhd.training.upsampler import images, pictures

    with pytest.warns(DeprecationWarning, match="part_of is now llava_uhd.training.parts.group_of"):
        assert parts.part_of is parts.group_of
    with pytest.warns(DeprecationWarning, match="is now llava_uhd.training.watch.ThroughputMeter"):
        assert watch.Meter is watch.ThroughputMeter
    with pytest.warns(DeprecationWarning, match="upsampler.images.Images"):
        assert pictures.Pictures is images.Images
