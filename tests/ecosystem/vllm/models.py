"""Model folders: small random models with the language models and the vocabularies of public checkpoints."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration, LlavaUhdProcessor
from llava_uhd.checkpoints.tokenizers import from_sentencepiece

TOKENIZERS = Path(__file__).parents[2] / "goldens" / "tokenizers"
SCALE = 3.0  # of the random weights: so the image makes a difference to the answer, and two tokens are rarely close


def vicuna_like(folder: Path) -> Path:
    """Write a Llama whose image token and separators lie behind the vocabulary, with SentencePiece's tokens."""
    tokenizer = from_sentencepiece(TOKENIZERS / "llama_tiny")
    return _write(folder, "llama", "vicuna", tokenizer, "stitched", type="hiwin", levels=[1, 2])


def qwen2_like(folder: Path) -> Path:
    """Write a Qwen2 with the v1 resampler and slices one after another."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "qwen_tiny")
    return _write(folder, "qwen2", "qwen", tokenizer, "sequential", type="resampler")


def qwen3_like(folder: Path) -> Path:
    """Write a Qwen3 with the MLP projector, whose number of tokens depends on the shape of a view."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "qwen_tiny")
    return _write(folder, "qwen3", "qwen", tokenizer, "stitched", type="mlp")


def _write(
    folder: Path, text: str, template: str, tokenizer: PreTrainedTokenizerBase, layout: str, **projector: object
) -> Path:
    vocab_size = len(tokenizer)
    config = LlavaUhdConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={
            "model_type": text,
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": vocab_size,
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": 0,
        },
        projector={"query_grid": 4, "num_attention_heads": 4, **projector},
        layout=layout,
        image_token_id=vocab_size,
        slice_separator_id=vocab_size // 3,
        row_separator_id=vocab_size // 2,
        max_slices=6,
    )
    processor = LlavaUhdProcessor.from_config(config, tokenizer, template)
    torch.manual_seed(0)
    model = LlavaUhdForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SCALE)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
