"""Loading by name, and with a quantized language model."""

import pytest
import torch

from llava_uhd import LlavaUhdConfig, LlavaUhdProcessor
from llava_uhd.loading import load
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
