"""The images of stage 0: any folder, cropped square or at their own aspect ratio."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...model.images import decode_image, open_image
from ...model.slicing import plan_views
from ..data.sources import IMAGE_SUFFIXES

STATISTICS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
}
FILTERS = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}
# Longest side of an image, in short sides, that is enlarged before its square is cropped.
LONGEST_SIDE = 16


def find_images(folder: str, held_out: int) -> tuple[list[Path], list[Path]]:
    """Images to train on and held-out ones, by name.

    Raises:
        ValueError: there is no such folder, or there are not more images than are held out.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ValueError(f"{folder} is a file, not a folder" if place.exists() else f"there is no folder {folder}")
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(files) <= held_out:
        raise ValueError(f"{folder} has {len(files)} images, of which {held_out} would be held out")
    split = len(files) - held_out
    return files[:split], files[split:]


def images_fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Return the number of images, and a digest of their names and sizes in bytes."""
    listed = "\n".join(f"{file.name}\0{file.stat().st_size}" for file in files)
    return {"samples": len(files), "sha256": hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()}


class Images(Dataset):
    """Normalized images (3, H, W).

    Args:
        files: paths of the images.
        image_size: side of the square crop, or of the square of equal area.
        patch_size: sides are multiples of it.
        keep_aspect: instead of cropping.
        resample: `nearest` or `bicubic`.
        normalization: `imagenet` or `clip`.
    """

    def __init__(
        self,
        files: list[Path],
        image_size: int,
        patch_size: int,
        keep_aspect: bool,
        resample: str,
        normalization: str,
    ):
        self.files, self.image_size, self.patch_size = files, image_size, patch_size
        self.keep_aspect, self.filter = keep_aspect, FILTERS[resample]
        mean, std = STATISTICS[normalization]
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return len(self.files)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) that an image will have."""
        if not self.keep_aspect:
            return self.image_size, self.image_size
        with open_image(self.files[index]) as image:
            return self._fit(index, image.size)

    def _fit(self, index: int, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the only view of an image.

        Args:
            index: index of the image.
            size: width and height of the image in pixels.

        Raises:
            ValueError: the image is so narrow that its view has too many patches; names the file.
        """
        try:
            plan = plan_views(*size, max_slices=1, view_size=self.image_size, patch_size=self.patch_size)
        except ValueError as error:
            raise ValueError(f"{self.files[index]}: {error}") from error
        return plan.overview_size

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.at_scale(index, 1)

    def at_scale(self, index: int, scale: int) -> torch.Tensor:
        """The image so many times as large: (3, scale · H, scale · W)."""
        image = decode_image(self.files[index])
        width, height = self._fit(index, image.size)
        if self.keep_aspect:
            image = image.resize((scale * width, scale * height), self.filter)
        else:
            side = scale * self.image_size
            image = _crop(image, [min(length, LONGEST_SIDE * min(image.size)) for length in image.size])
            factor = side / min(image.size)
            image = image.resize(
                (max(round(image.width * factor), side), max(round(image.height * factor), side)), self.filter
            )
            image = _crop(image, [side, side])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std

    def at_scales(self, scales: Sequence[int]) -> "ScaledImages":
        """The same images, each enlarged by several factors."""
        return ScaledImages(self, scales)

    def denormalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Back to values of 0 to 1."""
        return (pixels * self.std.to(pixels.device) + self.mean.to(pixels.device)).clamp(0, 1)


def _crop(image: Image.Image, size: Sequence[int]) -> Image.Image:
    """Crop the center of an image to a size of width and height."""
    left, top = ((length - side) // 2 for length, side in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


class ScaledImages(Dataset):
    """An image enlarged by several factors: a list of (3, scale · H, scale · W)."""

    def __init__(self, images: Images, scales: Sequence[int]):
        self.images, self.scales = images, tuple(scales)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [self.images.at_scale(index, scale) for scale in self.scales]


def batches(images: Images, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of images of one size, in an order that seed and epoch decide; none is smaller than the others."""
    rng = random.Random(f"{seed}:{epoch}")
    indices = list(range(len(images)))
    rng.shuffle(indices)
    waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
    full = []
    for index in indices:
        same = waiting[images.size(index)]
        same.append(index)
        if len(same) == batch:
            full.append(list(same))
            same.clear()
    return full
