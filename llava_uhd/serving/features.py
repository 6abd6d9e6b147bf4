"""The image features of recent requests, so that a second question about an image does not encode it again.

An image is known by its content: the hash of its bytes (or pixels) and the number of slices it may be cut into.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

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


def content_hash(source: Any) -> str:
    """SHA-256 of an image's encoded bytes, or of its pixels if it is decoded already."""
    if isinstance(source, Image.Image):
        head = f"{source.mode}:{source.size}:".encode()
        return hashlib.sha256(head + source.tobytes()).hexdigest()
    return hashlib.sha256(source).hexdigest()


class FeatureCache:
    """Encoded images by content, the least recently used dropped first; safe to use from several threads."""

    def __init__(self, max_bytes: int):
        """Keep features of at most `max_bytes`; 0 keeps none."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._images: OrderedDict[Key, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: Key) -> EncodedImage | None:
        with self._lock:
            image = self._images.get(key)
            if image is not None:
                self._images.move_to_end(key)
            return image

    def count(self, hit: bool) -> None:
        """Note whether an image of a request was known."""
        with self._lock:
            self.hits += hit
            self.misses += not hit

    def put(self, key: Key, image: EncodedImage) -> None:
        """Keep an encoded image, if it fits at all."""
        size = _num_bytes(image)
        if size > self.max_bytes:
            return
        with self._lock:
            if (known := self._images.pop(key, None)) is not None:
                self.num_bytes -= _num_bytes(known)
            self._images[key] = image
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= _num_bytes(self._images.popitem(last=False)[1])


def _num_bytes(image: EncodedImage) -> int:
    assert image.features is not None
    return image.features.nbytes
