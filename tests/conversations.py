"""The published conversations, their tokenizers and processors, for tests of prompts and labels."""

import json
from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

from llava_uhd.model.chat_templates import CHAT_TEMPLATES
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor

GOLDENS = Path(__file__).parent / "goldens"
CASES = json.loads((GOLDENS / "conversation.json").read_text())["cases"]
PLACEHOLDER = -200
IMAGE = Image.new("RGB", (56, 56), "red")


def llama_tokenizer(*, legacy: bool = False) -> PreTrainedTokenizerBase:
    """A small sentencepiece tokenizer in Vicuna's place, converted by transformers."""
    return LlamaTokenizer.from_pretrained(GOLDENS / "tokenizers" / "llama_tiny", legacy=legacy)


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    """A small byte-level tokenizer in Qwen2's place."""
    return AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")


def one_token_processor(tokenizer: PreTrainedTokenizerBase, template: str) -> LlavaUhdProcessor:
    """A processor whose images are one token each, as the placeholders of the reference implementation."""
    return LlavaUhdProcessor(
        LlavaUhdImageProcessor(max_slices=1), tokenizer, chat_template=CHAT_TEMPLATES[template], query_grid=1
    )


def messages(conversation: list[dict[str, str]]) -> list[dict[str, str]]:
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in conversation]


def encode(processor: LlavaUhdProcessor, text: str) -> list[int]:
    """Ids of a prompt, with the published placeholder for its images."""
    images = [IMAGE] * text.count("<image>") or None
    ids = processor(text=text, images=images)["input_ids"][0]
    return [PLACEHOLDER if token == processor.image_token_id else token for token in ids]
