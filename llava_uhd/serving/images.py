"""Images of requests: opened for their size first, decoded once all of a request is known to fit, in limited time.

Pillow's decoders take what they are given and cannot be interrupted. They are given little at a time from a file that
refuses to be read once the time is over, so a decode ends soon after; formats that are decoded in one call are bounded
by the number of pixels.
"""

import time
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..model.formats import readable_formats
from ..model.images import decode_image
from .generation import DeadlineExceeded

BLOCK = 2**12  # bytes that a decoder is given at a time


class TimedFile(BytesIO):
    """A file in memory that can be read until a deadline, on the clock of `time.monotonic`.

    Raises:
        DeadlineExceeded: when it is read later.
    """

    def __init__(self, content: bytes, deadline: float):
        super().__init__(content)
        self.deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("the image took too long to decode")
        return super().read(size)


def open_image(content: bytes, name: str, max_pixels: int, deadline: float) -> Image.Image:
    """Return an image of which only the head was read.

    Args:
        content: bytes of the file.
        name: what an error calls the image.
        max_pixels: most pixels.
        deadline: on the clock of `time.monotonic`; holds for decoding it later, too.

    Raises:
        ValueError: it is empty, no image, damaged, or has too many pixels.
        DeadlineExceeded: the time is over.
    """
    if not content:
        raise ValueError(f"{name} is empty")
    try:
        image = Image.open(TimedFile(content, deadline), formats=readable_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; at most {max_pixels} are allowed ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image, or of a format that is not supported") from error
    except DeadlineExceeded:
        raise
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise ValueError(f"{name} cannot be read: {error}") from error
    if hasattr(image, "decodermaxblock"):  # of formats that are decoded in pieces
        image.decodermaxblock = BLOCK
    check_pixels(image, name, max_pixels)
    return image


def check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    """Check the number of an image's pixels.

    Raises:
        ValueError: there are none, or too many.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name} has {width} x {height} pixels; at least 1 x 1 are needed")
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width} x {height} pixels; at most {max_pixels} are allowed")


def decode(image: Image.Image, name: str, max_pixels: int, deadline: float) -> Image.Image:
    """Return an opened image as upright RGB.

    Args:
        image: see `open_image`.
        name: what an error calls the image.
        max_pixels: most pixels.
        deadline: on the clock of `time.monotonic`.

    Raises:
        ValueError: it is damaged.
        DeadlineExceeded: the time is over.
    """
    try:
        return decode_image(image, name=name, max_pixels=max_pixels)
    except ValueError as error:
        cause: Any = error.__cause__
        if isinstance(cause, DeadlineExceeded):
            raise cause from error
        raise
