"""Loading by name, and with a quantized language model."""

import pytest
import torch

from llava_uhd import LlavaUhdConfig, LlavaUhdProcessor
from llava_uhd.loading import load, quantization_config
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


@pytest.mark.parametrize("bits, linear", [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_only_the_language_model_is_quantized(folder, bits, linear):
    pytest.importorskip("bitsandbytes")
    quantized, _ = load(str(folder), device="cpu", dtype="float32", quantization=bits)
    kinds: dict[str, set[str]] = {}
    for name, module in quantized.named_modules():
        if isinstance(module, torch.nn.Linear):
            kinds.setdefault(name.removeprefix("model.").split(".")[0], set()).add(type(module).__name__)
    assert kinds == {
        "vision_tower": {"Linear"},
        "multi_modal_projector": {"Linear"},
        "language_model": {linear},
        "lm_head": {"Linear"},
    }
    plain, _ = load(str(folder), device="cpu", dtype="float32")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, given = plain(input_ids=ids).logits, quantized(input_ids=ids).logits
    error = (given - expected).norm() / expected.norm()
    assert 0 < error < 0.3


def test_unknown_quantization():
    with pytest.raises(ValueError, match="unknown quantization '3bit': choose one of 8bit, 4bit"):
        quantization_config("3bit")
