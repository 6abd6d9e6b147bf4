"""Contract of a generative image-text model of transformers: saving, generating, checkpointing, adapters."""

import copy
import subprocess
import sys

import pytest
import torch

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.layout import TokenType, plan_layout
from llava_uhd.model.modeling_llava_uhd import CACHE_NAME, token_grid
from llava_uhd.model.vision_tower import encode_views
from tests.conftest import build_model, random_image, small_config

VARIANTS = {
    "hiwin": {},
    "hiwin-1": {"levels": [1], "upsampler": "none"},
    "hiwin-1-4": {"levels": [1, 4]},
    "hiwin-8": {"levels": [1, 2, 4, 8]},
    "hiwin-bilinear": {"upsampler": "bilinear"},
    "resampler": {"type": "resampler"},
    "mlp": {"type": "mlp"},
}


def sample(config: LlavaUhdConfig, sizes: list[tuple[int, int]], text=(5, 6, 7), seed: int = 0) -> dict:
    """One sample with images of these sizes, text around each."""
    token_types = {
        TokenType.IMAGE: config.image_token_id,
        TokenType.SLICE_SEPARATOR: config.slice_separator_id,
        TokenType.ROW_SEPARATOR: config.row_separator_id,
    }
    processor = LlavaUhdImageProcessor(view_size=56, max_slices=config.max_slices)
    ids = [1]
    for size in sizes:
        template = plan_layout(processor.plan(*size), token_grid(config), config.layout).template
        ids += [*text, *(token_types[token_type] for token_type in template)]
    ids += [*text, 9]
    images = {}
    if sizes:
        drawn = [random_image(*size, seed=seed + index) for index, size in enumerate(sizes)]
        images = dict(processor(drawn, return_tensors="pt"))
    return {"input_ids": torch.tensor([ids]), **images}


def batch(samples: list[dict], pad: int, side: str) -> dict:
    """Samples padded on one side, their images packed one after the other."""
    length = max(item["input_ids"].shape[1] for item in samples)
    rows, masks = [], []
    for item in samples:
        ids = item["input_ids"][0]
        filler = torch.full((length - len(ids),), pad)
        parts = [filler, ids] if side == "left" else [ids, filler]
        rows.append(torch.cat(parts))
        masks.append(
            torch.cat([torch.zeros_like(part) if part is filler else torch.ones_like(part) for part in parts])
        )
    images = [item for item in samples if "pixel_values" in item]
    packed = {key: torch.cat([item[key] for item in images]) for key in images[0] if key != "input_ids"}
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks), **packed}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    config = small_config(**VARIANTS[request.param])
    return build_model(config), sample(config, [(150, 120)])


def test_save_and_load(variant, tmp_path):
    model, inputs = variant
    model.save_pretrained(tmp_path)
    loaded, report = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name in ("layout", "image_token_id", "slice_separator_id", "row_separator_id", "max_slices"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    settings = [config.projector.to_dict() | {"dtype": None} for config in (loaded.config, model.config)]
    assert settings[0] == settings[1]
    state = model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.state_dict().items())
    with torch.no_grad():
        # Not bit by bit: matrix libraries round by where in memory the weights lie, and these are multiplied first.
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-4)


def test_fresh_model_has_finite_weights_and_a_gradient_everywhere(variant):
    model, inputs = variant
    torch.manual_seed(0)
    fresh = LlavaUhdForConditionalGeneration(model.config)
    fresh(**inputs, labels=inputs["input_ids"].clamp(max=422)).loss.backward()
    unused = {
        name
        for name, parameter in fresh.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
    }
    # The tower's last layer and its head come after the features that are used; 8x has a correction of its own.
    dead = ("vision_tower.encoder.layers.2.", "vision_tower.post_layernorm.")
    assert all(
        part.startswith(tuple(f"model.{prefix}" for prefix in dead)) or ".fixup_proj." in part for part in unused
    )
    if model.config.projector.levels != [1, 2, 4, 8]:
        assert not any(".fixup_proj." in name for name in unused)


def test_generation_with_and_without_cache_and_with_features(variant):
    model, inputs = variant
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 421, "eos_token_id": None}
    expected = model.generate(**inputs, **arguments)
    assert torch.equal(model.generate(**inputs, **arguments, use_cache=False), expected)
    images = {key: value for key, value in inputs.items() if key != "input_ids"}
    features = torch.cat(model.get_image_features(**images).pooler_output)
    assert torch.equal(model.generate(input_ids=inputs["input_ids"], image_features=features, **arguments), expected)
    model.config.return_dict = False
    (as_tuple,) = model.get_image_features(**images)
    assert torch.equal(torch.cat(as_tuple), features)
    assert torch.equal(model.generate(**inputs, **arguments), expected)
    model.config.return_dict = True
    (as_tuple,) = model.get_image_features(**images, return_dict=False)
    assert torch.equal(torch.cat(as_tuple), features)


@pytest.mark.parametrize("text", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("layout", ["stitched", "sequential"])
def test_batch_neighbors_do_not_matter(text, layout):
    config = small_config(text, layout)
    model = build_model(config)
    samples = [
        sample(config, [(150, 120)], text=(5, 6)),
        sample(config, []),
        sample(config, [(30, 40), (61, 200)], seed=3),
        sample(config, [(120, 150)], text=(8,), seed=7),
    ]
    with torch.no_grad():
        alone = [model(**item).logits[0] for item in samples]
        for side in ("left", "right"):
            for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
                inputs = batch([samples[index] for index in order], pad=421, side=side)
                logits = model(**inputs).logits
                for row, mask, index in zip(logits, inputs["attention_mask"].bool(), order, strict=True):
                    torch.testing.assert_close(row[mask], alone[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["llama", "qwen2", "qwen3"])
def test_batched_generation_equals_one_by_one(text):
    config = small_config(text)
    model = build_model(config)
    samples = [sample(config, [(150, 120)], text=(5, 6)), sample(config, []), sample(config, [(30, 40), (61, 200)])]
    inputs = batch(samples, pad=421, side="left")
    for arguments in ({"num_beams": 1}, {"num_beams": 3}):
        arguments |= {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 421, "eos_token_id": None}
        together = model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :]
        for item, row in zip(samples, together, strict=True):
            alone = model.generate(**item, **arguments)[0, item["input_ids"].shape[1] :]
            assert row.tolist() == alone.tolist()


def test_sampling_repeats_with_its_seed_and_streams():
    from transformers import TextIteratorStreamer

    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])

    class Ids(TextIteratorStreamer):
        def __init__(self):
            self.received = []

        def put(self, value):
            self.received += value.flatten().tolist()

        def end(self):
            self.ended = True

    results = []
    for _ in range(2):
        torch.manual_seed(5)
        streamer = Ids()
        out = model.generate(
            **inputs, max_new_tokens=5, do_sample=True, streamer=streamer, pad_token_id=421, eos_token_id=None
        )
        assert streamer.ended and streamer.received == out[0].tolist()
        results.append(out.tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    config = small_config()
    inputs = sample(config, [(150, 120)])
    labels = inputs["input_ids"].clamp(max=422)
    gradients = []
    for checkpointing in (False, True):
        model = build_model(config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(**inputs, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert model.config.text_config._attn_implementation == implementation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("projector", ["hiwin", "resampler", "mlp"])
def test_half_precision_is_near_float32(dtype, projector, tmp_path):
    config = small_config(type=projector)
    torch.manual_seed(0)
    model, inputs = LlavaUhdForConditionalGeneration(config).eval(), sample(config, [(150, 120)])
    with torch.no_grad():
        expected = model(**inputs).logits
        actual = model.to(dtype)(**inputs).logits
        model.save_pretrained(tmp_path)
        loaded = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        from_disk = loaded(**inputs).logits
    assert actual.dtype == dtype and {p.dtype for p in loaded.parameters()} == {dtype}
    for logits in (actual, from_disk):
        assert (logits.float() - expected).std() < 0.1 * expected.std()


def test_siglip_tower():
    config = small_config().to_dict()
    config["vision_config"] |= {"model_type": "siglip_vision_model"}
    config = LlavaUhdConfig(**config)
    model, inputs = build_model(config), sample(config, [(150, 120)])
    assert model.model.vision_tower.config.model_type == "siglip_vision_model"
    with torch.no_grad():
        # In float64, where the order of sums, which differs among CPUs, does not show.
        tower, patches = copy.deepcopy(model.model.vision_tower).double(), sample(config, [(56, 56)])["pixel_values"]
        patches = patches.double()
        outputs = tower(
            pixel_values=patches.view(4, 4, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(1, 3, 56, 56),
            output_hidden_states=True,
        )
        actual = encode_views(tower, patches[None], (4, 4), -2)
        torch.testing.assert_close(actual[0].flatten(1).T, outputs.hidden_states[-2][0], rtol=1e-10, atol=1e-10)
        assert model(**inputs).logits.isfinite().all()


def test_resized_embeddings():
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    with torch.no_grad():
        before = model(**inputs).logits
        model.resize_token_embeddings(500)
        after = model(**inputs).logits
    assert after.shape[-1] == 500 and model.config.text_config.vocab_size == 500
    torch.testing.assert_close(after[..., :423], before)


def test_image_token_outside_the_vocabulary():
    config = small_config()
    config.image_token_id = 5000
    model, inputs = build_model(config), sample(config, [(150, 120)])
    assert 5000 in inputs["input_ids"]
    out = model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=421)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_views_of_one_patch_on_a_side():
    """Aspect ratios beyond 16 : 1 here, 144 : 1 as published, on which the reference implementation fails."""
    for variant in VARIANTS.values():
        config = small_config(**variant)
        model, inputs = build_model(config), sample(config, [(2000, 30)])
        assert inputs["view_shapes"].min() == 1
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()


def test_mismatches_are_errors_with_both_numbers():
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    tokens = int((inputs["input_ids"] == config.image_token_id).sum())
    with pytest.raises(ValueError, match=rf"{tokens - 1} image tokens.*{tokens} features"):
        first = inputs["input_ids"][0].tolist().index(config.image_token_id)
        model(
            **{
                **inputs,
                "input_ids": torch.cat([inputs["input_ids"][:, :first], inputs["input_ids"][:, first + 1 :]], 1),
            }
        )
    with pytest.raises(ValueError, match=rf"{tokens} image tokens.*0 features"):
        model(input_ids=inputs["input_ids"])
    patches = len(inputs["pixel_values"])
    with pytest.raises(ValueError, match=rf"{patches - 1} patches.*{patches}"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][1:]})
    with pytest.raises(ValueError, match="view_shapes"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize(
    "projector, message",
    [
        ({"levels": [2, 4]}, "contain 1"),
        ({"levels": [1, 3]}, "taken from"),
        ({"levels": [2, 1]}, "ascend"),
        ({"levels": [1, 2], "upsampler": "none"}, "no level above 1"),
        ({"query_grid": 0}, "at least 1"),
    ],
)
def test_impossible_configurations(projector, message):
    with pytest.raises(ValueError, match=message):
        LlavaUhdConfig(projector=projector)


def test_lora_on_the_language_model_alone():
    from peft import LoraConfig, get_peft_model

    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    with torch.no_grad():
        before = model(**inputs).logits
    lora = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj", r=2))
    trained = [name for name, parameter in lora.named_parameters() if parameter.requires_grad]
    assert trained and all("language_model" in name and "lora_" in name for name in trained)
    torch.testing.assert_close(lora(**inputs).logits, before)
    optimizer = torch.optim.SGD([p for p in lora.parameters() if p.requires_grad], lr=1.0)
    frozen = {name: p.clone() for name, p in lora.named_parameters() if not p.requires_grad}
    for _ in range(2):
        optimizer.zero_grad()
        lora(**inputs, labels=inputs["input_ids"].clamp(max=422)).loss.backward()
        optimizer.step()
    assert all(torch.equal(p, frozen[name]) for name, p in lora.named_parameters() if name in frozen)
    assert not torch.allclose(lora(**inputs).logits, before)


def test_saved_folder_loads_where_the_package_is_not_installed(tmp_path):
    """Remote code: a process that cannot import the package loads the folder and gets the same logits."""
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.save({"inputs": inputs, "logits": model(**inputs).logits}, tmp_path / "expected.pt")
    script = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'llava_uhd':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModel, AutoModelForImageTextToText
expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True).eval()
with torch.no_grad():
    torch.testing.assert_close(model(**expected["inputs"]).logits, expected["logits"], rtol=0, atol=1e-5)
assert AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True).vision_tower is not None
assert not any(name.split('.')[0] == 'llava_uhd' for name in sys.modules)
print("same logits")
"""
    environment = {"HF_HOME": str(tmp_path / "cache"), "PATH": "", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.stdout.strip().endswith("same logits"), result.stderr


def test_generate_from_embeddings():
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    with torch.no_grad():
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        images = {name: inputs[name] for name in ("pixel_values", "view_shapes", "num_views", "grids")}
        features = torch.cat(model.get_image_features(**images).pooler_output)
        embeds = model.model.embed_tokens(inputs["input_ids"], features)
        for options in ({}, {"num_beams": 2}, {"use_cache": False}):
            from_ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
            answer = model.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False, **options)
            assert torch.equal(answer, from_ids[:, inputs["input_ids"].shape[1] :])
    assert expected.shape[1] > 0


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 2}], ids=["assistant", "prompt lookup"])
def test_assisted_generation(options):
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    if not options:
        options = {"assistant_model": build_model(config, seed=1)}
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False, **options), expected)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_has_either_name(name):
    """Transformers 5.24 renames `past_key_values` to `cache`; `forward` takes both with every version."""
    from transformers import DynamicCache

    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        expected = model(input_ids=ids, **inputs).logits[:, -1]
        cache = DynamicCache(config=config.text_config)
        outputs = model(input_ids=ids[:, :-1], **inputs, **{name: cache}, use_cache=True)
        assert outputs[CACHE_NAME] is cache
        step = model(input_ids=ids[:, -1:], **{name: cache}, use_cache=True).logits[:, -1]
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="past_key_values and cache"):
        model(input_ids=ids[:, -1:], past_key_values=cache, cache=cache)


def test_text_beside_no_images_is_text():
    config = small_config()
    model, ids = build_model(config), torch.tensor([[1, 5, 6]])
    images = dict(LlavaUhdImageProcessor(view_size=56)([], return_tensors="pt"))
    with torch.no_grad():
        assert model.get_image_features(**images).pooler_output == []
        assert torch.equal(model(input_ids=ids, **images).logits, model(input_ids=ids).logits)
        for beams in (1, 2):
            answer = model.generate(ids, max_new_tokens=3, do_sample=False, num_beams=beams)
            assert torch.equal(
                model.generate(ids, **images, max_new_tokens=3, do_sample=False, num_beams=beams), answer
            )


def test_fixed_positions_stay_as_they_are():
    model = build_model(small_config()).requires_grad_(False).requires_grad_(True)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.multi_modal_projector.positions"]


def test_it_is_a_multimodal_language_model_to_releases_that_know_one(tmp_path):
    multimodal = getattr(__import__("transformers"), "AutoModelForMultimodalLM", None)
    if multimodal is None:
        pytest.skip("a release without AutoModelForMultimodalLM")
    build_model(small_config()).save_pretrained(tmp_path)
    assert type(multimodal.from_pretrained(tmp_path)) is LlavaUhdForConditionalGeneration
