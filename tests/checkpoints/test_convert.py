"""Converted original checkpoints give the outputs of the reference implementation."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_uhd.checkpoints.convert import Options, convert_to_hf
from llava_uhd.checkpoints.sources import Parts
from llava_uhd.checkpoints.variants import Overrides
from tests.checkpoints.layouts import (
    APRIL,
    LLAMA,
    MULTIMODAL,
    PROJECTOR_PREFIX,
    QWEN,
    TOWER_PREFIX,
    april_tensors,
    original_tensors,
    write_original,
    write_qwen_tokenizer,
    write_sentencepiece,
)
from tests.conftest import golden_image
from tests.golden import load, relative_error, under

HEADS = Overrides(projector_heads=2)


def golden_inputs(processor, golden):
    """The golden's prompt as text, through the processor."""
    text = " ".join("<image>" if token == -200 else f"t{token}" for token in golden["input_ids"][0, 1:].tolist())
    return processor(images=golden_image(240, 500), text=text, return_tensors="pt")


def test_the_golden_from_a_converted_folder(converted):
    golden = load("e2e.npz")
    model = AutoModelForImageTextToText.from_pretrained(converted[0], dtype="auto")
    processor = AutoProcessor.from_pretrained(converted[0])
    assert model.config.image_token_id == 32000 and model.lm_head.out_features == 32000
    inputs = golden_inputs(processor, golden)
    assert inputs["input_ids"].shape == (1, 470)
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    largest = golden["logits_last"].abs().max()
    assert (logits[-1] - golden["logits_last"]).abs().max() < 1e-4 * largest
    assert (logits[golden["logits_pos"], :256] - golden["logits_pos_first256"]).abs().max() < 1e-4 * largest
    generated = model.generate(**inputs, max_new_tokens=8)
    assert generated[:, 470:].tolist() == golden["generated"].tolist()


@pytest.mark.parametrize("mask", [3, 5, 7, 15])
def test_masks(tmp_path, tower, mask):
    """Projectors of every mask against the reference module; its weights stand in a whole checkpoint."""
    golden = load("hiwin.npz")
    stack = {3: "mask3", 5: "mask7", 7: "mask7", 15: "mask15"}[mask]
    projector = {**under("w.", golden), **under(f"{stack}.w.", golden)}
    projector |= {"upsampler.model.1.norm.weight": torch.ones(16)}
    tensors = {name: value for name, value in original_tensors().items() if "mm_" not in name and "vision" not in name}
    tensors |= {PROJECTOR_PREFIX + name: value for name, value in projector.items()}
    tensors |= narrow_tower()
    source = write_original(tmp_path / "in", tensors, {**LLAMA, **MULTIMODAL, "feature_scale_mask": mask})
    convert_to_hf(Parts(str(source), vision_tower=str(narrow_config(tmp_path))), tmp_path / "out", Options(HEADS))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    rows, columns = 9, 13
    features = golden["features"][0, : rows * columns].view(1, rows, columns, 16).permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens = model.model.multi_modal_projector(features.float(), golden["image_0"][None].float())
    expected = golden[f"mask{mask}.out_image0"][0]
    assert relative_error(tokens[0, :: 144 // len(expected)], expected) < 1e-5
    assert model.config.projector.levels == [level for level in (1, 2, 4, 8) if mask & level]


def narrow_tower() -> dict[str, torch.Tensor]:
    """A vision tower of width 16, for projectors of that width."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    state = CLIPVisionModel(CLIPVisionConfig(**NARROW)).state_dict()
    return {TOWER_PREFIX + name.removeprefix("vision_model."): tensor for name, tensor in state.items()}


NARROW = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
}


def narrow_config(tmp_path):
    import json

    folder = tmp_path / "narrow"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**NARROW, "model_type": "clip_vision_model"}))
    return folder


def test_v1(tmp_path):
    golden = load("v1.npz")
    tensors = {name: value for name, value in original_tensors().items() if "mm_" not in name and "vision" not in name}
    tensors |= {PROJECTOR_PREFIX + name: value for name, value in under("w.", golden).items()} | narrow_tower()
    config = {**LLAMA, **MULTIMODAL, "mm_projector_type": "adapt_spatial_resampler_v1", "feature_mode": "uhd_v1"}
    source = write_original(tmp_path / "in", tensors, config)
    parts = Parts(str(source), vision_tower=str(narrow_config(tmp_path)))
    report = convert_to_hf(parts, tmp_path / "out", Options(HEADS))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert report.settings["projector"] == "resampler" and report.settings["layout"] == "stitched"
    features = golden["x_0"].view(2, 24, 24, 16).permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens = model.model.multi_modal_projector(features.float(), None)
    assert relative_error(tokens[:, ::2], golden["out_0"]) < 1e-5


def test_april_2025_with_qwen(tmp_path, tower, golden_model):
    """Sequential layout, the Vicuna separators' ids, and the very same image tokens as with a Llama behind."""
    tensors = april_tensors()
    source = write_original(tmp_path / "in", tensors, {**QWEN, **APRIL}, write_qwen_tokenizer, count=1)
    report = convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", Options(HEADS))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    config = model.config
    assert (config.layout, config.text_config.model_type) == ("sequential", "qwen2")
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert (config.slice_separator_id, config.row_separator_id) == (29892, 13)
    assert {e["reason"] for e in report.ignored if e["name"] == "model.image_newline"} != set()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\n")
    inputs = processor(images=golden_image(240, 500), text=prompt, return_tensors="pt")
    images = {key: inputs[key] for key in ("pixel_values", "view_shapes", "num_views", "grids")}
    with torch.no_grad():
        (features,) = model.get_image_features(**images).pooler_output
        (expected,) = golden_model.get_image_features(**images).pooler_output
    assert torch.equal(features, expected)  # one column of slices: both layouts order them alike
    for name in ("model.layers.1.self_attn.q_proj.bias", "model.embed_tokens.weight"):
        assert torch.equal(model.model.language_model.state_dict()[name.removeprefix("model.")], tensors[name])


@pytest.mark.parametrize("kind, count", [("safetensors", 1), ("bin", 1), ("bin", 3)])
def test_file_formats_give_the_same_weights(tmp_path, tower, converted, kind, count):
    source = write_original(tmp_path / "in", kind=kind, count=count)
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", Options(HEADS))
    actual, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted[0]))
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


def test_separate_parts(tmp_path, converted, tower):
    """Vicuna, CLIP, mm_projector.bin without its up-sampler, and a Lightning checkpoint of the JBU: the same model."""
    import json

    tensors = original_tensors()
    language = {name: value for name, value in tensors.items() if "mm_" not in name and "vision" not in name}
    language["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    vicuna = write_original(tmp_path / "vicuna", language, {**LLAMA, "model_type": "llama"}, kind="bin")
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "config.json").write_text((tower / "config.json").read_text())
    vision = {"vision_model." + name: value for name, value in under(TOWER_PREFIX, tensors).items()}
    torch.save({**vision, "text_model.final_layer_norm.bias": torch.ones(3)}, clip / "pytorch_model.bin")
    stack = under(PROJECTOR_PREFIX + "upsampler.upsampler.", tensors)
    lightning = {
        "epoch": 1,
        "hyper_parameters": {"lr": 1e-3},
        "state_dict": {
            **{"upsampler." + name: value for name, value in stack.items()},
            "model.vision_tower.x": torch.ones(2),
            "downsampler.w": torch.ones(2),
            "scale_net.net.bias": torch.ones(1),
            "linear_acc": torch.ones(()),
        },
    }
    torch.save(lightning, tmp_path / "clip-large-jbu.ckpt")
    projector = {n: v for n, v in tensors.items() if "mm_projector" in n and "upsampler.upsampler" not in n}
    torch.save(projector, tmp_path / "mm_projector.bin")
    (tmp_path / "config.json").write_text(json.dumps({}))
    parts = Parts(
        projector=str(tmp_path / "mm_projector.bin"),
        language_model=str(vicuna),
        vision_tower=str(clip),
        upsampler=str(tmp_path / "clip-large-jbu.ckpt"),
    )
    with pytest.raises(ValueError, match="neither feature_mode .* nor model_mode"):
        convert_to_hf(parts, tmp_path / "out", Options(Overrides(projector_heads=2, levels=(1, 2, 4))))
    overrides = Overrides(projector_heads=2, levels=(1, 2, 4), layout="stitched")
    report = convert_to_hf(parts, tmp_path / "out", Options(overrides))
    actual, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted[0]))
    assert actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in actual)
    assert report.assumed and report.settings["vision_tower"] == "given separately"
    ignored = {entry["name"]: entry["reason"] for entry in report.ignored}
    for name in ("downsampler.w", "scale_net.net.bias", "linear_acc", "text_model.final_layer_norm.bias"):
        assert name in ignored


def test_the_fine_tuned_tower_is_the_one_in_use(tmp_path, original, tower, converted):
    """A CLIP given beside a full checkpoint lends its config, and not its weights."""
    from safetensors.torch import save_file

    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "config.json").write_text((tower / "config.json").read_text())
    tensors = under(TOWER_PREFIX, original_tensors())
    save_file({f"vision_model.{n}": torch.zeros_like(v) for n, v in tensors.items()}, clip / "model.safetensors")
    report = convert_to_hf(Parts(str(original), vision_tower=str(clip)), tmp_path / "out", Options(HEADS))
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(actual[f"model.vision_tower.{name}"], value) for name, value in tensors.items())
    assert report.settings["vision_tower"] == "of the checkpoint"
    reasons = {e["reason"] for e in report.ignored if e["name"].startswith("vision_model.")}
    assert reasons and all("trained later" in reason for reason in reasons)


def test_every_tensor_is_reported_once(converted, original):
    report = converted[1]
    named = [name for entry in report.used + report.derived for name in entry["released"]]
    named += [entry["name"] for entry in report.ignored]
    assert sorted(named) == sorted(original_tensors())
    second = [entry for entry in report.ignored if "second CLIP inside" in entry["reason"]]
    assert len(second) == len(under(TOWER_PREFIX, original_tensors())) and not any(e["kept"] for e in second)
    assert any("unused" in line and "second CLIP" in line for line in report.lines())


def test_window_corners_follow_the_stored_type(tmp_path, tower, converted):
    """bf16 and fp16 weights were trained with rounded corners, the golden's fp32 ones not; either can be asked for."""
    assert converted[1].settings["window_corners"] == "float32"
    half = {name: value.bfloat16() for name, value in original_tensors().items()}
    source = write_original(tmp_path / "in", half)
    parts = Parts(str(source), vision_tower=str(tower))
    report = convert_to_hf(parts, tmp_path / "a", Options(HEADS))
    assert (report.settings["window_corners"], report.settings["dtype"]) == ("bfloat16", "bfloat16")
    report = convert_to_hf(parts, tmp_path / "b", Options(Overrides(projector_heads=2, box_dtype="float32")))
    assert report.settings["window_corners"] == "float32"


def test_bf16_golden(tmp_path, tower):
    golden = load("e2e_bf16.npz")
    source = write_original(tmp_path / "in", {name: value.bfloat16() for name, value in original_tensors().items()})
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", Options(HEADS))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    inputs = golden_inputs(AutoProcessor.from_pretrained(tmp_path / "out"), load("e2e.npz"))
    with torch.no_grad():
        logits = model(**inputs).logits[0, golden["logits_pos"], :256].float()
    assert (logits - golden["logits_pos_first256"]).std() < 0.1 * golden["logits_pos_first256"].std()


def test_positions_are_loaded_not_computed(tmp_path, tower):
    """They were trained in stage 1, and differ from the formula."""
    tensors = original_tensors()
    tensors[PROJECTOR_PREFIX + "pos_embed"] += 0.25
    source = write_original(tmp_path / "in", tensors)
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", Options(HEADS))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(model.model.multi_modal_projector.positions, tensors[PROJECTOR_PREFIX + "pos_embed"])


def test_another_type_may_be_asked_for(tmp_path, tower, original):
    parts = Parts(str(original), vision_tower=str(tower))
    convert_to_hf(parts, tmp_path / "out", Options(HEADS, dtype=torch.bfloat16))
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_tied_head(tmp_path, tower):
    tensors = april_tensors()
    config = {**QWEN, **APRIL, "tie_word_embeddings": True}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    parts = Parts(str(write_original(tmp_path / "in", tensors, config, write_qwen_tokenizer)), vision_tower=str(tower))
    convert_to_hf(parts, tmp_path / "out", Options(HEADS))
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    tensors["lm_head.weight"][3, 3] += 1
    parts = Parts(
        str(write_original(tmp_path / "in2", tensors, config, write_qwen_tokenizer)), vision_tower=str(tower)
    )
    with pytest.raises(ValueError, match="lm_head.weight differs from .*embed_tokens"):
        convert_to_hf(parts, tmp_path / "out2", Options(HEADS))


def test_sentencepiece_in_the_folder(tmp_path, tower):
    source = write_original(tmp_path / "in", tokenizer=write_sentencepiece)
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", Options(HEADS))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.is_fast and processor.image_token_id == 520
    assert processor.tokenizer("Hello")["input_ids"][0] == processor.tokenizer.bos_token_id == 1
