"""From messages to what the engine works on: token ids, and images that may have been encoded before."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from ..answering import Message
from ..model.image_processing_llava_uhd import decode_image
from ..model.messages import as_parts
from .bounded import BoundedCache
from .features import EncodedImage, Key, content_hash

if TYPE_CHECKING:
    from ..model.processing_llava_uhd import LlavaUhdProcessor

SHAPE_INPUTS = ("view_shapes", "num_views", "grids")


@dataclass
class Prompt:
    """A conversation ready for the model.

    Attributes:
        input_ids: (1, length), an image token wherever a feature will stand.
        images: in the order of their tokens, with the key of each.
        num_image_tokens: image tokens in `input_ids`.
        num_prefix_tokens: tokens up to the last image's last one; 0 without images, or if nothing comes after.
        num_cached_images: how many of the images were known when the model came to them.
    """

    input_ids: torch.Tensor
    images: list[tuple[Key, EncodedImage]]
    num_image_tokens: int
    num_prefix_tokens: int
    num_cached_images: int = 0


class PromptBuilder:
    """Builds prompts, on any thread; tokenizers allow one at a time."""

    def __init__(
        self, processor: "LlavaUhdProcessor", features: BoundedCache[Key, EncodedImage], max_pixels: int | None
    ):
        self.processor = processor
        self.features = features
        self.max_pixels = processor.image_processor.max_pixels if max_pixels is None else max_pixels
        self._tokenizing = threading.Lock()

    def build(self, messages: Sequence[Message], max_slices: int | None) -> Prompt:
        """The prompt of a conversation.

        Args:
            messages: turns with `role` and `content`, a string or parts of type `text` and `image`; an image is a PIL
                image, encoded bytes, or the path of a file as `Path`. Strings are no images here: they may come from
                anywhere. A part of type `image` may name its own `max_slices`.
            max_slices: most slices per image; None as the model was trained.

        Raises:
            ValueError: an image cannot be read, or a text holds the image placeholder.
        """
        contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
        parts = [part for content in contents for part in content if part["type"] == "image"]
        images = [
            self.image(part["image"], part.get("max_slices", max_slices), f"image {index}")
            for index, part in enumerate(parts)
        ]
        shapes = {
            name: torch.cat([image.inputs[name] for _, image in images]) for name in (SHAPE_INPUTS if images else ())
        }
        with self._tokenizing:
            try:
                text = self.processor.apply_chat_template(
                    as_parts(messages), add_generation_prompt=True, tokenize=False
                )
            except TemplateError as error:
                raise ValueError(f"the model's chat template refuses the messages: {error}") from error
            ids = self.processor.encode_prompt(text, shapes)
        places = [place for place, token in enumerate(ids) if token == self.processor.image_token_id]
        num_prefix_tokens = places[-1] + 1 if places and places[-1] + 1 < len(ids) else 0
        return Prompt(torch.tensor([ids]), images, len(places), num_prefix_tokens)

    def image(self, source: Any, max_slices: int | None, name: str) -> tuple[Key, EncodedImage]:
        """An image and its key; cut into views unless it is known."""
        if isinstance(source, Path):
            name = str(source)
            if not source.is_file():
                raise ValueError(f"{name} is not a file" if source.exists() else f"there is no file {name}")
            source = source.read_bytes()
        key = (content_hash(source), max_slices)
        if (known := self.features.get(key)) is not None:
            return key, known
        picture = decode_image(source, name=name, max_pixels=self.max_pixels)
        options = {} if max_slices is None else {"max_slices": max_slices}
        return key, EncodedImage(dict(self.processor.image_processor(picture, return_tensors="pt", **options)))
