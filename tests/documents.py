"""Documents of several pages for tests: PDF and TIFF files made on the spot, one of them encrypted."""

import hashlib
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


def page_image(text: str, size: tuple[int, int] = (496, 702)) -> Image.Image:
    """A white page with a line of large print."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((40, 60), text, fill="black", font=ImageFont.load_default(48))
    return image


def page_images(count: int) -> list[Image.Image]:
    """Pages that say their own number, each on a colored edge of its own."""
    pages = [page_image(f"Page {number}") for number in range(1, count + 1)]
    for number, page in enumerate(pages, start=1):
        page.paste((0, 40 * number, 255 - 40 * number), (0, 0, page.width, 20))
    return pages


def write_pdf(file: Path, count: int) -> Path:
    """Write a PDF of A4 pages."""
    first, *others = page_images(count)
    first.save(file, save_all=True, append_images=others, resolution=60)
    return file


def write_tiff(file: Path, count: int, **options) -> Path:
    """Write a TIFF of several pages."""
    first, *others = page_images(count)
    first.save(file, save_all=True, append_images=others, compression="tiff_deflate", **options)
    return file


def write_encrypted_pdf(file: Path) -> Path:
    """Write a PDF that needs the password "secret": the standard handler, revision 2 (RC4, 40 bits)."""
    padding = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
    password = (b"secret" + padding)[:32]
    identifier, permissions = b"0123456789abcdef", -4
    owner = _rc4(hashlib.md5(password).digest()[:5], password)
    key = hashlib.md5(password + owner + permissions.to_bytes(4, "little", signed=True) + identifier).digest()[:5]
    user = _rc4(key, padding)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]>>",
        b"<</Filter/Standard/V 1/R 2/O<" + owner.hex().encode() + b">/U<" + user.hex().encode() + b">/P -4>>",
    ]
    content, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    content += b"xref\n0 5\n0000000000 65535 f \n" + table
    trailer = b"trailer<</Size 5/Root 1 0 R/Encrypt 4 0 R/ID[<%s><%s>]>>\nstartxref\n%d\n%%%%EOF"
    start = content.index(b"xref\n0 5")
    file.write_bytes(content + trailer % (identifier.hex().encode(), identifier.hex().encode(), start))
    return file


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j, out = list(range(256)), 0, bytearray()
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
