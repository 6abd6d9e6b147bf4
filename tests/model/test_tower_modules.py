"""The tower's own modules are called: hooks, adapters and offloading of the tower work, as in transformers' Llava."""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel

import llava_uhd
from llava_uhd import LlavaUhdConfig
from llava_uhd.model.vision_tower import adapt_tower
from tests.conftest import build_model, small_config
from tests.model.test_modeling import sample

TOWERS = ["clip_vision_model", "siglip_vision_model"]


def with_tower(model_type: str) -> LlavaUhdConfig:
    config = small_config().to_dict()
    config["vision_config"] |= {"model_type": model_type}
    return LlavaUhdConfig(**config)


@pytest.mark.parametrize("model_type", TOWERS)
def test_hooks_of_every_module_fire(model_type):
    config = with_tower(model_type)
    model, inputs, fired = build_model(config), sample(config, [(150, 120)]), set()
    tower = model.model.vision_tower
    names = ["", "embeddings", "embeddings.patch_embedding", "embeddings.position_embedding", "encoder"]
    for name in [*names, "encoder.layers.0", "encoder.layers.1.self_attn.q_proj"]:
        tower.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.add(name))
    with torch.no_grad():
        model(**inputs)
    assert fired == {*names, "encoder.layers.0", "encoder.layers.1.self_attn.q_proj"}


@pytest.mark.parametrize("model_type", TOWERS)
@pytest.mark.parametrize("target", ["patch_embedding", "position_embedding"])
def test_adapters_of_the_embeddings_take_part_and_learn(model_type, target):
    from peft import LoraConfig, get_peft_model

    config = with_tower(model_type)
    model, inputs = build_model(config), sample(config, [(150, 120)])
    with torch.no_grad():
        before = model(**inputs).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[target]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    logits = adapted(**inputs).logits
    assert not torch.allclose(logits, before, atol=1e-3)
    logits.square().mean().backward()
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_" in name]
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)


def test_an_offloaded_tower_answers_the_same(tmp_path):
    folder = llava_uhd.built_in("tiny")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = dict(sample(model.config, []))
    pixels = torch.randn(64 + 48, 3 * 14 * 14)
    images = {
        "pixel_values": pixels,
        "view_shapes": torch.tensor([[8, 8], [6, 8]]),
        "num_views": torch.tensor([1, 1]),
        "grids": torch.zeros(2, 2, dtype=torch.long),
    }
    del inputs
    with torch.no_grad():
        expected = torch.cat(model.get_image_features(**images).pooler_output)
        rest = {"model.multi_modal_projector": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}
        for where in ({"model.vision_tower": "disk", **rest}, {"model": "disk", "lm_head": "cpu"}):
            offloaded = AutoModelForImageTextToText.from_pretrained(folder, device_map=where, offload_folder=tmp_path)
            actual = torch.cat(offloaded.eval().get_image_features(**images).pooler_output)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_layers_behind_the_feature_layer_are_kept_but_do_not_run():
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14
    )
    tower = CLIPVisionModel(config).eval()
    keys, ran = tower.state_dict().keys(), []
    for index, layer in enumerate(tower.encoder.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    pixels = torch.randn(1, 3, 56, 42)
    with torch.no_grad():
        for feature_layer, expected in ((-2, [0, 1, 2]), (-1, [0, 1, 2, 3]), (1, [0])):
            adapt_tower(tower, feature_layer)
            ran.clear()
            tower(pixel_values=pixels, interpolate_pos_encoding=True)
            assert ran == expected
    assert tower.state_dict().keys() == keys
    assert copy.deepcopy(tower).state_dict().keys() == keys


def test_other_towers_are_refused():
    with pytest.raises(ValueError, match="CLIP or SigLIP.*LlamaModel"):
        adapt_tower(build_model(small_config()).model.language_model, -2)
