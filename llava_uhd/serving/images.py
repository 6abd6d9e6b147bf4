"""Images of requests: opened for their size first, decoded once all of a request is known to fit, in limited time.

Pillow's decoders take what they are given and cannot be interrupted. They are given little at a time from a file that
refuses to be read once the time is over, so a decode ends soon after; formats that are decoded in one call are bounded
by the number of pixels.
"""

import time
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..model.exif import check_file_tags
from ..model.formats import readable_formats
from ..model.images import decode_image
from .generation import DeadlineExceeded

BLOCK = 2**12  # bytes that a decoder is given at a time
MAX_HEAD_READS = 5_000  # of a file's head: a photo's has some tens of parts, each read in two or three pieces
MAX_READS = (
    400_000  # of a file's pixels: 20 MB in blocks are 5,000; Pillow reads a run-length encoded BMP byte by byte
)
MAX_REREAD = 8  # times the bytes of a file that its head and its pixels are read, each
MAX_PPM_COMMENTS = 100
# Formats whose decoder takes the whole file in one call, in which nothing else of the server runs.
DECODED_AT_ONCE = ("WEBP", "AVIF")
MAX_PIXELS_AT_ONCE = 2**24
PLAIN_PPM = (b"P1", b"P2", b"P3")  # numbers as text, decoded in Python


class TooManyParts(ValueError):
    """Error: a file has more parts than any photo's."""


class TimedFile(BytesIO):
    """A file in memory that can be read until a deadline, on the clock of `time.monotonic`.

    Attributes:
        reads_left: number of times that it can still be read.
        bytes_left: bytes that can still be read.

    Raises:
        DeadlineExceeded: when it is read later.
        TooManyParts: when it is read more often.
    """

    def __init__(self, content: bytes, deadline: float):
        super().__init__(content)
        self.deadline = deadline
        self.allow(MAX_HEAD_READS)

    def allow(self, reads: int) -> None:
        """Allow as many readings from now on, of `MAX_REREAD` times the file's bytes together."""
        self.reads_left = reads
        self.bytes_left = MAX_REREAD * (len(self.getbuffer()) + BLOCK)

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("the image took too long to decode")
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooManyParts(
                f"it has too many parts: a head is read {MAX_HEAD_READS} times at most, pixels {MAX_READS}"
            )
        content = super().read(size)
        self.bytes_left -= len(content)
        if self.bytes_left < 0:
            raise TooManyParts(f"its parts overlap: more than {MAX_REREAD} times its bytes were read")
        return content


def open_image(content: bytes, name: str, max_pixels: int, deadline: float) -> Image.Image:
    """Return an image of which only the head was read.

    Args:
        content: bytes of the file.
        name: name of the image for error messages.
        max_pixels: most pixels.
        deadline: time on the clock of `time.monotonic`; holds for decoding it later, too.

    Raises:
        ValueError: it is empty, no image, damaged, or has too many pixels.
        DeadlineExceeded: the time is over.
    """
    if not content:
        raise ValueError(f"{name} is empty")
    if content.startswith(PLAIN_PPM) and (number := content.count(b"#")) > MAX_PPM_COMMENTS:
        raise ValueError(f"{name} has {number} comments; at most {MAX_PPM_COMMENTS} are allowed")
    bare = check_file_tags(content, name)
    file = TimedFile(content if bare is None else bare, deadline)
    try:
        image = Image.open(file, formats=readable_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; at most {max_pixels} are allowed ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image, or of a format that is not supported") from error
    except DeadlineExceeded:
        raise
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise ValueError(f"{name} cannot be read: {error}") from error
    file.allow(MAX_READS)
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
    if image.format in DECODED_AT_ONCE and width * height > MAX_PIXELS_AT_ONCE:
        raise ValueError(
            f"{name} has {width} x {height} pixels; at most {MAX_PIXELS_AT_ONCE} are allowed of a {image.format} "
            "file, which is decoded in one go: send it as PNG or JPEG"
        )


def decode(image: Image.Image, name: str, max_pixels: int, deadline: float) -> Image.Image:
    """Return an opened image as upright RGB.

    Args:
        image: see `open_image`.
        name: name of the image for error messages.
        max_pixels: most pixels.
        deadline: time on the clock of `time.monotonic`.

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
