"""What stands beside the weights: config, processor, generation config, the code for `trust_remote_code`."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
from ..registration import LlavaUhdProcessor

IMAGE_TOKEN = "<image>"
AUTO_CLASSES = {
    "AutoConfig": LlavaUhdConfig,
    "AutoModel": LlavaUhdModel,
    "AutoModelForImageTextToText": LlavaUhdForConditionalGeneration,
}


def write_package(
    folder: Path,
    config: LlavaUhdConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    generation: dict[str, Any],
) -> None:
    """Writes all but the weights and the model card.

    Args:
        folder: to write into.
        config: whose `image_token_id` agrees with the tokenizer.
        tokenizer: of the language model.
        chat_template: name of one in `chat_templates`.
        generation: of a `GenerationConfig`.
    """
    tokenizer.padding_side = "left"  # what is generated stands to the right of every prompt of a batch
    LlavaUhdProcessor.from_config(config, tokenizer, chat_template).save_pretrained(folder)
    GenerationConfig(**generation).save_pretrained(folder)
    write_code(folder, config)


def write_code(folder: Path, config: LlavaUhdConfig) -> None:
    """Writes the config, and the code that it names, so that `trust_remote_code` needs no package."""
    config.auto_map = {
        auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in AUTO_CLASSES.items()
    }
    config.save_pretrained(folder)
    custom_object_save(meta_model(config), folder)


def meta_model(config: LlavaUhdConfig) -> LlavaUhdForConditionalGeneration:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return LlavaUhdForConditionalGeneration(config)


def state_shapes(config: LlavaUhdConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights; of a tied head the embedding alone."""
    shapes = {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes
