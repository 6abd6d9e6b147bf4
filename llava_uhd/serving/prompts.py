"""From messages to what the engine works on: token ids, and images that may have been encoded before."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from PIL import Image

from ..answering import Message
from ..model.messages import as_parts
from .bounded import BoundedCache
from .features import EncodedImage, Key, content_hash
from .generation import DeadlineExceeded
from .images import decode, open_image

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


@dataclass
class _Opened:
    """An image of a request before it is decoded.

    Attributes:
        name: what an error calls it.
        key: of the features' cache.
        max_slices: most slices; None as the model was trained.
        image: opened or decoded; None if the cache has it.
        encoded: from the cache, or cut into views.
    """

    name: str
    key: Key
    max_slices: int | None
    image: Image.Image | None
    encoded: EncodedImage | None = None


class PromptBuilder:
    """Builds prompts, on any thread; tokenizers allow one at a time.

    Args:
        processor: of the model.
        features: cache of encoded images.
        max_pixels: most pixels of an image; None as the processor says.
        max_total_pixels: most pixels of all images of a prompt; None for no limit.
        context: tokens that a prompt may have; None for no limit.
        image_seconds: seconds that decoding and cutting the images of a prompt may take; None for no limit.
    """

    def __init__(
        self,
        processor: "LlavaUhdProcessor",
        features: BoundedCache[Key, EncodedImage],
        max_pixels: int | None,
        max_total_pixels: int | None = None,
        context: int | None = None,
        image_seconds: float | None = None,
    ):
        self.processor = processor
        self.features = features
        self.max_pixels = processor.image_processor.max_pixels if max_pixels is None else max_pixels
        self.max_total_pixels = max_total_pixels
        self.context = context
        self.image_seconds = image_seconds
        self._tokenizing = threading.Lock()

    def build(self, messages: Sequence[Message], max_slices: int | None = None, deadline: float = math.inf) -> Prompt:
        """Return the prompt of a conversation.

        Sizes are read first: nothing is decoded before all images together are known to fit context and limits.

        Args:
            messages: turns with `role` and `content`, a string or parts of type `text` and `image`; an image is a PIL
                image, encoded bytes, or the path of a file as `Path`. Strings are no images here: they may come from
                anywhere. A part of type `image` may name its own `max_slices`.
            max_slices: most slices per image; None as the model was trained.
            deadline: on the clock of `time.monotonic`.

        Raises:
            ValueError: an image cannot be read, or they are too many or too large, or take too long to decode.
            DeadlineExceeded: the deadline is over.
        """
        contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
        parts = [part for content in contents for part in content if part["type"] == "image"]
        images = self._images(parts, max_slices, deadline)
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

    def _images(
        self, parts: Sequence[Message], max_slices: int | None, deadline: float
    ) -> list[tuple[Key, EncodedImage]]:
        """Return the images of a prompt with their keys, cut into views unless they are cached."""
        end = deadline if self.image_seconds is None else min(deadline, time.monotonic() + self.image_seconds)
        try:
            opened: list[_Opened] = []
            num_tokens = num_pixels = 0
            for index, part in enumerate(parts, 1):
                image = self._open(part["image"], part.get("max_slices", max_slices), f"image {index}", end)
                opened.append(image)
                if image.image is not None:
                    num_pixels += math.prod(image.image.size)
                num_tokens += self._num_tokens(image)
                self._check_sums(num_tokens, num_pixels, len(parts))
            return [(image.key, self._encoded(image, end)) for image in opened]
        except DeadlineExceeded as error:
            if end == deadline:
                raise
            raise ValueError(f"the images took more than {self.image_seconds:g} s to decode") from error

    def _open(self, source: Any, max_slices: int | None, name: str, end: float) -> _Opened:
        if isinstance(source, Path):
            name = str(source)
            if not source.is_file():
                raise ValueError(f"{name} is not a file" if source.exists() else f"there is no file {name}")
            source = source.read_bytes()
        if isinstance(source, Image.Image):
            source = decode(source, name, self.max_pixels, end)
        elif not isinstance(source, bytes | bytearray):
            raise TypeError(f"{name} must be a PIL image, bytes or a Path, got {type(source).__name__}")
        key = (content_hash(source), max_slices)
        if (cached := self.features.get(key)) is not None:
            return _Opened(name, key, max_slices, None, cached)
        image = source if isinstance(source, Image.Image) else open_image(source, name, self.max_pixels, end)
        return _Opened(name, key, max_slices, image)

    def _num_tokens(self, opened: _Opened) -> int:
        """Return the tokens of an image, at least: before it is decoded, a PNG does not tell whether it is turned."""
        if opened.image is None:
            assert opened.encoded is not None and opened.encoded.features is not None
            return len(opened.encoded.features)
        options = {} if opened.max_slices is None else {"max_slices": opened.max_slices}
        width, height = opened.image.size
        sizes = ((width, height), (height, width))
        return min(self.processor.image_layout(*size, **options).num_image_tokens for size in sizes)

    def _check_sums(self, num_tokens: int, num_pixels: int, num_images: int) -> None:
        if self.max_total_pixels is not None and num_pixels > self.max_total_pixels:
            raise ValueError(
                f"the images together have more than the {self.max_total_pixels} pixels allowed: send fewer or smaller"
            )
        if self.context is not None and num_tokens >= self.context:
            raise ValueError(
                f"the images alone have {num_tokens} tokens or more, and the model's context is {self.context}: take "
                f"fewer slices or images"
            )

    def _encoded(self, opened: _Opened, end: float) -> EncodedImage:
        """Return an image cut into views; afterwards nothing holds its pixels but the views."""
        if opened.encoded is not None:
            return opened.encoded
        assert opened.image is not None
        image, opened.image = decode(opened.image, opened.name, self.max_pixels, end), None
        if time.monotonic() > end:
            raise DeadlineExceeded("the images took too long to decode")
        options = {} if opened.max_slices is None else {"max_slices": opened.max_slices}
        return EncodedImage(dict(self.processor.image_processor(image, return_tensors="pt", **options)))
