"""Labeled images for probes: rendered pages, and folders of the user's.

- characters: pages of random characters that fit one view; a label at the middle of every character.
- dense: the label of a pixel: paper, text or box of a rendered document; or the values of masks beside images.
- classes: the kind of a rendered document; or the name of an image's folder.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..model.images import IMAGE_EXTENSIONS, decode_image
from ..synthetic import KINDS, Document, make_document, make_scribble, render
from .linear_probe import Sample

# Size of a page beside the view that it is scaled to: as slices are in the training of `tiny`.
PAGE_SCALE = 1.4
POINTS = 256
PAPER, TEXT, BOX = range(3)
# Height of a line of text over its baseline and below it, as a part of the font size.
ASCENT, DESCENT = 0.75, 0.2
MASK_IGNORED = 255


def character_samples(count: int, view_size: int, seed: int = 0) -> Iterator[Sample]:
    """Yield pages of random characters.

    Args:
        count: number of pages.
        view_size: side of a view in pixels.
        seed: seed of the pages.
    """
    side = round(PAGE_SCALE * view_size)
    for index in range(count):
        page = make_scribble(f"probe:{seed}", index, size=(side, side)).page
        inside = [
            (ord(character) - 32, x / side, y / side)
            for character, x, y in page.characters()
            if 0 <= x < side and 0 <= y < side
        ]
        points = np.array([[x, y] for _, x, y in inside]).reshape(-1, 2)
        yield Sample(render(page), points, np.array([label for label, _, _ in inside], dtype=np.int64))


def dense_samples(count: int, seed: int = 0, points: int = POINTS) -> Iterator[Sample]:
    """Yield rendered documents with points labeled paper, text or box.

    Args:
        count: number of documents.
        seed: seed of documents and points.
        points: points of each document.
    """
    for index in range(count):
        document = make_document(f"probe:{seed}", index, num_slices=1)
        page = replace(document.page, tilt=0.0)
        mask = page_mask(replace(document, page=page))
        yield _draw_points(render(page), mask, points, f"{seed}:{index}")


def page_mask(document: Document) -> np.ndarray:
    """Return the label of every pixel of an upright page, (height, width)."""
    width, height = document.page.size
    mask = np.full((height, width), PAPER)
    for box in document.page.boxes:
        left, top, right, bottom = (max(round(bound), 0) for bound in box.bounds)
        mask[top : max(bottom, top + 1), left : max(right, left + 1)] = BOX
    for text in document.page.texts:
        ascender, descender = text.baseline - ASCENT * text.size, text.baseline + DESCENT * text.size
        rows = slice(max(round(ascender), 0), max(round(descender), 0))
        mask[rows, max(round(text.x), 0) : max(round(text.x + text.width), 0)] = TEXT
    return mask


def _draw_points(image: Image.Image, mask: np.ndarray, points: int, seed: str) -> Sample:
    """Draw labeled pixels of an image without replacement, those of value 255 left out."""
    rows, columns = np.nonzero(mask != MASK_IGNORED)
    chosen = random.Random(f"points:{seed}").sample(range(len(rows)), min(points, len(rows)))
    height, width = mask.shape
    points_xy = np.stack([(columns[chosen] + 0.5) / width, (rows[chosen] + 0.5) / height], axis=1)
    return Sample(image, points_xy, mask[rows[chosen], columns[chosen]].astype(np.int64))


def class_samples(count: int, seed: int = 0) -> Iterator[Sample]:
    """Yield rendered documents labeled by their kind.

    Args:
        count: number of documents.
        seed: seed of the documents.
    """
    rng = random.Random(f"kinds:{seed}")
    for index in range(count):
        label = rng.randrange(len(KINDS))
        document = make_document(f"probe:{seed}", index, kind=KINDS[label], num_slices=1)
        yield Sample(render(document.page), None, np.array([label]))


def find_images(folder: Path) -> list[Path]:
    """Return the images of a folder at any depth, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS)


def folder_class_samples(folder: Path, limit: int | None = None) -> Iterator[Sample]:
    """Yield the images of a folder, labeled by the subfolder that they are in.

    Args:
        folder: folder with one subfolder per class.
        limit: maximum number of images of a class; None for all.

    Raises:
        ValueError: there are fewer than two subfolders with images.
    """
    classes = {place.name: find_images(place)[:limit] for place in sorted(folder.iterdir()) if place.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    if len(classes) < 2:
        raise ValueError(f"{folder} has images in {len(classes)} subfolders, at least 2 classes are needed")
    labeled = [(file, label) for label, files in enumerate(classes.values()) for file in files]
    # Mixed, so that every class has images that are held out.
    random.Random(0).shuffle(labeled)
    for file, label in labeled:
        yield Sample(decode_image(file), None, np.array([label]))


def folder_dense_samples(
    images: Path, masks: Path, limit: int | None = None, points: int = POINTS
) -> Iterator[Sample]:
    """Yield images with points labeled by their masks: gray or palette images of the same name, 255 for no label.

    Args:
        images: folder of images.
        masks: folder of masks; the mask of `a/b.jpg` is `a/b.png`.
        limit: maximum number of images; None for all.
        points: points of each image.

    Raises:
        ValueError: a mask is missing, or does not have the size of its image.
    """
    for file in find_images(images)[:limit]:
        name = file.relative_to(images).with_suffix(".png")
        if not (masks / name).is_file():
            raise ValueError(f"there is no mask {masks / name} of {file}")
        image = decode_image(file)
        with Image.open(masks / name) as opened:
            mask = np.asarray(opened)
        if mask.ndim != 2 or mask.shape != image.size[::-1]:
            raise ValueError(f"{masks / name} has shape {mask.shape}, its image {image.size[::-1]} in one channel")
        yield _draw_points(image, mask, points, str(name))
