"""Loading by name, and with a quantized language model."""

import shutil

import pytest
import torch

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration, LlavaUhdProcessor, loading
from llava_uhd.loading import is_imitated, load
from llava_uhd.quantization import quantization_config
from llava_uhd.training.assembly import _read
from llava_uhd.training.recipe import ModelRecipe
from tests.conftest import build_model, small_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory, qwen_tokenizer):
    path = tmp_path_factory.mktemp("model")
    values = small_config().to_dict()
    # 4-bit layers quantize blocks of 64, and on some CPUs want whole ones in every row.
    values["text_config"] |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = LlavaUhdConfig(**values)
    build_model(config).save_pretrained(path)
    LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen").save_pretrained(path)
    return path


def quantized_names(model: torch.nn.Module) -> set[str]:
    kinds = ("Linear4bit", "Linear8bitLt")
    return {name for name, module in model.named_modules() if type(module).__name__ in kinds}


def linear_names(model: torch.nn.Module, prefix: str) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(prefix)}


def test_training_quantizes_the_modules_that_loading_does(folder):
    """Quantize by name: all linear layers of the language model, and none besides."""
    pytest.importorskip("bitsandbytes")
    recipe = ModelRecipe(start=str(folder))
    trained, _ = _read(recipe, "nf4")
    loaded, _ = load(str(folder), device="cpu", dtype="float32", quantization="4bit")
    names = quantized_names(trained)
    assert len(names) == 14 and names == quantized_names(loaded) == linear_names(loaded, "model.language_model.")
    assert linear_names(trained, "model.vision_tower.") and linear_names(trained, "model.multi_modal_projector.")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_only_the_language_model_is_quantized(folder, bits):
    pytest.importorskip("bitsandbytes")
    quantized, _ = load(str(folder), device="cpu", dtype="float32", quantization=bits)
    assert quantized_names(quantized) == linear_names(quantized, "model.language_model.")
    assert type(quantized.lm_head) is torch.nn.Linear
    plain, _ = load(str(folder), device="cpu", dtype="float32")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, actual = plain(input_ids=ids).logits, quantized(input_ids=ids).logits
    error = (actual - expected).norm() / expected.norm()
    assert 0 < error < 0.3


def test_unknown_quantization():
    with pytest.raises(ValueError, match="unknown quantization '3bit': choose one of 8bit, 4bit"):
        quantization_config("3bit")


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module", params=HALVES)
def half_folder(request, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    shutil.copytree(folder, path)
    model, _ = load(str(folder), device="cpu", dtype="float32")
    model.to(HALVES[request.param]).save_pretrained(path)
    return path, HALVES[request.param]


def test_the_own_dtype_is_kept_where_the_processor_multiplies_in_it(half_folder, monkeypatch):
    path, dtype = half_folder
    model, _ = load(str(path), device="cpu")
    assert model.dtype == (torch.float32 if is_imitated(dtype) else dtype)
    monkeypatch.setattr(loading, "is_imitated", lambda dtype: False)
    assert load(str(path), device="cpu")[0].dtype == dtype


def test_a_processor_without_products_in_halves_computes_in_float32(half_folder, monkeypatch):
    path, dtype = half_folder
    monkeypatch.setattr(loading, "is_imitated", lambda dtype: dtype in HALVES.values())
    widened, _ = load(str(path), device="cpu")
    assert {parameter.dtype for parameter in widened.parameters()} == {torch.float32}
    expected, _ = load(str(path), device="cpu", dtype="float32")
    torch.testing.assert_close(widened.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert load(str(path), device="cpu", dtype=str(dtype).removeprefix("torch."))[0].dtype == dtype


def test_a_large_model_is_left_as_it_is_with_the_memory_that_float32_takes(half_folder, monkeypatch, caplog):
    path, dtype = half_folder
    monkeypatch.setattr(loading, "is_imitated", lambda dtype: True)
    monkeypatch.setattr(LlavaUhdForConditionalGeneration, "num_parameters", lambda model: 7 * 10**9)
    model, _ = load(str(path), device="cpu")
    assert model.dtype == dtype
    assert "28 GB" in caplog.text and "--dtype float32" in caplog.text


def test_float32_is_never_imitated():
    assert not is_imitated(torch.float32)


def test_without_onednn_halves_are_imitated(monkeypatch):
    """PyTorch is built without it on some machines, where its operators do not exist."""
    monkeypatch.setattr(torch.ops, "mkldnn", torch.ops.there_is_none)
    assert is_imitated(torch.bfloat16) and is_imitated(torch.float16) and not is_imitated(torch.float32)


def test_the_hub_is_asked_once_about_a_model(monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "ask_hub", lambda model: (asked.append(model), (None, False))[1])
    assert [loading.resolve("no-owner/of-this-test") for _ in range(3)] == ["no-owner/of-this-test"] * 3
    assert asked == ["no-owner/of-this-test"]
