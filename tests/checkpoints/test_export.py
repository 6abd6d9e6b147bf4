"""Export to the original layout: the same tensors in the same files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.checkpoints.convert import Options, convert_to_hf
from llava_uhd.checkpoints.export import convert_to_original
from llava_uhd.checkpoints.key_mapping import build_key_mapping, split_tensors, unused_tensors
from llava_uhd.checkpoints.packaging import state_shapes
from llava_uhd.checkpoints.sources import Parts
from llava_uhd.checkpoints.variants import Overrides, levels_of_mask, to_hf_config
from tests.checkpoints.layouts import (
    APRIL,
    LLAMA,
    MULTIMODAL,
    QWEN,
    SECOND_CLIP,
    TOWER,
    april_tensors,
    original_tensors,
    write_numbered_tokenizer,
    write_original,
    write_qwen_tokenizer,
    write_sentencepiece,
)
from tests.conftest import build_model, small_config
from tests.golden import GOLDENS

HEADS = Overrides(projector_heads=2)


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.dtype == expected.dtype and actual.shape == expected.shape and torch.equal(actual, expected)


def read_all(folder) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        elif file.suffix == ".bin":
            tensors |= torch.load(file, weights_only=True)
    return tensors


@pytest.mark.parametrize(
    "tensors, config, tokenizer, kind, count",
    [
        (original_tensors, {**LLAMA, **MULTIMODAL}, write_numbered_tokenizer, "safetensors", 3),
        (original_tensors, {**LLAMA, **MULTIMODAL}, write_sentencepiece, "bin", 2),
        (april_tensors, {**QWEN, **APRIL}, write_qwen_tokenizer, "safetensors", 1),
    ],
)
@pytest.mark.parametrize("keep_unused", [False, True])
def test_round_trip(tmp_path, tower, tensors, config, tokenizer, kind, count, keep_unused):
    """All tensors return bit for bit in the same files; the second CLIP only with `keep_unused`."""
    original = {name: value.bfloat16() for name, value in tensors().items()}
    source = write_original(tmp_path / "in", original, config, tokenizer, kind, count)
    parts = Parts(str(source), vision_tower=str(tower))
    convert_to_hf(parts, tmp_path / "hf", Options(HEADS, keep_unused=keep_unused))
    report = convert_to_original(tmp_path / "hf", tmp_path / "back")
    back = read_all(tmp_path / "back")
    expected = {name: value for name, value in original.items() if keep_unused or not name.startswith(SECOND_CLIP)}
    assert back.keys() == expected.keys()
    assert all(same(back[name], expected[name]) for name in expected)
    assert {e["name"] for e in report.ignored} == original.keys() - expected.keys()
    for file in source.iterdir():
        if keep_unused or file.name not in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            if file.suffix == ".safetensors":
                names = [set(safe_open(folder / file.name, "pt").keys()) for folder in (source, tmp_path / "back")]
                assert names[1] == names[0] & expected.keys()
            elif file.suffix != ".bin":
                assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
        else:
            index = json.loads((tmp_path / "back" / file.name).read_text())
            assert index["weight_map"].keys() == expected.keys()


def test_tied_head_comes_back(tmp_path, tower):
    tensors = april_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    config = {**QWEN, **APRIL, "tie_word_embeddings": True}
    source = write_original(tmp_path / "in", tensors, config, write_qwen_tokenizer)
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "hf", Options(HEADS))
    convert_to_original(tmp_path / "hf", tmp_path / "back")
    assert same(read_all(tmp_path / "back")["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize("kind", ["hiwin", "resampler"])
@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_round_trip_of_a_model_trained_here(tmp_path, kind, text):
    """Export a model that was trained here, and convert the export."""
    settings = {"levels": [1, 4]} if kind == "hiwin" else {"levels": [1], "upsampler": "none"}
    layout = "stitched" if text == "llama" else "sequential"
    model = build_model(small_config(text, layout, type=kind, query_grid=12, **settings))
    model.save_pretrained(tmp_path / "hf")
    write_qwen_tokenizer(tmp_path / "hf")
    convert_to_original(tmp_path / "hf", tmp_path / "original")
    vision = json.dumps(model.config.vision_config.to_dict())
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text(vision)
    parts = Parts(str(tmp_path / "original"), vision_tower=str(tmp_path / "tower"))
    convert_to_hf(parts, tmp_path / "again", Options(HEADS))
    again = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path / "again", dtype="auto")
    for name in ("layout", "vision_feature_layer"):
        assert getattr(again.config, name) == getattr(model.config, name)
    assert again.config.projector.levels == model.config.projector.levels
    assert again.config.text_config.rope_parameters == model.config.text_config.rope_parameters
    state = again.state_dict()
    assert all(same(state[name], value) for name, value in model.state_dict().items())


def test_models_without_an_original_layout_are_rejected(tmp_path):
    build_model(small_config(type="mlp")).save_pretrained(tmp_path / "mlp")
    with pytest.raises(ValueError, match="no projector of type 'mlp'"):
        convert_to_original(tmp_path / "mlp", tmp_path / "out")
    build_model(small_config()).save_pretrained(tmp_path / "grid")
    with pytest.raises(ValueError, match="no original projector is a 'hiwin' with a query grid of 3"):
        convert_to_original(tmp_path / "grid", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_original_folder_is_not_exported(original, tmp_path):
    with pytest.raises(ValueError, match="model of type 'llava_llama'"):
        convert_to_original(original, tmp_path / "out")


KEYS = json.loads((GOLDENS / "checkpoint_keys.json").read_text())


def real_mapping(config_changes, **text):
    """Return projector shapes by original name, and the unused tensors, of a model of the original size."""
    llama = {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, **text}
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096}
    vision |= {"num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    config = to_hf_config({**llama, **MULTIMODAL, **config_changes}, vision, torch.bfloat16, Overrides())
    key_mapping = build_key_mapping(config, state_shapes(config))
    shapes = {
        name: shape
        for mapping in key_mapping
        for name, shape in zip(mapping.original_names, mapping.original_shapes, strict=True)
    }
    return {name: list(shape) for name, shape in shapes.items() if "mm_projector" in name}, unused_tensors(config)


@pytest.mark.parametrize("mask", [3, 5, 7, 15])
def test_names_and_shapes_of_the_real_projector(mask):
    """Every tensor of a real `mm_projector.bin` is mapped with its shape, or unused."""
    import re

    full, (small, large) = (
        KEYS["mm_projector.bin mask=7 (embed_dim 4096)"],
        (
            KEYS["mm_projector.bin mask=3 (embed_dim 4096)"],
            KEYS["mm_projector.bin mask=15 (embed_dim 4096)"],
        ),
    )
    real = {name: shape for name, shape in full.items() if "upsampler.upsampler" not in name}
    stack = {3: small, 15: large}.get(mask) or {n: s for n, s in full.items() if "upsampler.upsampler" in n}
    real |= stack
    mapped, unused = real_mapping({"feature_scale_mask": mask})
    assert mapped == {name: real[name] for name in mapped}
    for name in real.keys() - mapped.keys():
        assert any(re.fullmatch(entry.pattern, name) for entry in unused), name
    assert levels_of_mask(mask) == [level for level in (1, 2, 4, 8) if mask & level]


def test_names_and_shapes_of_the_real_v1_projector():
    mapped, _ = real_mapping({"mm_projector_type": "adapt_spatial_resampler_v1", "feature_mode": "uhd_v1"})
    assert mapped == KEYS["v1 mm_projector.bin (embed_dim 4096)"]


def test_only_odd_masks():
    for mask in (0, 2, 6, 16, 17):
        with pytest.raises(ValueError, match=f"got {mask}"):
            levels_of_mask(mask)


def test_tower_config_of_either_kind():
    from llava_uhd.checkpoints.variants import vision_config_of

    assert vision_config_of({}, TOWER)["hidden_size"] == 32
    assert vision_config_of({"mm_vision_tower": "/home/x/clip-vit-large-patch14-336"}, None)["hidden_size"] == 1024
    with pytest.raises(ValueError, match="'google/siglip'.*--vision-tower"):
        vision_config_of({"mm_vision_tower": "google/siglip"}, None)


def test_splitting_and_concatenating_are_inverse():
    fused = torch.arange(24.0).view(6, 4)
    parts = split_tensors([fused], [(2, 4)] * 3)
    assert [part[0, 0].item() for part in parts] == [0, 8, 16]
    assert torch.equal(split_tensors(parts, [(6, 4)])[0], fused)
