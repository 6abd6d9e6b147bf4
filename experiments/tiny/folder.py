"""Writes the trained model as a folder that `from_pretrained` reads, in bfloat16."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig

from llava_uhd.generation.sampling import MAX_NEW_TOKENS
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor
from llava_uhd.model_folder import seal_model

from ..tiny_v1.folder import _without_code as without_code
from ..tiny_v1.tokenizer import BOS_ID, CHAT_TEMPLATE, EOS_ID, PAD_ID, build_tokenizer
from .locations import location_tokens
from .network import Network, assemble
from .setting import Setting, build_config
from .trainer import CHECKPOINT


def save_folder(out: Path, setting: Setting) -> Path:
    """The model of the checkpoint in a run's folder: weights, tokenizer, processor and chat template.

    Args:
        out: folder of the run; `model` is written in it.
        setting: sizes of the model.
    """
    network = Network(setting)
    network.load_state_dict(torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")["network"])
    folder = out / "model"
    model = assemble(network).bfloat16()
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    tokenizer = build_tokenizer(location_tokens(setting.query_grid, setting.max_slices))
    tokenizer.model_max_length = setting.context
    processor = LlavaUhdProcessor.from_config(build_config(setting), tokenizer, chat_template=CHAT_TEMPLATE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    for file in folder.glob("*config.json"):
        file.write_text(json.dumps(without_code(json.loads(file.read_text())), indent=2) + "\n")
    seal_model(folder)
    return folder
