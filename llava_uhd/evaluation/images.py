"""Loading a benchmark's images, and the resize that the published evaluation puts before the slicing."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..model.image_processing_llava_uhd import decode_image
from .samples import Sample


def scaled_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Size with the given long side, whether larger or smaller than before.

    The short side is rounded down, as published, but stays at least 1 (an extreme aspect ratio crashed there).
    """
    if width > height:
        return max_side, max(1, int(height * max_side / width))
    return max(1, int(width * max_side / height)), max_side


def image_size(sample: Sample, max_side: int | None) -> tuple[int, int] | None:
    """The size at which a sample's image will be seen, from the file's header; None without a readable image."""
    source = sample.image_source
    if source is None:
        return None
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(base64.b64decode(source))) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return (width, height) if max_side is None else scaled_size(width, height, max_side)


def load_image(sample: Sample, max_side: int | None) -> Image.Image:
    """Read a sample's image as RGB and scale its long side to `max_side` (bicubic), if given.

    Raises:
        ValueError: it cannot be read; names it.
    """
    source = sample.image_source
    assert source is not None
    name = f"the image of question {sample.question_id}"
    image = decode_image(source if isinstance(source, Path) else base64.b64decode(source), name=name)
    if max_side is None:
        return image
    return image.resize(scaled_size(*image.size, max_side), Image.Resampling.BICUBIC)
