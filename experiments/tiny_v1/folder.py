"""Writes the trained model as a folder that `from_pretrained` reads."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor

from .setting import build_config
from .tokenizer import BOS_ID, CHAT_TEMPLATE, EOS_ID, PAD_ID, build_tokenizer


def save_folder(trained: LlavaUhdForConditionalGeneration, folder: Path) -> None:
    """The trained model, tokenizer, processor and chat template, in float32.

    Without the code that other checkpoints carry for machines that lack the package: this one lies inside it.
    """
    config = build_config()
    model = LlavaUhdForConditionalGeneration(config)
    model.load_state_dict(trained.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=64, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    processor = LlavaUhdProcessor.from_config(config, build_tokenizer(), chat_template=CHAT_TEMPLATE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    for file in folder.glob("*config.json"):
        file.write_text(json.dumps(_without_code(json.loads(file.read_text())), indent=2) + "\n")


def _without_code(config: Any) -> Any:
    """A configuration, and those inside it, without naming code beside it."""
    if not isinstance(config, dict):
        return config
    return {name: _without_code(value) for name, value in config.items() if name != "auto_map"}
