"""Prompts: messages to token ids, images to views, and the length of the prefix that further questions share.

Shapes: T image tokens of hidden size E, V views, P patches of p x p pixels.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from PIL import Image

from ..model.messages import Message, as_parts, escape_text

if TYPE_CHECKING:
    from transformers import BatchFeature

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor

ImageKey = tuple[str, int | None]  # content hash, maximum number of slices
SHAPE_INPUTS = ("view_shapes", "num_views", "grids")


def question_message(images: Sequence[Any], question: str) -> Message:
    """Return a user message: the images, then the question.

    Args:
        images: anything the image processor takes.
        question: text of the question.
    """
    content: list[Message] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def image_parts(messages: Sequence[Message]) -> list[Message]:
    """Return the content parts of type `image` in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if part["type"] == "image"]


@dataclass
class EncodedImage:
    """One image: outputs of the image processor, and features once the model has encoded it.

    Attributes:
        inputs: outputs of the image processor: `num_views` (1,), `view_shapes` (V, 2), `grids` (1, 2), and
            `pixel_values` (P, 3·p·p) until the image is encoded.
        key: cache key; None if the image is not cached.
        features: (T, E) image tokens; None until the image is encoded.
    """

    inputs: dict[str, torch.Tensor]
    key: ImageKey | None = None
    features: torch.Tensor | None = field(default=None, repr=False)


@dataclass
class Prompt:
    """A conversation ready for the model.

    Attributes:
        input_ids: (1, length) token ids with an image token for every image feature.
        images: images in the order of their tokens.
        num_image_tokens: number of image tokens in `input_ids`.
        num_prefix_tokens: number of tokens up to and including the last image token; 0 without images, or if no token
            follows.
    """

    input_ids: torch.Tensor
    images: list[EncodedImage]
    num_image_tokens: int
    num_prefix_tokens: int


def content_hash(source: bytes | bytearray | Image.Image) -> str:
    """Return the SHA-256 of an image's encoded bytes, or of the pixels of a decoded image.

    Args:
        source: encoded bytes, or an upright RGB image as `decode_image` returns it: in other modes palette,
            transparency and orientation tag also change the visible image.
    """
    if not isinstance(source, Image.Image):
        return hashlib.sha256(source).hexdigest()
    if source.mode != "RGB":
        raise ValueError(f"the image must be RGB, got {source.mode}")
    digest = hashlib.sha256(f"pixels of {source.size}:".encode())
    digest.update(source.tobytes())
    return digest.hexdigest()


def encode_image(
    processor: "LlavaUhdProcessor", image: Any, max_slices: int | None = None, key: ImageKey | None = None
) -> EncodedImage:
    """Return an image cut into views.

    Args:
        processor: processor of the model.
        image: anything the image processor takes.
        max_slices: maximum number of slices; None takes the model's default.
        key: cache key of the image.
    """
    options = {} if max_slices is None else {"max_slices": max_slices}
    return EncodedImage(dict(processor.image_processor(image, return_tensors="pt", **options)), key)


def render(processor: "LlavaUhdProcessor", messages: Sequence[Message]) -> str:
    """Return the text of a conversation by the chat template, ready for an answer.

    Raises:
        ValueError: the chat template refuses the messages, or a text has half a character.
    """
    special = processor.tokenizer.all_special_tokens if processor.can_escape else ()
    plain = [escape_text(message, special) for message in as_parts(messages)]
    for part in (part for message in plain for part in message["content"] if part.get("type") == "text"):
        if half := re.search("[\ud800-\udfff]", part["text"]):
            raise ValueError(f"the text {part['text']!a:.80} is no valid Unicode: half a character at {half.start()}")
    try:
        return processor.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses the messages: {error}") from error


def encode_prompt(
    processor: "LlavaUhdProcessor", messages: Sequence[Message], images: Sequence[EncodedImage]
) -> Prompt:
    """Return the prompt of a conversation. Tokenizers allow one call at a time.

    Args:
        processor: processor of the model.
        messages: conversation with `role` and `content` per message.
        images: images of the conversation in order.

    Raises:
        ValueError: the chat template refuses the messages.
    """
    shapes = {name: torch.cat([image.inputs[name] for image in images]) for name in (SHAPE_INPUTS if images else ())}
    ids = processor.encode_prompt(render(processor, messages), shapes)
    return Prompt(
        torch.tensor([ids]),
        list(images),
        ids.count(processor.image_token_id),
        prefix_length(ids, processor.image_token_id),
    )


def build_prompt(processor: "LlavaUhdProcessor", messages: Sequence[Message], max_slices: int | None = None) -> Prompt:
    """Return the prompt of a conversation with its images cut into views.

    Args:
        processor: processor of the model.
        messages: conversation with `role` and `content` per message; images are anything the image processor takes.
        max_slices: maximum number of slices per image; None takes the model's default.

    Raises:
        ValueError: an image cannot be read, or the chat template refuses the messages.
    """
    images = [encode_image(processor, part["image"], max_slices) for part in image_parts(messages)]
    return encode_prompt(processor, messages, images)


def prefix_length(ids: Sequence[int], image_token_id: int) -> int:
    """Return the number of tokens up to the last image token; 0 without image tokens or if no token follows."""
    length = next((place + 1 for place in reversed(range(len(ids))) if ids[place] == image_token_id), 0)
    return length if length < len(ids) else 0


def room_for_answer(length: int, context: int, max_new_tokens: int = 1) -> int:
    """Return the number of tokens that a prompt leaves for the answer.

    Args:
        length: number of prompt tokens.
        context: context length of the model in tokens.
        max_new_tokens: number of tokens the answer must have room for.

    Raises:
        ValueError: prompt and answer do not fit the context.
    """
    room = context - length
    if room < max_new_tokens:
        raise ValueError(
            f"the prompt has {length} tokens and the answer may have {max_new_tokens}, more than the model's context "
            f"of {context}: take fewer slices (max_slices) or images, or a shorter question or answer"
        )
    return room


def prepare(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    messages: list[Message],
    max_new_tokens: int,
    **images_kwargs: Any,
) -> "BatchFeature":
    """Return the inputs of transformers' `generate` for one conversation, on the model's device.

    Args:
        model: loaded model.
        processor: processor of the model.
        messages: conversation with `role` and `content` per message, the last one the user's.
        max_new_tokens: number of tokens the answer must have room for.
        images_kwargs: options of the image processor, for instance `max_slices`.

    Raises:
        ValueError: prompt and answer do not fit the context, or an image cannot be read.
    """
    images = [part["image"] for part in image_parts(messages)]
    text = render(processor, messages)
    inputs = processor(images=images or None, text=text, return_tensors="pt", **images_kwargs)
    room_for_answer(inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings, max_new_tokens)
    return inputs.to(model.device)
