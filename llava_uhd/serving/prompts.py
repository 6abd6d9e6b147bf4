"""Prompts of requests: images are opened within limits of size and time, and looked up in the feature cache."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..generation.bounded import BoundedCache
from ..generation.prompt import (
    EncodedImage,
    ImageKey,
    Message,
    Prompt,
    content_hash,
    encode_image,
    encode_prompt,
    image_parts,
)
from .generation import DeadlineExceeded
from .images import decode, open_image

if TYPE_CHECKING:
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@dataclass
class _Opened:
    """An image of a request before it is decoded.

    Attributes:
        name: name of the image in error messages.
        key: key in the feature cache.
        image: opened or decoded image; None if it is cached.
        encoded: cached image, or None.
    """

    name: str
    key: ImageKey
    image: Image.Image | None
    encoded: EncodedImage | None = None


class PromptBuilder:
    """Build prompts on any thread; one tokenizes at a time.

    Args:
        processor: processor of the model.
        features: cache of encoded images.
        max_pixels: maximum number of pixels of an image; None takes the processor's limit.
        max_total_pixels: maximum number of pixels of all images of a prompt; None for no limit.
        context: maximum number of tokens of a prompt; None for no limit.
        image_seconds: maximum seconds for decoding and slicing the images of a prompt; None for no limit.
    """

    def __init__(
        self,
        processor: "LlavaUhdProcessor",
        features: BoundedCache[ImageKey, EncodedImage],
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

        Sizes are read first: nothing is decoded before all images together are known to fit context and limits. With a
        `letter_height` sizes do not tell the number of tokens: the image that exceeds the context is the last decoded.

        Args:
            messages: conversation with `role` and `content` per message, a string or parts of type `text` and
                `image`; an image is a PIL image, encoded bytes, or the path of a file as `Path`. Strings are not
                accepted as images, as they may come from anywhere. A part of type `image` may have its own
                `max_slices`.
            max_slices: maximum number of slices per image; None takes the model's default.
            deadline: deadline on the clock of `time.monotonic`.

        Raises:
            ValueError: an image cannot be read, or they are too many or too large, or take too long to decode.
            DeadlineExceeded: the deadline is over.
        """
        images = self._images(image_parts(messages), max_slices, deadline)
        with self._tokenizing:
            return encode_prompt(self.processor, messages, images)

    def _images(self, parts: Sequence[Message], max_slices: int | None, deadline: float) -> list[EncodedImage]:
        """Return the images of a prompt, cut into views unless they are cached."""
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
                self._check_sums(num_tokens, num_pixels)
            return list(self._encode_all(opened, num_tokens, num_pixels, end))
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
            return _Opened(name, key, None, cached)
        image = source if isinstance(source, Image.Image) else open_image(source, name, self.max_pixels, end)
        return _Opened(name, key, image)

    def _encode_all(
        self, opened: Sequence[_Opened], num_tokens: int, num_pixels: int, end: float
    ) -> Iterator[EncodedImage]:
        """Yield images cut into views; the sum of their least numbers of tokens becomes exact on the way."""
        for image in opened:
            least = self._num_tokens(image)
            encoded = self._encoded(image, end)
            num_tokens += self._exact_tokens(encoded) - least
            self._check_sums(num_tokens, num_pixels)
            yield encoded

    def _exact_tokens(self, encoded: EncodedImage) -> int:
        if encoded.features is not None:
            return len(encoded.features)
        ids = self.processor.ids_of_image(encoded.inputs, 0)
        return ids.count(self.processor.image_token_id)

    def _num_tokens(self, opened: _Opened) -> int:
        """Return the least number of tokens of an image: a PNG's orientation is unknown until it is decoded.

        With a `letter_height` its resized size is, too: every image has some.
        """
        if opened.image is None:
            assert opened.encoded is not None and opened.encoded.features is not None
            return len(opened.encoded.features)
        _, max_slices = opened.key
        options = {} if max_slices is None else {"max_slices": max_slices}
        if self.processor.image_processor.used_height(**options) is not None:
            return 1
        width, height = opened.image.size
        sizes = ((width, height), (height, width))
        return min(self.processor.image_layout(*size, **options).num_image_tokens for size in sizes)

    def _check_sums(self, num_tokens: int, num_pixels: int) -> None:
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
        """Return an image cut into views; its pixels are then kept in the views alone."""
        if opened.encoded is not None:
            return opened.encoded
        assert opened.image is not None
        image, opened.image = decode(opened.image, opened.name, self.max_pixels, end), None
        if time.monotonic() > end:
            raise DeadlineExceeded("the images took too long to decode")
        return encode_image(self.processor, image, opened.key[1], opened.key)
