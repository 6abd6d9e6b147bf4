"""Encoded image files: the formats that are read, and what is checked in a file before it is decoded.

Pillow knows many more formats. Those left out are rare, run other programs (EPS is handed to Ghostscript), nest images
whose size only the decoder finds out, or take long for their size.
"""

import re
from functools import cache

from PIL import Image

# Names of Pillow. MPO, a JPEG of several images as phones and cameras write it, is opened as JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF")
MAX_SCANS = 100  # of a JPEG, as in libtiff; progressive ones have about 10

_SEGMENT_HEAD = 4  # bytes: marker and length
_END, _SCAN = 0xD9, 0xDA
# In the data of a scan a marker is FF and a byte that is neither 0 (a stuffed FF), a restart, nor another FF.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@cache
def readable_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def count_scans(data: bytes, most: int = MAX_SCANS) -> int:
    """Return the number of scans of a JPEG file's first image; counting ends above `most`.

    Args:
        data: bytes of the file.
        most: number from which more do not matter.
    """
    place, scans = 2, 0
    while place + _SEGMENT_HEAD <= len(data):
        if data[place] != 0xFF:  # damaged; the decoder looks for the next marker, too
            place = data.find(b"\xff", place)
            if place < 0:
                break
            continue
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == _END:
            break
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without a length
            place += 2
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN:
            scans += 1
            if scans > most:
                break
            found = _MARKER_IN_SCAN.search(data, place)
            if found is None:
                break
            place = found.start()
    return scans


def check_scans(image: Image.Image, name: str) -> None:
    """Check that an opened file that is not decoded yet is no JPEG of absurdly many scans, each of which takes time.

    Args:
        image: image as Pillow opened it.
        name: name of the image for error messages.

    Raises:
        ValueError: it has more than `MAX_SCANS`.
    """
    file = getattr(image, "fp", None)  # gone once an image is decoded
    if image.format not in ("JPEG", "MPO") or file is None:
        return
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    if count_scans(data) > MAX_SCANS:
        raise ValueError(f"{name} is a JPEG of more than {MAX_SCANS} scans")
