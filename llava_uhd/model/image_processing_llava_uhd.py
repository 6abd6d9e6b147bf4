"""Image processor: from an image in any form to the packed patches of its views.

Pixels follow the reference implementation: every view is resized by PIL's bicubic filter from the original image
(never from another view), scaled to [0, 1] and normalized by the statistics of the vision tower, CLIP's by default.
There is no padding: `pixel_values` holds the patches of all views of all images, and `view_shapes` beside it their
shapes.

Shapes: P patches of all views, V views of all images, I images, p side of a patch.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
)
from transformers.processing_utils import ImagesKwargs

from .images import MAX_PIXELS, decode_image
from .letter_height import fit_letters, used_height
from .slicing import MAX_SLICES, SlicePlan, enlarged_size, plan_views
from .validation import LARGEST, check_int, check_letter_height, check_padding, check_slice_grid, is_number

# Mean and deviation of each channel that the towers of a kind were trained with.
NORMALIZATIONS: dict[str, tuple[list[float], list[float]]] = {
    "clip_vision_model": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip_vision_model": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}


def normalization_of(model_type: str) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel for a kind of vision tower.

    Raises:
        ValueError: they are unknown.
    """
    if model_type not in NORMALIZATIONS:
        raise ValueError(
            f"the normalization of a vision tower of type {model_type!r} is unknown: give image_mean and image_std "
            f"(known: {', '.join(NORMALIZATIONS)})"
        )
    return NORMALIZATIONS[model_type]


class LlavaUhdImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg, misc]  # not followed, see pyproject.toml
    """Options of the image processor, besides `resample`, `rescale_factor`, `image_mean` and `image_std`.

    Attributes:
        max_slices: most slices an image is cut into; 1 for the overview alone.
        view_size: side of the square whose area a view has, in pixels: the vision tower's `image_size`.
        patch_size: side of a patch, in pixels.
        max_side: enlarge smaller images to this long side before slicing, as some evaluation protocols do, and before
            their letters are measured.
        slice_grid: [columns, rows] that every image is cut into; None to choose them by the image, as published.
        pad_to_square: pad images to squares with the mean color before slicing.
        pad_to_grid: pad images with the mean color so that every slice is a square; see `plan_slices`.
        letter_height: resize images before slicing so that their letters are this many pixels high; see
            `letter_height.fitted_size`. None, as published, for every image at its own resolution. No effect where
            `max_slices` is 1 or there is a `slice_grid`: then views show every image at one size.
        max_view_patches: most patches of a view; images so narrow that one has more are refused. None for twice those
            of a square view, 1,152 at least.
    """

    max_slices: int | None
    view_size: int | None
    patch_size: int | None
    max_side: int | None
    slice_grid: list[int] | None
    pad_to_square: bool | None
    pad_to_grid: bool | None
    letter_height: int | None
    max_view_patches: int | None


class LlavaUhdImageProcessor(PilBackend):
    """Cuts images into views and packs the views' patches.

    An image may have any form that `images.decode_image` takes; images come alone, in a list, or in one list per
    prompt. Errors count them from 1.

    Returns, all listed in `model_input_names`:
        - pixel_values (P, 3·p²) float32: image after image; of an image its slices row by row, then its overview; of a
          view its patches row by row; of a patch channel, row, column, as a patch embedding's weight is flattened.
        - view_shapes (V, 2) int64: (rows, columns) of each view in patches.
        - num_views (I,) int64: views of each image.
        - grids (I, 2) int64: (columns, rows) of the slices of each image, (0, 0) without slices.
    """

    model_input_names = ["pixel_values", "view_shapes", "num_views", "grids"]
    valid_kwargs = LlavaUhdImageKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True
    max_slices = 7
    view_size = 336
    patch_size = 14
    max_side: int | None = None
    slice_grid: list[int] | None = None
    pad_to_square = False
    pad_to_grid = False
    letter_height: int | None = None
    max_view_patches: int | None = None

    def __init__(self, max_pixels: int = MAX_PIXELS, **kwargs: Any):
        """Set the defaults of the options.

        Args:
            max_pixels: images of more pixels are refused before they are decoded; a file that promises them may be a
                decompression bomb. The default is where Pillow itself refuses; for more, raise Pillow's
                `PIL.Image.MAX_IMAGE_PIXELS` as well.
            kwargs: see `LlavaUhdImageKwargs`.
        """
        accepted = [*LlavaUhdImageKwargs.__annotations__, *ImagesKwargs.__annotations__, "max_pixels"]
        for key in kwargs:
            if key not in accepted and (near := get_close_matches(key, accepted, n=1, cutoff=0.85)):
                raise ValueError(f"the image processor has no option {key!r}: did you mean {near[0]}?")
        super().__init__(**kwargs)
        self.max_pixels = max_pixels
        self.validate_values()

    def validate_values(self) -> None:
        """Check every option.

        Raises:
            ValueError: naming the option that is wrong, and what it must be.
        """
        check_int("max_pixels", self.max_pixels, 1, 2**40)
        self.slice_grid = _check_options(partial(getattr, self))

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Decode images in any accepted form to RGB, keeping the nesting of lists. Decoded images pass unchanged."""
        return self._fetch(image_url_or_urls, count(1))

    def _fetch(self, images: Any, indices: Iterator[int]) -> Any:
        if _is_batch(images):
            return [self._fetch(image, indices) for image in images]
        return decode_image(images, name=f"image {next(indices)}", max_pixels=self.max_pixels)

    def fit_letters(self, image: Image.Image, **kwargs: Any) -> Image.Image:
        """Return an image at the size whose views are planned: its own, unless there is a `letter_height`.

        With one, the image is enlarged to `max_side`, where that is given, and then fitted to what `max_slices` show.

        Args:
            image: decoded RGB image.
            kwargs: options in place of the processor's own.
        """
        option = partial(self._option, kwargs=kwargs)
        num_pixels = option("max_slices") * option("view_size") ** 2
        return fit_letters(image, self.used_height(**kwargs), num_pixels, option("max_side"), option("resample"))

    def _option(self, name: str, kwargs: dict[str, Any]) -> Any:
        return getattr(self, name) if kwargs.get(name) is None else kwargs[name]

    def used_height(self, **kwargs: Any) -> int | None:
        """Return the height to which letters are brought; None where that changes nothing; see `fit_letters`.

        Raises:
            ValueError: it is out of range.
        """
        check_letter_height(height := self._option("letter_height", kwargs))
        return used_height(height, self._option("max_slices", kwargs), self._option("slice_grid", kwargs))

    def plan(self, width: int, height: int, **kwargs: Any) -> SlicePlan:
        """Plan the views of an image of this size, by the processor's options or those given instead.

        With `letter_height` the size is that of the image that `fit_letters` returns: `max_side` has no effect on it.

        Raises:
            ValueError: it is so narrow that a view has more than `max_view_patches`.
        """
        option = partial(self._option, kwargs=kwargs)
        if (max_side := option("max_side")) is not None and self.used_height(**kwargs) is None:
            width, height = enlarged_size(width, height, max_side)
        return plan_views(
            width,
            height,
            max_slices=option("max_slices"),
            view_size=option("view_size"),
            patch_size=option("patch_size"),
            slice_grid=option("slice_grid"),
            pad_to_square=option("pad_to_square"),
            pad_to_grid=option("pad_to_grid"),
            limit=option("max_view_patches"),
        )

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        # None takes the processor's own option, as in `plan`.
        kwargs = {name: self._option(name, kwargs) if hasattr(self, name) else kwargs[name] for name in kwargs}
        _check_options(partial(self._option, kwargs=kwargs), self.max_slices)
        images = _in_order(images, kwargs.get("input_data_format"))
        is_scaled = [_is_float(image) for image in _flatten(images)]
        images = _flatten(self.fetch_images(images))
        max_side = kwargs["max_side"]
        if self.used_height(**kwargs) is not None:
            images, max_side = [self.fit_letters(image, **kwargs) for image in images], None
        plans = [self.plan(*image.size, **kwargs) for image in images]
        background = tuple(int(255 * mean) for mean in kwargs["image_mean"])
        patches = [
            _patches(view, plan.patch_size)
            for image, plan in zip(images, plans, strict=True)
            for view in cut_views(image, plan, kwargs["resample"], max_side, background)
        ]
        patch_size = plans[0].patch_size if plans else self.patch_size
        mean = kwargs["image_mean"] if kwargs["do_normalize"] else (0, 0, 0)
        std = kwargs["image_std"] if kwargs["do_normalize"] else (1, 1, 1)
        # Without rescaling the values are those of 8 bits, but floats were scaled before they came.
        scales = [
            kwargs["rescale_factor"] if kwargs["do_rescale"] else 1 / 255 if scaled else 1.0 for scaled in is_scaled
        ]
        tables = {scale: _channel_values(scale, mean, std) for scale in set(scales)}
        of_views = [tables[scale] for scale, plan in zip(scales, plans, strict=True) for _ in range(plan.num_views)]
        pixel_values = [
            np.stack([values[channel][view[:, channel]] for channel in range(3)], axis=1)
            for values, view in zip(of_views, patches, strict=True)
        ]
        packed = np.concatenate([np.zeros((0, 3, patch_size**2), np.float32), *pixel_values])
        data = {
            "pixel_values": packed.reshape(len(packed), 3 * patch_size**2),
            "view_shapes": np.array([shape for plan in plans for shape in plan.view_shapes], np.int64).reshape(-1, 2),
            "num_views": np.array([plan.num_views for plan in plans], np.int64),
            "grids": np.array([plan.grid or (0, 0) for plan in plans], np.int64).reshape(-1, 2),
        }
        return BatchFeature(data, tensor_type=kwargs["return_tensors"])


def cut_views(
    image: Image.Image,
    plan: SlicePlan,
    resample: PILImageResampling = PILImageResampling.BICUBIC,
    max_side: int | None = None,
    background: tuple[int, ...] = (122, 116, 104),
) -> list[Image.Image]:
    """Return the views of an RGB image: its slices row by row, then its overview.

    Args:
        image: decoded RGB image.
        plan: plan of the image, or of the enlarged image if `max_side` is given.
        resample: PIL's filter.
        max_side: long side that a smaller image is enlarged to first, or None.
        background: color of the padding, if the plan has any; CLIP's mean by default.
    """
    if max_side is not None:
        image = enlarge(image, max_side, resample)
    if plan.padded_size is not None:
        image = pad(image, plan.padded_size, background)
    views = []
    if plan.resized_size is not None:
        resized = image.resize(plan.resized_size, resample)
        views += [resized.crop(box) for box in plan.boxes]
    return [*views, image.resize(plan.overview_size, resample)]


def enlarge(
    image: Image.Image, max_side: int, resample: PILImageResampling = PILImageResampling.BICUBIC
) -> Image.Image:
    """Enlarge an image, at its aspect ratio, until its long side is `max_side`; never reduce it."""
    size = enlarged_size(*image.size, max_side)
    return image if size == image.size else image.resize(size, resample)


def pad(image: Image.Image, size: tuple[int, int], background: tuple[int, ...]) -> Image.Image:
    """Return the image in the middle of a canvas of a size (width, height) and color."""
    if image.size == size:
        return image
    canvas = Image.new("RGB", size, background)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def _check_options(option: Callable[[str], Any], max_slices: int = 1) -> list[int] | None:
    """Check the options of a processor or of a call, given by name, and return `slice_grid` as a list.

    Args:
        option: value of the option of a name.
        max_slices: that of the processor, for a call: its fixed grid fits in these. A call of fewer slices than the
            grid has shows the overview alone.

    Raises:
        ValueError: naming the option that is wrong, and what it must be.
    """
    check_int("max_slices", option("max_slices"), 1, MAX_SLICES)
    check_int("view_size", option("view_size"), 1, LARGEST["image_size"])
    check_int("patch_size", option("patch_size"), 1, option("view_size"))
    if option("max_side") is not None:
        check_int("max_side", option("max_side"), 1, 2**20)
    slice_grid = check_slice_grid(option("slice_grid"), max(option("max_slices"), max_slices))
    check_padding(option("pad_to_square"), option("pad_to_grid"))
    check_letter_height(option("letter_height"))
    if option("max_view_patches") is not None:
        least = (option("view_size") // option("patch_size")) ** 2
        check_int("max_view_patches", option("max_view_patches"), least, 2**20)
    for name in ("image_mean", "image_std"):
        values = option(name)
        numbers = isinstance(values, list | tuple) and len(values) == 3 and all(map(is_number, values))
        if not numbers or (name == "image_std" and min(values) <= 0):
            raise ValueError(f"{name} must be 3 numbers{' above 0' * (name == 'image_std')}, got {values!r}")
    factor, resample = option("rescale_factor"), option("resample")
    if not is_number(factor) or factor <= 0:
        raise ValueError(f"rescale_factor must be a positive number, got {factor!r}")
    try:
        PILImageResampling(resample)
    except ValueError as error:
        raise ValueError(f"resample must be a filter of PIL, got {resample!r}") from error
    return slice_grid


def _is_batch(images: Any) -> bool:
    """Return whether several images are given: a list, a tuple, or a 4-dimensional array."""
    return isinstance(images, list | tuple) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4)


def _flatten(images: Any) -> list[Any]:
    """Return the images of nested lists, tuples and 4-dimensional arrays."""
    if _is_batch(images):
        return [leaf for item in images for leaf in _flatten(item)]
    return [images]


def _is_float(image: Any) -> bool:
    """Return whether an image is an array or tensor of floats, whose values are from 0 to 1."""
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)


def _in_order(images: Any, data_format: Any) -> Any:
    """Return images with the channels of arrays last, where `data_format` says that they are first."""
    if getattr(data_format, "value", data_format) != "channels_first":
        return images
    if isinstance(images, list | tuple):
        return [_in_order(image, data_format) for image in images]
    if isinstance(images, torch.Tensor):
        images = (images.float() if images.is_floating_point() else images).detach().cpu().numpy()
    return np.moveaxis(images, -3, -1) if isinstance(images, np.ndarray) and images.ndim >= 3 else images


def _patches(view: Image.Image, patch_size: int) -> np.ndarray:
    """Return the values of a view's patches, row by row: (rows · columns, 3, p²)."""
    pixels = np.asarray(view)  # (rows · p, columns · p, 3)
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    grid = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 4, 1, 3)
    return grid.reshape(rows * columns, 3, patch_size**2)


def _channel_values(scale: float, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return the table of each 8-bit value in each channel, rounded step by step as published: (3, 256) float32."""
    scaled = (np.arange(256) * scale).astype(np.float32)
    return (scaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


__all__ = ["LlavaUhdImageProcessor"]
