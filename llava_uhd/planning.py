"""Slice plan and token count of an image from a model's settings alone.

A `LlavaUhdProcessor` does the same, and imports torch and transformers for it; this needs neither, which is what makes
`llava-uhd explain` answer at once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .errors import InputError
from .loading import DEFAULT_MODEL, load_processor, resolve
from .model.layout import ImageLayout, LayoutName, TokenGrid, plan_layout
from .model.letter_height import fit_letters, used_height
from .model.slicing import SlicePlan, enlarged_size, plan_views

if TYPE_CHECKING:
    from PIL import Image

    from .model.processing_llava_uhd import LlavaUhdProcessor

CONFIG_FILE = "processor_config.json"
MODEL_CONFIG_FILE = "config.json"
QUESTION_TOKENS = 128  # room for a question and the template when a number of slices is suggested
IMAGE_OPTIONS = (
    "max_slices",
    "view_size",
    "patch_size",
    "max_side",
    "slice_grid",
    "pad_to_square",
    "pad_to_grid",
    "letter_height",
    "max_view_patches",
)


@dataclass(frozen=True)
class ImagePlanner:
    """The settings of a processor that decide the views and tokens of an image.

    Attributes:
        token_grid: tokens per view.
        layout: order of the tokens.
        max_slices: most slices per image.
        view_size: side of a view in pixels.
        patch_size: side of a patch in pixels.
        max_side: long side that a smaller image is enlarged to, or None.
        slice_grid: (columns, rows) that every image is cut into, or None to choose them by the image.
        pad_to_square: pad images to squares before slicing.
        pad_to_grid: pad images so that every slice is a square.
        letter_height: height in pixels to which the letters of images are brought, or None.
        max_view_patches: most patches of a view; None for the default of `slicing.max_view_patches`.
        context: context length of the language model in tokens; None if it is not known.
    """

    token_grid: TokenGrid
    layout: LayoutName = "stitched"
    max_slices: int = 7
    view_size: int = 336
    patch_size: int = 14
    max_side: int | None = None
    slice_grid: Sequence[int] | None = None
    pad_to_square: bool = False
    pad_to_grid: bool = False
    letter_height: int | None = None
    max_view_patches: int | None = None
    context: int | None = None

    @classmethod
    def from_processor(cls, processor: "LlavaUhdProcessor") -> Self:
        """Return the planner with the settings of a processor."""
        images = processor.image_processor
        return cls(
            processor.token_grid,
            processor.layout,
            images.max_slices,
            images.view_size,
            images.patch_size,
            images.max_side,
            images.slice_grid,
            images.pad_to_square,
            images.pad_to_grid,
            images.letter_height,
            images.max_view_patches,
        )

    @classmethod
    def load(cls, model: str = DEFAULT_MODEL) -> Self:
        """Return the planner of a model: built in, a folder or a hub id.

        Raises:
            ValueError: there is no such model, or it is not a LLaVA-UHD.
        """
        folder = resolve(model)
        file = Path(folder) / CONFIG_FILE
        if not file.is_file():
            return cls.from_processor(load_processor(folder))
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            images = values["image_processor"]
            is_ours = values["processor_class"] == "LlavaUhdProcessor"
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            return cls.from_processor(load_processor(folder))  # which says what is wrong
        return cls(
            TokenGrid(values.get("query_grid", 12), values.get("unshuffle_factor"), values.get("input_level", 1)),
            **{name: values[name] for name in ("layout",) if name in values},
            **{name: images[name] for name in IMAGE_OPTIONS if name in images},
            context=_context_length(Path(folder) / MODEL_CONFIG_FILE),
        )

    @property
    def num_view_pixels(self) -> int:
        """Pixels of one view."""
        return self.view_size**2

    def num_pixels(self, max_slices: int | None = None) -> int:
        """Return the most pixels of an image that its slices show."""
        return (max_slices or self.max_slices) * self.num_view_pixels

    def fit_letters(self, image: "Image.Image", max_slices: int | None = None) -> "Image.Image":
        """Return a decoded image at the size whose views are planned; see `LlavaUhdImageProcessor.fit_letters`."""
        return fit_letters(image, self.used_height(max_slices), self.num_pixels(max_slices), self.max_side)

    def used_height(self, max_slices: int | None = None) -> int | None:
        """Return the height to which the letters of images are brought; None where that changes nothing."""
        return used_height(self.letter_height, max_slices or self.max_slices, self.slice_grid)

    def plan(self, width: int, height: int, max_slices: int | None = None) -> SlicePlan:
        """Return the views of an image of this size in pixels.

        Raises:
            ValueError: it is so narrow that a view has more than `max_view_patches`.
        """
        if self.max_side is not None and self.used_height(max_slices) is None:
            width, height = enlarged_size(width, height, self.max_side)
        return plan_views(
            width,
            height,
            max_slices=self.max_slices if max_slices is None else max_slices,
            view_size=self.view_size,
            patch_size=self.patch_size,
            slice_grid=self.slice_grid,
            pad_to_square=self.pad_to_square,
            pad_to_grid=self.pad_to_grid,
            limit=self.max_view_patches,
        )

    def image_layout(self, width: int, height: int, max_slices: int | None = None) -> ImageLayout:
        """Return the token template, order and counts of an image of this size in pixels."""
        return plan_layout(self.plan(width, height, max_slices), self.token_grid, self.layout)

    def check_context(
        self, sizes: Sequence[tuple[int, int]], max_slices: int | None = None, max_new_tokens: int = 1
    ) -> None:
        """Raise if images and answer exceed the context, whatever the question is.

        Args:
            sizes: (width, height) of each image in pixels.
            max_slices: maximum number of slices; None for the model's own.
            max_new_tokens: number of tokens the answer must have room for.

        Raises:
            ValueError: they do not fit; names the largest `max_slices` that leaves room.
        """
        if self.context is None or (length := self._length(sizes, max_slices)) + max_new_tokens <= self.context:
            return
        room = self.context - max_new_tokens - QUESTION_TOKENS
        fitting = [number for number in self._fewer_slices(sizes, max_slices) if self._length(sizes, number) <= room]
        images = "the image takes" if len(sizes) == 1 else f"{len(sizes)} images take"
        advice = f"--max-slices {fitting[-1]} leaves room" if fitting else "no number of slices leaves room"
        raise InputError(
            f"{images} {length} tokens and the answer may take {max_new_tokens}, more than the model's context of "
            f"{self.context}: {advice}{', or choose pages (--pages)' if len(sizes) > 1 else ''}"
        )

    def _fewer_slices(self, sizes: Sequence[tuple[int, int]], max_slices: int | None) -> range:
        """Return maximum numbers of slices that can shorten these images, as far as the context can hold any."""
        grids = [self.plan(*size, max_slices).grid or (1, 1) for size in sizes]
        cut = max(columns * rows for columns, rows in grids)
        held = (self.context or 0) // self.image_layout(1, 1).length
        return range(1, min(max_slices or self.max_slices, cut, held) + 1)

    def _length(self, sizes: Sequence[tuple[int, int]], max_slices: int | None) -> int:
        return sum(self.image_layout(*size, max_slices).length for size in sizes)


def _context_length(file: Path) -> int | None:
    """Return the context length that a model's config states; None where it states none."""
    try:
        length = json.loads(file.read_text(encoding="utf-8"))["text_config"]["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with the file is said when the model is loaded
    return length if isinstance(length, int) else None
