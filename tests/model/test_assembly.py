"""A model from an encoder and a language model: everything that follows from the parts comes out right."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_uhd import LlavaUhdForConditionalGeneration, load
from llava_uhd.checkpoints.tokenizers import read_tokenizer
from tests.conversations import GOLDENS

VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56)
TEXT = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
IMAGE = Image.new("RGB", (200, 90), (255, 0, 0))
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def siglip() -> SiglipVisionModel:
    return SiglipVisionModel(SiglipVisionConfig(**VISION, patch_size=14))


def clip() -> CLIPVisionModel:
    return CLIPVisionModel(CLIPVisionConfig(**VISION, patch_size=14))


def qwen3(vocab_size: int = 500, tied: bool = False) -> Qwen3ForCausalLM:
    config = Qwen3Config(**TEXT, head_dim=12, vocab_size=vocab_size, tie_word_embeddings=tied, eos_token_id=420)
    return Qwen3ForCausalLM(config)


def chatml_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tower, mean", [(siglip, 0.5), (clip, 0.48145466)])
def test_parts_given_as_objects(tmp_path, tower, mean, tied):
    torch.manual_seed(0)
    vision_tower, language_model = tower(), qwen3(tied=tied)
    ids = torch.arange(20)[None]
    expected = language_model(input_ids=ids).logits
    model, processor = LlavaUhdForConditionalGeneration.from_parts(
        vision_tower, language_model, chatml_tokenizer(), projector={"levels": [1, 2], "query_grid": 3}
    )
    assert processor.image_processor.image_mean[0] == mean
    tokenizer = processor.tokenizer
    assert tokenizer.decode([model.config.slice_separator_id]) == ","
    assert tokenizer.decode([model.config.row_separator_id]) == "\n"
    assert model.config.image_token_id == processor.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert model.config.projector.num_attention_heads == 1  # 48 channels
    assert model.generation_config.eos_token_id == 420
    assert torch.equal(model.eval()(input_ids=ids).logits, expected)
    content = [{"type": "image", "image": IMAGE}, {"type": "text", "text": "the <image> tag?"}]
    inputs = processor.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    text = processor.decode(inputs["input_ids"][0])
    assert "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>" in text
    assert text.endswith("\nthe <image> tag?<|im_end|>\n<|im_start|>assistant\n")
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = load(str(tmp_path), device="cpu")
    torch.testing.assert_close(loaded(**inputs).logits, logits, rtol=1e-5, atol=1e-5)
    assert again.chat_template == processor.chat_template


def test_parts_given_by_name_and_a_sentencepiece_tokenizer(tmp_path):
    clip().save_pretrained(tmp_path / "tower")
    LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=500)).save_pretrained(tmp_path / "llm")
    read_tokenizer(str(GOLDENS / "tokenizers" / "llama_tiny")).save_pretrained(tmp_path / "llm")
    model, processor = LlavaUhdForConditionalGeneration.from_parts(
        str(tmp_path / "tower"), str(tmp_path / "llm"), chat_template="vicuna", layout="sequential", max_slices=3
    )
    assert (model.config.layout, processor.layout, processor.image_processor.max_slices) == ("sequential",) * 2 + (3,)
    for name, text in (("slice_separator_id", ","), ("row_separator_id", "\n")):
        assert processor.tokenizer.decode([getattr(model.config, name)]) == text
    with pytest.raises(ValueError, match="template qwen ends answers with <|im_end|>"):
        LlavaUhdForConditionalGeneration.from_parts(
            str(tmp_path / "tower"), str(tmp_path / "llm"), chat_template="qwen"
        )


def test_parts_that_do_not_fit():
    build = LlavaUhdForConditionalGeneration.from_parts
    with pytest.raises(ValueError, match="comes with its tokenizer"):
        build(clip(), qwen3())
    with pytest.raises(ValueError, match="must be a CLIPVisionModel or SiglipVisionModel, got Qwen3ForCausalLM"):
        build(qwen3(), qwen3(), chatml_tokenizer())
    with pytest.raises(ValueError, match="slice_separator_id .* must be a whole number from 0 to 499, got 500"):
        build(clip(), qwen3(), chatml_tokenizer(), slice_separator_id=500)
    scaled = GraniteConfig(**TEXT, vocab_size=500, logits_scaling=8.0)
    with pytest.raises(ValueError, match="changes its logits after the head"):
        build(clip(), GraniteForCausalLM(scaled), chatml_tokenizer())
    tied = GPT2Config(n_embd=48, n_layer=1, n_head=4, vocab_size=500)
    with pytest.raises(ValueError, match="ties its head to another layer than embed_tokens"):
        build(clip(), GPT2LMHeadModel(tied), chatml_tokenizer())


def test_the_example_trains_saves_loads_and_answers(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "own_encoder_and_llm.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path / "own")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert done.stdout.splitlines()[-1].startswith("answer: ")
