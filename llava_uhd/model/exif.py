"""EXIF and TIFF tags: counted before Pillow reads them, and the orientation of an image.

Pillow copies the bytes of every tag of a directory. Tags that point to the same bytes make a file of a megabyte take
gigabytes, so the bytes of all tags are added up first.
"""

import re
import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from typing import Any

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import MARKER

MAX_TAGS = 5_000  # of a directory; cameras write about a hundred
MAX_OVERLAP = 4  # times the bytes of the data; tags of whole files share none
SLACK = 2**16  # bytes
MAX_SEGMENTS = 10_000  # of a JPEG before its first scan

_PREFIX = b"Exif\0\0"
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_DIRECTORY_TAGS = (0x8769, 0x8825, 0xA005, 0x014A)  # EXIF, GPS, interoperability, sub-images
_MAX_DIRECTORIES = 16
_MAX_PAGES = 10_000  # whose directories are followed
_APP1, _APP2, _SCAN = 0xE1, 0xE2, 0xDA
_FILL = re.compile(rb"\xff*")
# Entry of an AVIF file's list of items: version and flags, number of 2 or 4 bytes, protection, type.
_AVIF_EXIF = re.compile(rb"(infe[\x02\x03].{3}(?:.{2}|.{4}).{2})Exif", re.DOTALL)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ExcessiveTags(ValueError):
    """Error: tags are too many, or have more bytes together than the data that holds them."""


def check_file_tags(content: bytes | mmap, name: str) -> bytes | None:
    """Check the tags that Pillow reads when it opens a JPEG or TIFF file; of an AVIF file it shall read none.

    Args:
        content: bytes of the file.
        name: name of the image for error messages.

    Returns:
        Bytes to open instead: those of an AVIF file without its EXIF data, whose orientation does not count; or None.

    Raises:
        ExcessiveTags: the tags are too many, or have more bytes than the file.
    """
    head = content[:12]
    if head[:3] == b"\xff\xd8\xff":
        for tags in _jpeg_tags(content, name):
            check_tags(tags, name)
    elif head[:4] in _TIFF_MAGICS:
        check_tags(content, name, pages=True)
    elif head[4:8] == b"ftyp" and _AVIF_EXIF.search(content):
        return _AVIF_EXIF.sub(rb"\1none", content)
    return None


def check_path_tags(path: str, name: str) -> bytes | None:
    """Do what `check_file_tags` does for the file at a path.

    Raises:
        OSError: it cannot be read.
        ExcessiveTags: see `check_file_tags`.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if not (head[:3] == b"\xff\xd8\xff" or head[:4] in _TIFF_MAGICS or head[4:8] == b"ftyp"):
            return None
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return check_file_tags(content, name)


def _jpeg_tags(data: bytes | mmap, name: str) -> Iterator[bytes]:
    """Yield the EXIF data of a JPEG, its segments joined as Pillow joins them, and each index of several images."""
    exif: list[bytes] = []
    place = 3  # behind an FF, as at the top of the loop
    for _ in range(MAX_SEGMENTS):
        place = _FILL.match(data, place).end()  # type: ignore[union-attr]
        if place >= len(data):
            break
        marker = data[place]
        place += 1
        if marker == _SCAN or (marker and 0xFF00 | marker not in MARKER):
            break
        if marker and MARKER[0xFF00 | marker][2] is not None:  # with a length
            end = place + int.from_bytes(data[place : place + 2], "big")
            content = data[place + 2 : end] if marker in (_APP1, _APP2) else b""
            if marker == _APP1 and content[: len(_PREFIX)] == _PREFIX:
                exif.append(content[len(_PREFIX) :])
            elif marker == _APP2 and content[:4] == b"MPF\0":
                yield content[4:]
            place = max(end, place + 2)
        place = data.find(b"\xff", place) + 1
        if place == 0:
            break
    else:
        raise ExcessiveTags(f"{name} has too many parts: more than {MAX_SEGMENTS} segments before its pixels")
    yield b"".join(exif)


def check_tags(data: bytes | mmap, name: str, pages: bool = False) -> None:
    """Check that the tags of EXIF or TIFF data have no more bytes together than the data.

    Args:
        data: TIFF header and what follows it; with or without the prefix of EXIF.
        name: name of the image for error messages.
        pages: check the directories of all pages, not the first alone.

    Raises:
        ExcessiveTags: they have, or a directory has more than `MAX_TAGS`.
    """
    while data[: len(_PREFIX)] == _PREFIX:
        data = data[len(_PREFIX) :]
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return  # no tags are read
    is_big = data[2] == 43
    entry, pointer = (f"{order}HHQ8s", f"{order}Q") if is_big else (f"{order}HHL4s", f"{order}L")
    offsets = [struct.unpack_from(pointer, data, 8 if is_big else 4)[0]] if len(data) >= 16 or not is_big else []
    visited: set[int] = set()
    total = entries = 0
    while offsets and len(visited) < _MAX_DIRECTORIES + pages * _MAX_PAGES:
        place = offsets.pop(0)
        if place in visited or place + 2 > len(data):
            continue
        visited.add(place)
        count = int.from_bytes(data[place : place + (8 if is_big else 2)], "little" if order == "<" else "big")
        if count > MAX_TAGS:
            raise ExcessiveTags(f"{name} has {count} EXIF or TIFF tags; at most {MAX_TAGS} are allowed")
        first = place + (8 if is_big else 2)
        size = struct.calcsize(entry)
        starts = range(first, min(first + count * size, len(data) - size + 1), size)
        entries += len(starts)
        if entries > MAX_TAGS + len(data) // size:  # directories lie over each other
            raise ExcessiveTags(f"{name} has {entries} or more EXIF or TIFF tags in {len(data)} bytes of data")
        for start in starts:
            tag, kind, number, value = struct.unpack_from(entry, data, start)
            num_bytes = number * _TYPE_SIZES.get(kind, 0)
            where = struct.unpack(pointer, value)[0]
            if num_bytes > len(value):
                total += max(min(num_bytes, len(data) - where), 0)
            if tag in _DIRECTORY_TAGS:
                offsets.append(where)
        following = data[first + count * size : first + count * size + struct.calcsize(pointer)]
        if pages and len(following) == struct.calcsize(pointer):
            offsets += [where for where in struct.unpack(pointer, following) if where]
        if total > MAX_OVERLAP * len(data) + SLACK:
            raise ExcessiveTags(f"{name} has EXIF or TIFF tags of {total} bytes in {len(data)} bytes of data")


def turn_upright(image: Image.Image, name: str) -> Image.Image:
    """Return a decoded image, turned as its orientation tag says.

    Args:
        image: the image.
        name: name of the image for error messages.

    Raises:
        ExcessiveTags: its tags are too many, or have more bytes than they should.
    """
    check_tags(_exif_of(image), name)
    method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if method is None:
        return image
    turned = image.transpose(method)
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        turned.info.pop(key, None)  # else it would be turned again
    return turned


def _exif_of(image: Image.Image) -> bytes:
    """Return the EXIF data that Pillow is about to read."""
    exif: Any = image.info.get("exif")
    if exif is None and (profile := image.info.get("Raw profile type exif")) is not None:
        exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    return exif if isinstance(exif, bytes) else b""
