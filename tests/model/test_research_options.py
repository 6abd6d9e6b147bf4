"""Options for the rows of the papers' tables: each has an effect, counts its tokens right, and survives saving."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration, LlavaUhdProcessor, plan_slices
from llava_uhd.checkpoints.key_mapping import build_key_mapping
from llava_uhd.flops import projector_flops
from llava_uhd.model.attention import resize_positions
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from llava_uhd.model.modeling_llava_uhd import PROJECTORS
from llava_uhd.model.perceiver import PerceiverResampler
from llava_uhd.model.windows import bin_shape
from llava_uhd.model_folder import check_processor
from llava_uhd.planning import ImagePlanner
from tests.conftest import build_model, random_image, small_config
from tests.conversations import qwen_tokenizer

WIDE = (230, 90)
# Option: settings of the projector, settings of the model, image tokens of WIDE at view_size 56 and query grid 3.
OPTIONS = {
    "hiwin": ({}, {}, 63),
    "bin embedding": ({"bin_embedding": True}, {}, 63),
    "aligned windows": ({"aligned_windows": True}, {}, 63),
    "fixed bins": ({"bin_grid": "fixed"}, {}, 63),
    "pyramid bins": ({"bin_grid": "pyramid"}, {}, 63),
    "deconvolution": ({"upsampler": "deconvolution"}, {}, 63),
    "v1": ({"type": "resampler"}, {}, 63),
    "v1, fixed bins": ({"type": "resampler", "bin_grid": "fixed"}, {}, 63),
    "v1 on 2x": ({"type": "resampler", "input_level": 2}, {}, 63),
    "v1 on 2x, bilinear": ({"type": "resampler", "input_level": 2, "upsampler": "bilinear"}, {}, 63),
    "perceiver": ({"type": "perceiver"}, {}, 63),
    "perceiver on 2x": ({"type": "perceiver", "input_level": 2}, {}, 63),
    "mlp": ({"type": "mlp"}, {}, 39),
    "mlp on 2x": ({"type": "mlp", "input_level": 2}, {}, 102),
    "mlp on 2x, as many tokens": ({"type": "mlp", "input_level": 2, "unshuffle_factor": 4}, {}, 39),
    "mlp on 2x, squares of 3": ({"type": "mlp", "input_level": 2, "unshuffle_factor": 3}, {}, 56),
    "no spatial schema": ({"type": "resampler"}, {"layout": "unseparated"}, 63),
    "fixed 2x2": ({"type": "resampler"}, {"slice_grid": [2, 2]}, 45),
    "padding": ({"type": "resampler"}, {"pad_to_square": True}, 63),
    "padding to the grid": ({"type": "resampler"}, {"pad_to_grid": True}, 63),
    "padding and fixed 2x2": ({"type": "resampler"}, {"slice_grid": [2, 2], "pad_to_square": True}, 45),
}
# Each option with the one it differs from in that option alone.
BASES = {name: "v1" if settings[0].get("type") == "resampler" else "hiwin" for name, settings in OPTIONS.items()}
BASES |= {
    "perceiver": "v1",
    "perceiver on 2x": "perceiver",
    "v1 on 2x, bilinear": "v1 on 2x",
    "mlp": "hiwin",
    "mlp on 2x": "mlp",
    "mlp on 2x, as many tokens": "mlp",
    "mlp on 2x, squares of 3": "mlp",
}


def config_of(name: str) -> LlavaUhdConfig:
    projector, options, _ = OPTIONS[name]
    values = small_config(**projector).to_dict()
    return LlavaUhdConfig(**{**values, **options})


def inputs_of(config: LlavaUhdConfig):
    processor = LlavaUhdProcessor.from_config(config, qwen_tokenizer(), chat_template="qwen")
    return processor, processor(images=[random_image(*WIDE)], text="<image>\nwhat?", return_tensors="pt")


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


@pytest.mark.parametrize("name", OPTIONS)
def test_processor_and_model_count_the_same_tokens(name):
    config = config_of(name)
    processor, inputs = inputs_of(config)
    num_tokens = int((inputs.input_ids == config.image_token_id).sum())
    assert num_tokens == OPTIONS[name][2]
    assert num_tokens == processor.image_layout(*WIDE).num_image_tokens
    planner = ImagePlanner.from_processor(processor)
    assert planner.image_layout(*WIDE) == processor.image_layout(*WIDE)
    model = build_model(config)
    images = {key: inputs[key] for key in ("pixel_values", "view_shapes", "num_views", "grids")}
    assert model.get_image_features(**images).pooler_output[0].shape == (num_tokens, 32)
    assert projector_flops(config, (4, 4)).total > 0


@pytest.mark.parametrize("name", [name for name in OPTIONS if BASES[name] != name])
def test_each_option_changes_the_answer(name):
    answers = []
    for option in (BASES[name], name):
        config = config_of(option)
        model = build_model(config)
        # The same numbers for what both have, whatever the option adds.
        generator = torch.Generator()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                generator.manual_seed(sum(map(ord, key)))
                if parameter.ndim > 1 and not key.endswith(("positions", "steps.0.weight")):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        answers.append(logits(model, inputs_of(config)[1]))
    assert (answers[0] - answers[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", OPTIONS)
def test_saved_options_load(name, tmp_path):
    config = config_of(name)
    processor, inputs = inputs_of(config)
    model = build_model(config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path).eval()
    same = LlavaUhdProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), rtol=1e-4, atol=1e-5)
    again_inputs = same(images=[random_image(*WIDE)], text="<image>\nwhat?", return_tensors="pt")
    for key, value in inputs.items():
        assert torch.equal(value, again_inputs[key]), key
    check_processor(same, again.config, str(tmp_path))
    assert ImagePlanner.load(str(tmp_path)).image_layout(*WIDE) == processor.image_layout(*WIDE)


@pytest.mark.parametrize(
    "name, other",
    [
        ("mlp", "mlp on 2x"),
        ("v1", "fixed 2x2"),
        ("v1", "padding"),
        ("v1", "padding to the grid"),
        ("v1", "no spatial schema"),
    ],
)
def test_processor_of_another_option_is_refused(name, other):
    with pytest.raises(ValueError, match="input_level|slice_grid|pad_to_square|pad_to_grid|layout"):
        check_processor(inputs_of(config_of(other))[0], config_of(name), "folder")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("hiwin", "v1", "v1, fixed bins")])
def test_original_layout_has_none_of_them(name):
    with pytest.raises(ValueError, match="original layout has no"):
        build_key_mapping(config_of(name), {})


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"projector": {"input_level": 2}}, "input_level is 2, but projector hiwin"),
        ({"projector": {"type": "mlp", "input_level": 3}}, r"one of \[1, 2, 4, 8\], got 3"),
        ({"projector": {"type": "resampler", "input_level": 2, "upsampler": "none", "levels": [1]}}, "no level above"),
        ({"slice_grid": [2]}, r"slice_grid must be \[columns, rows\]"),
        ({"slice_grid": [1, 1]}, "2 to max_slices = 7"),
        ({"slice_grid": [3, 3]}, r"2 to max_slices = 7 slices, got \[3, 3\]"),
        ({"slice_grid": "2x2"}, "got '2x2'"),
        ({"pad_to_square": "yes"}, "pad_to_square|expected bool"),
        ({"pad_to_grid": "yes"}, "pad_to_grid|expected bool"),
        ({"pad_to_square": True, "pad_to_grid": True}, "only one of pad_to_square and pad_to_grid"),
        ({"projector": {"bin_grid": "random"}}, "bin_grid|got random"),
    ],
)
def test_wrong_options_are_refused(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        LlavaUhdConfig(**values)


def test_bins_of_every_grid():
    assert [bin_shape((10, 20), "selective", level) for level in (1, 4)] == [(2, 4), (2, 4)]
    assert [bin_shape((10, 20), "fixed", level) for level in (1, 4)] == [(3, 3), (3, 3)]
    assert [bin_shape((10, 20), "pyramid", level) for level in (1, 2, 4)] == [(1, 1), (2, 2), (4, 4)]


def test_perceiver_is_attention_over_the_whole_map():
    torch.manual_seed(0)
    config = LlavaUhdProjectorConfig(type="perceiver", query_grid=3, num_attention_heads=2)
    perceiver = PerceiverResampler(config, 8, 16)
    features = torch.randn(2, 8, 5, 4)
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    parts = perceiver.attention
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in (parts.q_proj, parts.k_proj, parts.v_proj)]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in (parts.q_proj, parts.k_proj, parts.v_proj)]))
        attention.out_proj.load_state_dict(parts.out_proj.state_dict())
        values = perceiver.ln_kv(perceiver.kv_proj(features.flatten(2).transpose(1, 2)))
        keys = values + resize_positions(perceiver.positions, (5, 4)).flatten(1, 2)
        queries = (perceiver.ln_q(perceiver.queries) + perceiver.positions).expand(2, -1, -1)
        expected = perceiver.ln_post(attention(queries, keys, values)[0]) @ perceiver.proj
        torch.testing.assert_close(perceiver(features, torch.empty(0)), expected)


def test_projectors_on_a_level_take_its_map():
    torch.manual_seed(0)
    features, pixels = torch.randn(1, 8, 6, 6), torch.randn(1, 3, 84, 84)
    enlarged = F.interpolate(features, scale_factor=4, mode="bilinear")
    for kind in ("resampler", "perceiver", "mlp"):
        options = {"type": kind, "query_grid": 3, "num_attention_heads": 2, "upsampler": "bilinear"}
        on_level = PROJECTORS[kind](LlavaUhdProjectorConfig(**options, input_level=4), 8, 16)
        on_map = PROJECTORS[kind](LlavaUhdProjectorConfig(**options), 8, 16)
        on_map.load_state_dict(on_level.state_dict())
        torch.testing.assert_close(on_level(features, pixels), on_map(enlarged, pixels))


def test_up_sampler_of_an_input_level_follows_the_pixels():
    config = LlavaUhdProjectorConfig(type="mlp", input_level=2)
    projector = PROJECTORS["mlp"](config, 8, 16)
    features, pixels = torch.randn(1, 8, 6, 6), torch.randn(1, 3, 84, 84)
    assert not torch.allclose(projector(features, pixels), projector(features, pixels.flip(-1)))


@pytest.mark.parametrize("size", [(1000, 200), (50, 40), (336, 336), (300, 2000)])
def test_fixed_grid_and_padding(size):
    plan = plan_slices(*size, slice_grid=(2, 2))
    assert plan.grid == (2, 2) and plan.num_views == 5
    assert plan_slices(*size, slice_grid=(2, 2), max_slices=1).grid is None
    padded = plan_slices(*size, slice_grid=(2, 2), pad_to_square=True)
    assert padded.view_sizes == [(336, 336)] * 5 and padded.padded_size == (max(size), max(size))
    assert plan_slices(*size, max_slices=1, pad_to_square=True).view_sizes == [(336, 336)]


def test_padding_is_the_mean_color_around_the_image():
    config = config_of("padding")
    processor = LlavaUhdProcessor.from_config(config, qwen_tokenizer(), chat_template="qwen")
    image = Image.new("RGB", (112, 56), (255, 0, 0))
    inputs = processor.image_processor(image, max_slices=1, return_tensors="np")
    assert inputs["view_shapes"].tolist() == [[4, 4]]
    red = inputs["pixel_values"].reshape(4, 4, 3, 196)[:, :, 0].mean(axis=(1, 2))
    assert np.abs(red[[0, 3]]).max() < 0.1 and red[1:3].min() > 1.5
