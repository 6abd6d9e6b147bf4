"""The image features of recent requests, so that a second question about an image does not encode it again.

An image is known by its content: the hash of its bytes (or pixels) and the number of slices it may be cut into.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from PIL import Image

from .bounded import BoundedCache

Key = tuple[str, int | None]


@dataclass
class EncodedImage:
    """One image: what the processor made of it, and its features once the model has encoded it.

    Attributes:
        inputs: of the image processor, one image: `num_views` (1,), `view_shapes` (V, 2), `grids` (1, 2), and
            `pixel_values` (P, 3·p·p) until it is encoded.
        features: (T, E) image tokens, or None before.
    """

    inputs: dict[str, torch.Tensor]
    features: torch.Tensor | None = field(default=None, repr=False)


def content_hash(source: bytes | Image.Image) -> str:
    """Return the SHA-256 of an image's encoded bytes, or of the pixels of a decoded image.

    Args:
        source: encoded bytes, or an upright RGB image as `decode_image` returns it: in other modes the palette, the
            transparency and the orientation tag decide what is seen, too.
    """
    if not isinstance(source, Image.Image):
        return hashlib.sha256(source).hexdigest()
    if source.mode != "RGB":
        raise ValueError(f"the image must be RGB, got {source.mode}")
    digest = hashlib.sha256(f"pixels of {source.size}:".encode())
    digest.update(source.tobytes())
    return digest.hexdigest()


def feature_cache(max_bytes: int) -> BoundedCache[Key, EncodedImage]:
    """Encoded images by content, features of at most `max_bytes`."""
    return BoundedCache(max_bytes, _num_bytes)


def _num_bytes(image: EncodedImage) -> int:
    assert image.features is not None
    return image.features.nbytes
