"""Conversion of messages to model inputs and generation of answers, for command line, server and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .confidence import Calibration, Confidence

if TYPE_CHECKING:
    from transformers import BatchFeature
    from transformers.generation.streamers import BaseStreamer

    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model.processing_llava_uhd import LlavaUhdProcessor

Message = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Generated answer.

    Attributes:
        text: answer without special tokens.
        confidence: confidence computed from the probabilities of its tokens.
    """

    text: str
    confidence: Confidence


def question_message(images: Sequence[Any], question: str) -> Message:
    """Return a user's turn: the images, then the question. Images are paths, URLs, bytes, arrays or PIL images."""
    content: list[Message] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def prepare(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    messages: list[Message],
    max_new_tokens: int,
    **images_kwargs: Any,
) -> "BatchFeature":
    """Return the inputs of one conversation on the model's device, ready for `generate`.

    Args:
        messages: turns with `role` and `content`, the last one the user's.
        max_new_tokens: number of tokens of the context reserved for the answer.
        images_kwargs: options of the image processor, for example `max_slices`.

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
    """Generate the answer to one prepared conversation; return its text without special tokens."""
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **generate_kwargs)
    new_tokens = generated[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new_tokens, skip_special_tokens=True).strip()


def answer_with_confidence(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    inputs: "BatchFeature",
    max_new_tokens: int,
    streamer: "BaseStreamer | None" = None,
    calibration: Calibration | None = None,
    **generate_kwargs: Any,
) -> Answer:
    """Generate the answer to one prepared conversation and measure the confidence in it; without beams.

    Args:
        inputs: inputs of one conversation, see `prepare`.
        max_new_tokens: maximum number of new tokens.
        streamer: receives the tokens as they are generated.
        calibration: calibration of the model, see `load_calibration`.
        generate_kwargs: further options of `generate`.
    """
    from .token_probabilities import TokenProbabilities, end_token_ids

    recorder = TokenProbabilities()
    generated = model.generate(
        **inputs, max_new_tokens=max_new_tokens, streamer=streamer, logits_processor=[recorder], **generate_kwargs
    )
    new_tokens = generated[:, inputs["input_ids"].shape[1] :]
    (probabilities,) = recorder.finish(new_tokens, end_token_ids(model))
    text = processor.decode(new_tokens[0], skip_special_tokens=True).strip()
    return Answer(text, Confidence.of(probabilities, calibration))
