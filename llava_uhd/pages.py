"""Documents of several pages: PDF and TIFF files as one image per page.

    for page in open_pages("report.pdf", "1-3"):
        print(page.name, page.image.size)

PDF pages are rendered by pypdfium2 at `OVERSAMPLING` times the resolution that the slices of a model can use
(`ImagePlanner.num_pixels`). Any other image is one page. A document of more pages than `max_pages` is refused unless
some are chosen: no page is dropped silently.
"""

import math
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image

MAX_PAGES = 20
MAX_COUNTED = 10_000  # pages of a TIFF are a chain that is walked
DEFAULT_PIXELS = 1240 * 1754  # A4 at 150 dpi
OVERSAMPLING = 2  # per side; the rest is left to the resizing that the model was trained with
MAX_DPI = 300
POINTS_PER_INCH = 72
HEADER = 1024  # a PDF may begin within this many bytes
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)

STDIN = "-"  # in place of a file on the command line

_PDFIUM_LOCK = threading.Lock()  # the library may be called by one thread at a time


@dataclass(frozen=True)
class Page:
    """One page as an image.

    Attributes:
        image: RGB image.
        name: name for messages, such as "report.pdf, page 2 of 5", or the name of a single image.
        number: number of the page, counted from 1.
        count: number of pages of the document.
        dpi: resolution that a PDF page was rendered at; None for an image.
    """

    image: "Image.Image"
    name: str
    number: int = 1
    count: int = 1
    dpi: float | None = None


class _Stream(BytesIO):
    """Content of stdin or of a pipe.

    Args:
        content: all of it.
        name: name for messages.
    """

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def read_streams(sources: Sequence[str]) -> list[str | BinaryIO]:
    """Replace `-` by the content of stdin, and a named pipe or `/dev/stdin` by its content.

    Raises:
        InputError: one of them holds nothing, or stdin is a terminal.
    """
    opened: list[str | BinaryIO] = []
    for source in sources:
        if source == STDIN and sys.stdin.isatty():
            raise InputError("- reads an image from stdin, which is a terminal: pipe a file into it")
        if source == STDIN:
            stream = _Stream(sys.stdin.buffer.read(), "stdin")
        elif is_file(source) or not is_file(source, fifo=True):
            opened.append(source)
            continue
        else:
            stream = _Stream(Path(source).read_bytes(), source)
        if not stream.getbuffer().nbytes:
            raise InputError(f"{stream.name} is empty" + (" or was read before" if sources.count(source) > 1 else ""))
        opened.append(stream)
    return opened


def is_file(source: str, fifo: bool = False) -> bool:
    """Return whether a text is the path of a file, or of a named pipe."""
    try:
        path = Path(source).expanduser()
        return path.is_fifo() if fifo else path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or no home folder
        return False


def is_pdf(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is a PDF."""
    return b"%PDF-" in head[:HEADER]


def select_pages(selection: str | Sequence[int] | None, count: int, name: str = "the document") -> list[int]:
    """Return the page numbers of a selection, in its order.

    Args:
        selection: numbers and ranges from 1, such as "1", "2-4" or "1,3-" (to the end); None for all pages.
        count: pages of the document.
        name: the document, for messages.

    Raises:
        ValueError: the selection cannot be read, or names a page that is not there.
    """
    if selection is None:
        return list(range(1, count + 1))
    if not isinstance(selection, str):
        numbers = [int(number) for number in selection]
    else:
        numbers = []
        for part in selection.split(","):
            match = re.fullmatch(r"\s*(\d{1,9})?\s*(-)?\s*(\d{1,9})?\s*", part)
            if match is None or not any(match.group(1, 3)) or (match[3] and not match[2]):
                raise InputError(f"pages {selection!r} cannot be read: expected numbers and ranges such as 1,3-5")
            first = int(match[1] or 1)
            last = int(match[3]) if match[3] else (count if match[2] else first)
            if last < first and match[3]:
                raise InputError(f"pages {part.strip()!r}: the range ends before it begins")
            if max(first, last) > count or first < 1:
                strange = first if not 1 <= first <= count else last
                raise InputError(f"{name} has {_pages(count)}, and no page {strange}")
            numbers += range(first, last + 1)
    for number in numbers:
        if not 1 <= number <= count:
            raise InputError(f"{name} has {_pages(count)}, and no page {number}")
    if not numbers:
        raise InputError("no page is chosen")
    return list(dict.fromkeys(numbers))


def open_pages(
    source: Any,
    pages: str | Sequence[int] | None = None,
    *,
    max_pages: int = MAX_PAGES,
    num_pixels: int = DEFAULT_PIXELS,
    max_pixels: int | None = None,
    name: str = "image",
) -> list[Page]:
    """Open a document or an image as its pages.

    Args:
        source: path, bytes, binary file, `data:` URL, or whatever else the image processor takes.
        pages: see `select_pages`; None for all.
        max_pages: most pages taken at a time.
        num_pixels: pixels of a page that the model can use, see `ImagePlanner.num_pixels`.
        max_pixels: most pixels of an image that is decoded; None for the image processor's bound.
        name: name for messages, for a source without a path.

    Raises:
        ValueError: the source cannot be read, is encrypted, has no such page, or has more pages than `max_pages`.
    """
    source, name = _readable(source, name)
    if isinstance(source, bytes | Path):
        head = source[:HEADER] if isinstance(source, bytes) else _head(source)
        if is_pdf(head):
            return _pdf_pages(source, pages, max_pages, num_pixels, name)
        if head.startswith(TIFF_MAGICS):
            return _tiff_pages(source, pages, max_pages, max_pixels, name)
    select_pages(pages, 1, name)
    return [Page(_decode(source, name, max_pixels), name)]


def open_all(
    sources: Sequence[Any], pages: str | None = None, *, max_pages: int = MAX_PAGES, **options: Any
) -> list[Page]:
    """Open several documents and images; a selection of pages counts for the documents of several pages.

    Args:
        sources: see `open_pages`.
        pages: see `select_pages`.
        max_pages: most pages of a document.
        options: see `open_pages`.

    Raises:
        ValueError: see `open_pages`; or pages are chosen and every source is a single image.
    """
    if pages is not None and len(sources) > 1:
        counts = [count_pages(source) for source in sources]
        if max(counts) == 1:
            raise InputError(f"pages {pages!r} are chosen, but none of the {len(sources)} files has several pages")
    else:
        counts = [2] * len(sources)
    opened = [
        open_pages(source, pages if count > 1 else None, max_pages=max_pages, **options)
        for source, count in zip(sources, counts, strict=True)
    ]
    return [page for document in opened for page in document]


def count_pages(source: Any, name: str = "image") -> int:
    """Return the number of pages of a document; 1 for any other image.

    Raises:
        ValueError: a document cannot be read.
    """
    source, name = _readable(source, name)
    if not isinstance(source, bytes | Path):
        return 1
    head = source[:HEADER] if isinstance(source, bytes) else _head(source)
    if is_pdf(head):
        with _PDFIUM_LOCK:
            document = _open_pdf(source, name)
            try:
                return len(document)
            finally:
                document.close()
    if head.startswith(TIFF_MAGICS):
        with _open_tiff(source, name) as image:
            return _count_frames(image, name)
    return 1


def _readable(source: Any, name: str) -> tuple[Any, str]:
    """Return bytes or an existing path where the source is a file in some form, and its name for messages."""
    if isinstance(source, str) and DATA_URL.match(source):
        from .model.images import decode_base64

        return decode_base64(source, name), name
    if isinstance(source, str | os.PathLike) and not str(source).startswith(("http://", "https://")):
        try:
            written = str(source)
            if written[:5].lower() == "file:" and urlsplit(written).netloc in ("", "localhost"):
                written = url2pathname(urlsplit(written).path)
            path = Path(os.path.expanduser(written))
            return (path, str(source)) if path.is_file() else (source, str(source))
        except (OSError, ValueError):  # a long text in base64 is no path
            return source, name
    if isinstance(source, bytearray | memoryview):
        return bytes(source), name
    if hasattr(source, "read") and hasattr(source, "seek"):
        source.seek(0)
        return source.read(), str(getattr(source, "name", name))
    return source, name


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER)


def _decode(source: Any, name: str, max_pixels: int | None) -> "Image.Image":
    from .model.images import decode_image

    bound = {} if max_pixels is None else {"max_pixels": max_pixels}
    return decode_image(source, name=name, **bound)


def _chosen(pages: str | Sequence[int] | None, count: int, max_pages: int, name: str) -> list[int]:
    numbers = select_pages(pages, count, name)
    if len(numbers) > max_pages:
        chosen = "" if pages is None else f", and {len(numbers)} are chosen"
        advice = f"some, such as pages 1-{max_pages} (--pages)" if max_pages > 1 else "one (--page)"
        bound = f"{max_pages} are" if max_pages > 1 else "1 is"
        raise InputError(f"{name} has {_pages(count)}{chosen}; at most {bound} taken at a time: choose {advice}")
    return numbers


def _pages(count: int) -> str:
    return f"{count} page" if count == 1 else f"{count} pages"


def _page_name(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}, page {number} of {count}"


def _open_pdf(source: bytes | Path, name: str) -> Any:
    """Raise: ValueError: the file is encrypted or damaged."""
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(source)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise InputError(f"{name} is encrypted: save it without a password first") from error
        raise InputError(f"{name} is damaged, or no PDF that can be read: {error}") from error


def _pdf_pages(
    source: bytes | Path, pages: str | Sequence[int] | None, max_pages: int, num_pixels: int, name: str
) -> list[Page]:
    import pypdfium2

    with _PDFIUM_LOCK:
        document = _open_pdf(source, name)
        try:
            count = len(document)
            if count == 0:
                raise InputError(f"{name} has no pages")
            numbers = _chosen(pages, count, max_pages, name)
            document.init_forms()  # fields that are filled in are drawn, too
            opened = []
            for number in numbers:
                page_name = _page_name(name, number, count)
                try:
                    page = document[number - 1]
                    width, height = page.get_size()
                    scale = page_scale(width, height, num_pixels, page_name)
                    image = page.render(scale=scale, rev_byteorder=True).to_pil().convert("RGB")
                    page.close()
                except pypdfium2.PdfiumError as error:
                    raise InputError(f"{page_name} cannot be rendered: {error}") from error
                opened.append(Page(image, page_name, number, count, scale * POINTS_PER_INCH))
            return opened
        finally:
            document.close()


def page_scale(width: float, height: float, num_pixels: int, name: str = "page") -> float:
    """Return the pixels per point at which a PDF page is rendered.

    Args:
        width: page width in points (1/72 inch).
        height: page height in points.
        num_pixels: pixels that the model can use.
        name: the page, for messages.

    Raises:
        ValueError: the page has no area.
    """
    if not (width > 0 and height > 0 and math.isfinite(width * height)):
        raise InputError(f"{name} has no area: {width} x {height} points")
    useful = math.sqrt(num_pixels / (width * height))
    # A small page (a ticket, a label) is not blown up beyond print resolution unless the slices can use it.
    return max(useful, min(OVERSAMPLING * useful, MAX_DPI / POINTS_PER_INCH))


def _open_tiff(source: bytes | Path, name: str) -> "Image.Image":
    from PIL import Image

    from .model.exif import ExcessiveTags, check_file_tags, check_path_tags

    try:
        check_file_tags(source, name) if isinstance(source, bytes) else check_path_tags(str(source), name)
    except ExcessiveTags as error:
        raise InputError(str(error)) from error
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=["TIFF"])
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise InputError(f"{name} cannot be read: {error}") from error


def _count_frames(image: "Image.Image", name: str) -> int:
    try:
        for number in range(MAX_COUNTED):
            try:
                image.seek(number)
            except EOFError:
                return number
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise InputError(f"{name} is damaged: {error}") from error
    raise InputError(f"{name} has more than {MAX_COUNTED} pages")


def _tiff_pages(
    source: bytes | Path, pages: str | Sequence[int] | None, max_pages: int, max_pixels: int | None, name: str
) -> list[Page]:
    from .model.images import MAX_PIXELS

    bound = MAX_PIXELS if max_pixels is None else max_pixels
    with _open_tiff(source, name) as image:
        count = _count_frames(image, name)
        opened = []
        for number in _chosen(pages, count, max_pages, name):
            page_name = _page_name(name, number, count)
            try:
                image.seek(number - 1)
                if image.width * image.height > bound:
                    raise InputError(
                        f"{page_name} has {image.width} x {image.height} pixels; at most {bound} are allowed"
                    )
                frame = image.copy()
            except InputError:
                raise
            except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
                raise InputError(f"{page_name} is damaged or cut short: {error}") from error
            opened.append(Page(_decode(frame, page_name, bound), page_name, number, count))
        return opened
