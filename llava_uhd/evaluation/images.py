"""Image loading, with the resize that the reference evaluation applies before slicing."""

from PIL import Image

from ..model.images import decode_image
from .samples import Sample, open_image


def scaled_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return the size scaled to this long side, up or down.

    The short side is rounded down, as published, but stays at least 1 (an extreme aspect ratio crashed there).
    """
    if width > height:
        return max_side, max(1, int(height * max_side / width))
    return max(1, int(width * max_side / height)), max_side


def image_size(sample: Sample, max_side: int | None) -> tuple[int, int] | None:
    """Return the size of a sample's image after the resize, read from the file header; None if unreadable."""
    size = sample.image_size
    if size is None and sample.image_source is not None:
        try:
            with open_image(sample.image_source) as image:
                size = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
    if size is None or max_side is None:
        return size
    return scaled_size(*size, max_side)


def load_image(sample: Sample, max_side: int | None) -> Image.Image:
    """Read (or draw) a sample's image as RGB and scale its long side to `max_side` (bicubic), if given.

    Raises:
        ValueError: it cannot be read; names it.
    """
    assert sample.image_source is not None
    name = f"the image of question {sample.question_id}" if sample.image is None else f"image {sample.image}"
    try:
        image = open_image(sample.image_source)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    image = decode_image(image, name=name)
    if max_side is None:
        return image
    return image.resize(scaled_size(*image.size, max_side), Image.Resampling.BICUBIC)
