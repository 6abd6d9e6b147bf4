"""Contract between the model and a server that runs it; vLLM itself is run by `make test-ecosystem` (docs/vllm.md)."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel, LlavaUhdProcessor
from tests.conftest import build_model, random_image, small_config


@pytest.fixture(scope="module", params=["stitched", "sequential"])
def pair(request, qwen_tokenizer):
    config = small_config(layout=request.param)
    return build_model(config), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


def test_a_saved_folder_names_the_class_of_auto_model(pair, tmp_path):
    pair[0].save_pretrained(tmp_path)
    import json

    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_llava_uhd.LlavaUhdModel"


@pytest.mark.parametrize("cls", [LlavaUhdModel, LlavaUhdForConditionalGeneration])
def test_transformers_backend_of_vllm_is_refused_with_the_way_out(cls):
    """It asks this of the class that `auto_map` names, before it loads anything."""
    with pytest.raises(ValueError, match=r"pip install 'llava-uhd\[vllm\]' and leave --model-impl at auto"):
        cls.is_backend_compatible()


def test_an_attention_of_the_server_s_own_is_used_in_every_layer_and_gets_its_arguments(pair):
    """Call the model as the backend does: embeddings, positions, no cache, a tuple back."""
    model = pair[0].model
    requests = []

    def attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
        requests.append((module.layer_idx, attention_instances))
        assert attention_mask is None
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, scaling=scaling, is_causal=True)

    AttentionInterface.register("servers_own", attention)
    config = model.language_model.config
    assert LlavaUhdModel._supports_attention_backend and model.language_model._supports_attention_backend
    embeds, positions = model.get_input_embeddings()(torch.arange(5)[None]), torch.arange(5)[None]
    call = {"inputs_embeds": embeds, "position_ids": positions, "use_cache": False, "return_dict": False}
    with torch.no_grad():
        (expected, *_) = model(**call)
        config._attn_implementation = "servers_own"
        try:
            (hidden, *_) = model(**call, attention_instances={0: "a", 1: "b"})
        finally:
            config._attn_implementation = "sdpa"
    assert requests == [(0, {0: "a", 1: "b"}), (1, {0: "a", 1: "b"})]
    torch.testing.assert_close(hidden, expected)


def test_features_come_as_one_tensor_per_image_of_the_counted_lengths(pair):
    """Counts are a function of sizes alone; pixel_values are cut along their first dimension by num_image_patches."""
    model, processor = pair
    images = [random_image(300, 200), random_image(30, 40, 1), random_image(90, 250, 2)]
    counts = processor._get_num_multimodal_tokens(image_sizes=[(image.height, image.width) for image in images])
    inputs = processor(images=images, text="<image> <image> <image>", return_tensors="pt")
    is_image = inputs["input_ids"] == processor.image_token_id
    assert model.config.image_token_id == processor.image_token_id
    assert int(is_image.sum()) == sum(counts["num_image_tokens"])
    assert len(inputs["pixel_values"]) == sum(counts["num_image_patches"])
    names = ("pixel_values", "view_shapes", "num_views", "grids")
    assert set(names) <= set(processor.image_processor.model_input_names)
    with torch.no_grad():
        together = model.model.get_image_features(**{name: inputs[name] for name in names}).pooler_output
        assert [len(features) for features in together] == counts["num_image_tokens"]
        parts = inputs["pixel_values"].split(counts["num_image_patches"])
        for image, part, features in zip(images, parts, together, strict=True):
            alone = dict(processor.image_processor(image, return_tensors="pt"))
            assert torch.equal(alone["pixel_values"], part)
            (of_one,) = model.model.get_image_features(**{**alone, "pixel_values": part}).pooler_output
            torch.testing.assert_close(of_one, features, rtol=1e-4, atol=1e-4)
