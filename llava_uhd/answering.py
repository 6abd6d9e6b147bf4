"""From messages to model inputs and from there to an answer: what command line, server and evaluation share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BatchFeature
    from transformers.generation.streamers import BaseStreamer

    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model.processing_llava_uhd import LlavaUhdProcessor

Message = dict[str, Any]


def question_message(images: Sequence[Any], question: str) -> Message:
    """A user's turn: the images, then the question. Images are whatever the image processor takes."""
    content: list[Message] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def prepare(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    messages: list[Message],
    max_new_tokens: int,
    **images_kwargs: Any,
) -> "BatchFeature":
    """The inputs of one conversation on the model's device, ready for `generate`.

    Args:
        messages: turns with `role` and `content`, the last one the user's.
        max_new_tokens: room that the context must leave for the answer.
        images_kwargs: for the image processor, `max_slices` for instance.

    Raises:
        ValueError: the prompt and the answer do not fit the context, or an image cannot be read.
    """
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
    inputs = processor(images=images or None, text=prompt, return_tensors="pt", **images_kwargs)
    length, context = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length + max_new_tokens > context:
        raise ValueError(
            f"the prompt has {length} tokens and the answer may have {max_new_tokens}, "
            f"more than the model's context of {context}: take fewer slices or images, or a shorter question"
        )
    return inputs.to(model.device)


def answer(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    inputs: "BatchFeature",
    max_new_tokens: int,
    streamer: "BaseStreamer | None" = None,
    **generate_kwargs: Any,
) -> str:
    """The text that the model adds to prepared inputs, without special tokens."""
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **generate_kwargs)
    new_tokens = generated[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new_tokens, skip_special_tokens=True).strip()
