"""Sample processing: conversation to token ids, labels and packed pixels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from PIL import Image

from ...model.chat_templates import CHAT_TEMPLATES
from ...model.image_processing_llava_uhd import enlarge
from ...model.images import decode_image
from ...model.processing_llava_uhd import LlavaUhdProcessor
from ..labels import IGNORE, answer_labels, chatml_labels
from ..recipe import DataRecipe
from .conversations import IMAGE, BadSample, Conversation

# Reference training value, independent of the model's own limit.
VARIED_SLICES = 6
VARIED_SHARE = 0.1
TEXTVQA_SIDE = 1024


@dataclass(frozen=True)
class Encoded:
    """Processed sample.

    Attributes:
        input_ids: token ids, (length,).
        labels: labels, (length,); positions with label -100 are ignored.
        images: `pixel_values`, `view_shapes`, `num_views` and `grids` of the image processor; empty if text-only.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    images: dict[str, torch.Tensor]


class Encoder:
    """Convert conversations to model inputs with a model's processor, as configured by a recipe."""

    def __init__(self, processor: LlavaUhdProcessor, data: DataRecipe):
        self.processor, self.data = processor, data
        self.template = CHAT_TEMPLATES[data.template] if data.template else processor.chat_template
        if not self.template or "generation" not in self.template:
            raise ValueError(
                "the chat template marks no answers ({% generation %}): name data.template, one of "
                + ", ".join(CHAT_TEMPLATES)
            )
        if data.vary_images and processor.image_processor.letter_height is not None:
            raise ValueError(
                "data.vary_images enlarges images, and the model's letter_height of "
                f"{processor.image_processor.letter_height} would undo it: leave one of them out"
            )
        self.chatml = None
        if data.labels == "published" and data.template == "qwen":
            self.chatml = self._chatml_ids()

    def _chatml_ids(self) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        learned = {start, end, *newline}
        separators = {self.processor.slice_separator_id, self.processor.row_separator_id}
        if separators & learned:
            raise ValueError(
                f"data.labels: the published labels learn the ids {sorted(learned)} everywhere, and the separators "
                f"between slices, {sorted(separators)}, are among them: take answers"
            )
        return {
            "turn_start": start,
            "assistant_header": tokenizer("assistant\n", add_special_tokens=False)["input_ids"],
            "always_learned": learned,
            "ignored": {self.processor.image_token_id},
        }

    def __call__(self, conversation: Conversation, images: Sequence[Any], seed: str) -> Encoded:
        """Encode one sample.

        Args:
            conversation: conversation of the sample.
            images: images in any form that the image processor can decode.
            seed: random seed of the sample.

        Raises:
            BadSample: an image is broken, no target tokens remain, or the images exceed the maximum length.
        """
        rng = random.Random(seed)
        options: dict[str, Any] = {"max_slices": self.data.max_slices} if self.data.max_slices else {}
        messages = self._leading(conversation.messages)
        try:
            images = [decode_image(image) for image in images]
            for image in images:
                fitted = self.processor.image_processor.fit_letters(image, **options)
                self.processor.image_processor.plan(*fitted.size, **options)  # refuses one that is too narrow
        except ValueError as error:
            raise BadSample(str(error)) from error
        if self.data.vary_images:
            named = zip(images, conversation.images, strict=True)
            images = [self._vary(image, name, rng) for image, name in named]
        outputs = self.processor.apply_chat_template(
            messages,
            chat_template=self.template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={**options, "images": images} if images else {},
        )
        input_ids = [int(token) for token in outputs["input_ids"][0]]
        labels = answer_labels(input_ids, outputs["assistant_masks"][0])
        if self.chatml is not None:
            labels = chatml_labels(input_ids, **self.chatml)
        return self._cut(input_ids, labels, _image_inputs(outputs))

    def _leading(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the messages that can be within the longest sequence.

        Every message has at least one token of its own, the mark of its role, except in the template `plain`. Without
        this, rendering a conversation of very many turns takes time quadratic in their number.
        """
        longest = self.data.max_length
        if self.data.template == "plain" or len(messages) <= longest:
            return messages
        for turn, message in enumerate(messages[longest:], start=longest):
            if IMAGE in message["content"]:
                raise BadSample(
                    f"it has {len(messages)} turns and an image in turn {turn}, beyond "
                    f"the longest sequence of {longest}"
                )
        return messages[:longest]

    def _cut(self, input_ids: list[int], labels: list[int], images: dict[str, torch.Tensor]) -> Encoded:
        longest = self.data.max_length
        if self.processor.image_token_id in input_ids[longest:]:
            raise BadSample(
                f"it has {len(input_ids)} tokens, and image tokens beyond the longest sequence of {longest}"
            )
        input_ids, labels = input_ids[:longest], labels[:longest]
        if all(label == IGNORE for label in labels[1:]):
            raise BadSample(f"none of its first {longest} tokens is learned")
        return Encoded(torch.tensor(input_ids), torch.tensor(labels), images)

    def _vary(self, image: Image.Image, name: Any, rng: random.Random) -> Image.Image:
        """Vary image sizes as in the reference: enlarged text, and many slices of small images."""
        drawn = rng.random() < VARIED_SHARE
        if not isinstance(name, str):
            name = str(name.get("path"))
        if "TextVQA" in name or "textvqa" in name:
            return enlarge(image, TEXTVQA_SIDE)
        if not drawn or self.processor.image_processor.plan(*image.size).num_slices == VARIED_SLICES:
            return image
        width, height = image.size
        scale = sqrt(VARIED_SLICES * self.processor.image_processor.view_size**2 / (width * height))
        size = max(int(width * scale), 1), max(int(height * scale), 1)
        return image.resize(size, Image.Resampling.BICUBIC)


def _image_inputs(outputs: Any) -> dict[str, torch.Tensor]:
    names = ("pixel_values", "view_shapes", "num_views", "grids")
    return {name: torch.as_tensor(outputs[name]) for name in names if name in outputs}
