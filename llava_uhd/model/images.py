"""Open an image in any form: the one place for formats, base64, orientation, transparency, depth and limits.

    decode_image("page.tif"), decode_image(b"..."), decode_image("data:image/png;base64,..."), decode_image(array)

Formats are an explicit list (`formats`), the same everywhere; none of them runs another program, as EPS does. Pixels,
JPEG scans and the bytes of EXIF tags are counted before a file is decoded. Of a file with several frames the first is
taken, of a TIFF with several pages with a warning: `llava_uhd.pages` opens them all. This module imports no torch:
what needs pixels alone starts at once.
"""

import base64
import binascii
import os
import re
import string
import sys
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname, urlopen

import numpy as np
from PIL import Image, UnidentifiedImageError

from .exif import ExcessiveTags, check_file_tags, check_path_tags, turn_upright
from .formats import check_scans, readable_formats

if TYPE_CHECKING:
    import torch

# Extensions of the files that `formats.FORMATS` reads.
IMAGE_EXTENSIONS = tuple(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .gif .tif .tiff .bmp .dib .avif .avifs .ppm .pgm .pbm .pnm "
    ".pfm".split()
)
MAX_PIXELS = 178_956_970  # where Pillow itself refuses: twice its MAX_IMAGE_PIXELS
MAX_DOWNLOAD = 2**28  # bytes
DOWNLOAD_TIMEOUT = 30  # seconds
LONGEST_PATH = 4096  # a longer string is an image in base64
CHANNELS = (1, 2, 3, 4)  # gray, gray and alpha, RGB, RGB and alpha
TIFF_PHOTOMETRIC = 262  # tag of a TIFF file; 0 says that white is stored as 0
DATA_URL = re.compile(r"data:([^,]{0,300}),", re.IGNORECASE)
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_PIECE = 2**16  # bytes
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")


@runtime_checkable
class SupportsRead(Protocol):
    """A file object."""

    def read(self) -> bytes: ...


def is_array(source: Any) -> bool:
    """Return whether a source is an array or a tensor; there are no tensors where torch has not been imported."""
    torch = sys.modules.get("torch")
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def decode_image(source: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image in any accepted form as an upright RGB image, transparency laid on white.

    Args:
        source: a PIL image; an array or tensor (H x W, H x W x C or C x H x W; integers in 0..255, 16-bit unsigned
            integers, booleans, or floats in 0..1); a path or `file:` URL; encoded bytes or a binary file; base64, with
            or without `data:` before it; an http(s) URL; or a dict with `bytes` or `path`, as Hugging Face datasets
            have it.
        name: name for error messages, for an image without a path.
        max_pixels: maximum number of decoded pixels.

    Raises:
        ValueError: naming the image, if it is missing, empty, damaged, not an image, of no area or of too many pixels.
        TypeError: for an object of another kind.
    """
    if is_array(source):
        return _to_rgb(_from_array(source, name, max_pixels), name)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or name
        if source.format == "EPS":
            raise ValueError(f"{name} has the format EPS, which is not supported")
        return _upright_rgb(source, name, max_pixels)
    with open_image(source, name=name, max_pixels=max_pixels) as image:
        return _upright_rgb(image, getattr(image, "source_name", name), max_pixels)


def open_image(source: Any, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file in any form, its header read and its limits checked; pixels are decoded when they are used.

    Args:
        source: see `decode_image`; no array.
        name: name for error messages, for an image without a path.
        max_pixels: maximum number of pixels.

    Raises:
        ValueError, TypeError: see `decode_image`.
    """
    file, name = _file(source, name)
    content = check_path_tags(file, name) if isinstance(file, str) else check_file_tags(file.getvalue(), name)
    try:
        image = Image.open(file if content is None else BytesIO(content), formats=readable_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; at most {max_pixels} are allowed ({error})") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(readable_formats())
        raise ValueError(f"{name} is not an image, or of a format that is not supported ({formats} are)") from error
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise ValueError(f"{name} cannot be read: {error}") from error
    try:
        _check_size(*image.size, name, max_pixels)
        check_scans(image, name)
        _warn_of_pages(image, name)
    except Exception:
        image.close()
        raise
    image.source_name = name  # type: ignore[attr-defined]
    return image


def _warn_of_pages(image: Image.Image, name: str) -> None:
    """Warn that a TIFF has further pages: frames of an animation may go unseen, pages of a document may not.

    Raises:
        ValueError: the file names a second page that cannot be read.
    """
    if image.format != "TIFF":
        return
    try:
        image.seek(1)
    except EOFError:
        return
    except Exception as error:  # of any kind, as when a file is opened
        raise ValueError(f"{name} cannot be read behind its first page: {error}") from error
    image.seek(0)
    warnings.warn(f"{name} has several pages, and the first is taken; llava_uhd.pages opens them all", stacklevel=4)


def decode_base64(text: str, name: str = "image") -> bytes:
    """Return the bytes of an image in base64: with or without `data:` before it, of either alphabet, in lines or not.

    Raises:
        ValueError: it is not base64.
    """
    match = DATA_URL.match(text)
    data = text[match.end() :] if match else text
    if match and not match[1].lower().replace(" ", "").endswith(";base64"):
        raise ValueError(f"{name} is a data: URL without base64; it must read data:image/...;base64,...")
    try:
        content = data.encode("ascii")
        if b"%" in content:
            content = _unquoted(content)
        content = content.translate(_STANDARD_ALPHABET, string.whitespace.encode()).rstrip(b"=")
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not valid base64: {error}") from error


def _unquoted(data: bytes) -> bytes:
    """Return bytes without percent-encoding; in pieces, since an object is built for each %."""
    unquoted, start = bytearray(), 0
    while start < len(data):
        end = start + _PIECE
        if (split := data.rfind(b"%", end - 2, end)) >= 0:  # not inside of %2B
            end = split
        unquoted += unquote_to_bytes(data[start:end])
        start = end
    return bytes(unquoted)


def _file(source: Any, name: str) -> tuple[str | BytesIO, str]:
    """Return a source that Pillow can open, and its name for error messages."""
    if isinstance(source, dict) and (source.get("bytes") is not None or source.get("path") is not None):
        name = str(source.get("path") or name)
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, str):
        source, name = _from_string(source, name)
    if isinstance(source, os.PathLike):
        return _existing(os.fspath(source))
    if isinstance(source, SupportsRead):
        name = str(getattr(source, "name", name))
        if (seek := getattr(source, "seek", None)) is not None and getattr(source, "seekable", lambda: True)():
            seek(0)
        source = source.read()
    if not isinstance(source, bytes | bytearray | memoryview):
        raise TypeError(
            f"{name} must be a PIL image, an array, a tensor, a path, bytes, a URL or a binary file, "
            f"got {type(source).__name__}"
        )
    if len(source) == 0:
        raise ValueError(f"{name} is empty")
    return BytesIO(source), name


def _from_string(text: str, name: str) -> tuple[Any, str]:
    """A path, or bytes, for a string: an existing file before everything that is not a URL."""
    start = text[:8].lower()
    if start.startswith("data:"):
        return decode_base64(text, name), name
    if start.startswith(("http://", "https://")):
        return _download(text), text
    if start.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{text} is on another machine, {parts.netloc}")
        return _PathLike(url2pathname(parts.path)), name
    path = os.path.expanduser(text) if text.startswith("~") else text
    if len(text) <= LONGEST_PATH and "\0" not in text and os.path.lexists(path):
        return _PathLike(path), name
    compact = "".join(text.split())
    if BASE64.fullmatch(compact):
        try:
            content = decode_base64(compact, name)
        except ValueError:
            if len(text) > LONGEST_PATH:
                raise
        else:
            if len(text) > LONGEST_PATH or _is_image(content):
                return content, name
    elif len(text) > LONGEST_PATH:
        raise ValueError(f"{name} is not valid base64, and too long for a path: {len(text)} characters")
    return _PathLike(path), name


class _PathLike(os.PathLike[str]):
    """A path given as a string, called as it was given."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


def _existing(path: str) -> tuple[str, str]:
    """A path, once it is known to be that of a file that holds something."""
    path = os.path.expanduser(path) if path.startswith("~") else path
    try:
        if not os.path.isfile(path):
            raise ValueError(f"{path} is not a file" if os.path.exists(path) else f"there is no file {path}")
        if os.path.getsize(path) == 0:
            raise ValueError(f"{path} is empty")
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return path, path


def _is_image(content: bytes) -> bool:
    """Return True if bytes begin like a file of one of the formats."""
    try:
        Image.open(BytesIO(content), formats=readable_formats()).close()
    except UnidentifiedImageError:
        return False
    except Exception:  # one of the formats, and damaged: told when it is opened
        return True
    return True


def _download(url: str) -> bytes:
    try:
        with urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            content: bytes = response.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} cannot be fetched: {error}") from error
    if len(content) > MAX_DOWNLOAD:
        raise ValueError(f"{url} has more than {MAX_DOWNLOAD} bytes")
    return content


def _upright_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(*image.size, name, max_pixels)
    check_scans(image, name)
    try:
        image.load()
        image = turn_upright(image, name)
    except ExcessiveTags:
        raise
    except Exception as error:  # Pillow's decoders meet damaged files with errors of any kind
        raise ValueError(f"{name} is damaged or cut short: {error}") from error
    return _to_rgb(image, name)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{name} has {width} x {height} pixels; at least 1 x 1 are needed")
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width} x {height} pixels; at most {max_pixels} are allowed")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any color mode to RGB, transparency laid on white, deep gray scaled to 8 bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        values = _from_deep_gray(deep, image.mode, name)
        if _is_white_at_zero(image):
            values = 255 - values
        if isinstance(clear := image.info.get("transparency"), int):
            values = np.where(deep == clear, np.uint8(255), values)
        image = Image.fromarray(values)
    elif image.has_transparency_data:
        clear = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
            # Pillow reduces the pixels of a file of 16 bits to 8, and not the color that is transparent.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has the color mode {image.mode}, which cannot be converted to RGB") from error


def _is_white_at_zero(image: Image.Image) -> bool:
    """Return whether a TIFF stores white as 0, which Pillow inverts in images of 1 and 8 bits alone."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(TIFF_PHOTOMETRIC) == 0


def _from_array(array: "np.ndarray | torch.Tensor", name: str, max_pixels: int) -> Image.Image:
    """An array or tensor as an 8-bit image of 1 to 4 channels."""
    channels_first = not isinstance(array, np.ndarray)
    if not isinstance(array, np.ndarray):
        array = (array.float() if array.is_floating_point() else array).detach().cpu().numpy()
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        # Either order is taken; where both fit, each library's own.
        is_first, is_last = shape[0] in CHANNELS, shape[-1] in CHANNELS
        if is_first and (channels_first or not is_last):
            array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in CHANNELS:
        raise ValueError(f"{name} must be H x W, H x W x C or C x H x W with 1 to 4 channels, got shape {shape}")
    height, width, _ = array.shape
    _check_size(width, height, name, max_pixels)
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _from_16_bits(array, name)
    elif np.issubdtype(array.dtype, np.floating):
        array = _from_floats(array, name)
    elif array.dtype != np.uint8:
        _check_range(array, 255, name)
    return Image.fromarray(np.ascontiguousarray(array, np.uint8).squeeze(-1 if array.shape[-1] == 1 else ()))


def _from_deep_gray(array: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Convert the values of a gray image of 16 or 32 bits to 8 bits.

    Pillow's `convert` leaves 0 to 255 in the modes `I` and `F`; decoders of deep files fill the whole range.
    """
    if mode == "F" and array.max() <= 1:
        return _from_floats(array, name)
    if mode == "F" or (mode == "I" and array.max() <= 255):
        _check_range(array, 255, name)
        rounded: np.ndarray = np.rint(array).astype(np.uint8)
        return rounded
    return _from_16_bits(array, name)


def _from_16_bits(array: np.ndarray, name: str) -> np.ndarray:
    _check_range(array, 65535, name)
    scaled: np.ndarray = (array.astype(np.uint32) + 128) // 257
    return scaled.astype(np.uint8)


def _from_floats(array: np.ndarray, name: str) -> np.ndarray:
    _check_range(array, 1.0, name)
    scaled: np.ndarray = np.rint(array * 255)
    return scaled.astype(np.uint8)


def _check_range(array: np.ndarray, largest: float, name: str) -> None:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be an array of integers or floats, got {array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= largest):  # so written, it also refuses NaN
        raise ValueError(f"{name} ({array.dtype}) must have values from 0 to {largest}, got {low} to {high}")
