"""Writes the trained model as a folder that `from_pretrained` reads."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from ...model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from ...model.processing_llava_uhd import LlavaUhdProcessor
from .setting import build_config
from .tokenizer import BOS_ID, CHAT_TEMPLATE, EOS_ID, PAD_ID, build_tokenizer


def save_folder(weights: Path, folder: Path) -> None:
    """Model, tokenizer, processor and chat template, in float32."""
    config = build_config()
    model = LlavaUhdForConditionalGeneration(config)
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=64, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    model.save_pretrained(folder)
    processor = LlavaUhdProcessor.from_config(config, build_tokenizer(), chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)
