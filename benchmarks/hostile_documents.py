"""Images and documents that are dear to read, or of which parts are missing or repeated."""

import io
import struct
import zlib

from PIL import Image


def one_bit_png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (side, side), 1).save(file, "PNG")
    return file.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose smallest scan is repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 200).save(file, "JPEG", progressive=True, quality=50)
    data = file.getvalue()
    starts = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    # The last segment also holds the end-of-image marker, so it is not a candidate.
    scan = min((data[start:end] for start, end in zip(starts, starts[1:], strict=False)), key=len)
    return data[: starts[-1]] + scan * scans + data[starts[-1] :]


def many_chunks(number: int) -> bytes:
    """A PNG of nothing but comments."""
    data = b"tEXtk\0v"
    chunk = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk * number


def png_with(kind: bytes, *contents: bytes) -> bytes:
    """A PNG of 8 x 8 pixels with further chunks of a kind behind its head."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    data, chunks = file.getvalue(), b""
    for content in contents:
        chunks += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunks + data[33:]


def overlapping_tags(number: int, size: int) -> bytes:
    """TIFF tags that all point to the same bytes, each of which is copied when it is read."""
    place = 8 + 2 + 12 * number + 4
    tags = b"".join(struct.pack("<HHII", (0x8000 + index) % 2**16, 7, size, place) for index in range(number))
    return b"II*\0" + struct.pack("<IH", 8, number) + tags + bytes(4) + b"x" * size


def jpeg_with_tags(tags: bytes) -> bytes:
    """A JPEG whose EXIF data are cut into segments."""
    file, segments = io.BytesIO(), b""
    Image.new("L", (8, 8)).save(file, "JPEG")
    for start in range(0, len(tags), 65_000):
        segment = b"Exif\0\0" + tags[start : start + 65_000]
        segments += b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return file.getvalue()[:2] + segments + file.getvalue()[2:]


def many_frames(kind: str, side: int, frames: int) -> bytes:
    file = io.BytesIO()
    images = [Image.new("RGB", (side, side), (number % 256,) * 3) for number in range(frames)]
    images[0].save(file, kind, save_all=True, append_images=images[1:])
    return file.getvalue()


def gif_of_frames(number: int) -> bytes:
    """A GIF whose only frame is repeated."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()[:-1]
    return data + data[data.index(b",") :] * number + b";"


def tiff_of_pages(number: int) -> bytes:
    """A TIFF whose only page is listed again and again."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    (place,) = struct.unpack_from("<I", data, 4)
    size = 2 + 12 * struct.unpack_from("<H", data, place)[0]
    page, link = data[place : place + size], place + size
    for _ in range(number):
        struct.pack_into("<I", data, link, len(data))
        link = len(data) + size
        data += page + bytes(4)
    return bytes(data)


def pdf(*objects: bytes) -> bytes:
    """A PDF of these objects, the first of which is its catalog; readers rebuild the missing table."""
    numbered = (b"%d 0 obj\n%s\nendobj\n" % (number, content) for number, content in enumerate(objects, 1))
    return b"%PDF-1.7\n" + b"".join(numbered) + b"trailer <</Root 1 0 R>>\n%%EOF"


def pdf_page(page: bytes, content: bytes = b"", options: bytes = b"") -> bytes:
    """A PDF of one page with these entries and this content."""
    stream = b"<<%s /Length %d>>\nstream\n%s\nendstream" % (options, len(content), content)
    pages = b"<</Type /Pages /Kids [3 0 R] /Count 1>>"
    return pdf(b"<</Type /Catalog /Pages 2 0 R>>", pages, b"<</Type /Page /Parent 2 0 R %s>>" % page, stream)


def pdf_of_pages(number: int) -> bytes:
    kids = b" ".join(b"3 0 R" for _ in range(number))
    pages = b"<</Type /Pages /Kids [%s] /Count %d>>" % (kids, number)
    page = b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 9 9]>>"
    return pdf(b"<</Type /Catalog /Pages 2 0 R>>", pages, page)


def one_row() -> bytes:
    file = io.BytesIO()
    Image.new("1", (60_000_000, 1)).save(file, "PNG")
    return file.getvalue()


def plain_image(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8191, 8191)).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()
