"""Files beside the weights: config, processor, generation config, code for `trust_remote_code`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
from ..model.processing_llava_uhd import LlavaUhdProcessor
from .sources import read_json

IMAGE_TOKEN = "<image>"
GENERATION = "generation_config.json"
AUTO_CLASSES = {
    "AutoConfig": LlavaUhdConfig,
    "AutoModel": LlavaUhdModel,
    "AutoModelForImageTextToText": LlavaUhdForConditionalGeneration,
}


def write_package(
    folder: Path,
    config: LlavaUhdConfig,
    tokenizer: PreTrainedTokenizerBase,
    original_config: dict[str, Any],
    sources: list[Path],
) -> None:
    """Write everything except the weights and the model card.

    Args:
        folder: folder to write into.
        config: model config whose `image_token_id` matches the tokenizer.
        tokenizer: tokenizer of the language model.
        original_config: config of the original checkpoint.
        sources: folders that may hold a `generation_config.json`.
    """
    tokenizer.padding_side = "left"  # left padding: generated tokens follow every prompt of a batch
    chat_template = "qwen" if config.text_config.model_type == "qwen2" else "vicuna"
    LlavaUhdProcessor.from_config(config, tokenizer, chat_template).save_pretrained(folder)
    ends = [read_json(file).get("eos_token_id") for part in sources if (file := part / GENERATION).is_file()]
    ends += [original_config.get("eos_token_id"), tokenizer.eos_token_id]
    if chat_template == "qwen":
        ends.append(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    generation_config(tokenizer, ends).save_pretrained(folder)
    write_code(folder, config)


def generation_config(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int | list[int] | None]) -> GenerationConfig:
    """Return a greedy generation config that stops at any end-of-answer token, as in the reference implementation."""
    tokens = [token for end in ends if end is not None for token in (end if isinstance(end, list) else [end])]
    unique = list(dict.fromkeys(tokens))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=unique if len(unique) > 1 else next(iter(unique), None),
        pad_token_id=tokenizer.pad_token_id,
    )


def write_code(folder: Path, config: LlavaUhdConfig) -> None:
    """Write the config and the code it refers to, so that `trust_remote_code` needs no package."""
    config.auto_map = {
        auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in AUTO_CLASSES.items()
    }
    config.save_pretrained(folder)
    custom_object_save(meta_model(config), folder)


def meta_model(config: LlavaUhdConfig) -> LlavaUhdForConditionalGeneration:
    """Return the model on the meta device."""
    with torch.device("meta"):
        return LlavaUhdForConditionalGeneration(config)


def state_shapes(config: LlavaUhdConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights; a tied head is listed as the embedding only."""
    shapes = {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes
