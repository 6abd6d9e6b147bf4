"""Documents of several pages in a request: rendered by a process of its own, which is killed when its time is over.

    python -m llava_uhd.serving.documents '{"name": "report.pdf", ...}' < report.pdf

A PDF may take any time to render, and its renderer cannot be interrupted. The process imports no more than it needs
(no torch), writes one line of JSON, the sizes of the pages' files or an error, and then the files.
"""

import json
import os
import subprocess
import sys
import threading
import time
from io import BytesIO

from ..pages import TIFF_MAGICS, is_pdf
from .generation import DeadlineExceeded

MAX_PROCESSES = 2  # at a time
NICENESS = 10  # of a process: the answers of others go first
MAX_MEMORY = 4 * 2**30  # bytes of address space of a process
_PLACES = threading.BoundedSemaphore(MAX_PROCESSES)


def has_pages(content: bytes) -> bool:
    """Return whether a file is one of those that may have several pages."""
    return is_pdf(content) or content.startswith(TIFF_MAGICS)


def read_pages(
    content: bytes, name: str, max_pages: int, num_pixels: int, max_pixels: int, seconds: float, deadline: float
) -> list[bytes]:
    """Return the pages of a document as encoded images.

    Args:
        content: bytes of a PDF or TIFF file.
        name: name of the document for error messages.
        max_pages: most pages.
        num_pixels: pixels of a page that the model can use.
        max_pixels: most pixels of a page of a TIFF.
        seconds: time that rendering may take.
        deadline: time on the clock of `time.monotonic`.

    Raises:
        ValueError: the document is damaged, encrypted, too long, or takes too long to render.
        DeadlineExceeded: the deadline is over.
    """
    values = {"name": name, "max_pages": max_pages, "num_pixels": num_pixels, "max_pixels": max_pixels}
    if not _PLACES.acquire(timeout=max(deadline - time.monotonic(), 0)):
        raise DeadlineExceeded("the documents of other requests took too long")
    try:
        left = max(min(seconds, deadline - time.monotonic()), 0.001)
        command = [sys.executable, "-m", __name__, json.dumps(values)]
        done = subprocess.run(command, input=content, capture_output=True, timeout=left, check=False)
    except subprocess.TimeoutExpired as error:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("the document took too long to render") from error
        raise ValueError(f"{name} took more than {seconds:g} s to render") from error
    finally:
        _PLACES.release()
    head, _, files = done.stdout.partition(b"\n")
    if done.returncode != 0 or not head:
        raise ValueError(f"{name} cannot be rendered: its renderer ended with exit code {done.returncode}")
    answer = json.loads(head)
    if "error" in answer:
        raise ValueError(answer["error"])
    pages, place = [], 0
    for size in answer["sizes"]:
        pages.append(files[place : place + size])
        place += size
    return pages


def _tiff_files(content: bytes, name: str, max_pages: int, max_pixels: int) -> list[bytes]:
    """Return the pages of a TIFF, each as a TIFF of its own, which keeps every color mode."""
    from PIL import Image, ImageOps

    from ..model.exif import check_file_tags

    check_file_tags(content, name)
    files = []
    with Image.open(BytesIO(content), formats=["TIFF"]) as image:
        for number in range(max_pages + 1):
            try:
                image.seek(number)
            except EOFError:
                break
            if number == max_pages:
                raise ValueError(f"{name} has more than {max_pages} pages; at most {max_pages} are allowed")
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"{name}, page {number + 1} has {size} pixels; at most {max_pixels} are allowed")
            file = BytesIO()
            ImageOps.exif_transpose(image.copy()).save(file, "TIFF")
            files.append(file.getvalue())
    return files


def _pdf_files(content: bytes, name: str, max_pages: int, num_pixels: int) -> list[bytes]:
    """Return the pages of a PDF as PNG files."""
    from ..pages import count_pages, open_pages

    if (count := count_pages(content, name)) > max_pages:
        raise ValueError(f"{name} has {count} pages; at most {max_pages} are allowed")
    files = []
    for number in range(1, count + 1):
        (page,) = open_pages(content, [number], num_pixels=num_pixels, name=name)
        file = BytesIO()
        page.image.save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    return files


def main() -> None:
    """Render the document on stdin."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        os.nice(NICENESS)
    values = json.loads(sys.argv[1])
    content, name = sys.stdin.buffer.read(), values["name"]
    try:
        if is_pdf(content):
            files = _pdf_files(content, name, values["max_pages"], values["num_pixels"])
        else:
            files = _tiff_files(content, name, values["max_pages"], values["max_pixels"])
    except ModuleNotFoundError as error:
        answer: dict = {"error": f"{name} cannot be rendered here: the server has no {error.name}"}
        files = []
    except Exception as error:  # readers meet damaged files with errors of any kind; the parent tells the client
        answer, files = {"error": str(error) if isinstance(error, ValueError) else f"{name} is damaged: {error}"}, []
    else:
        answer = {"sizes": [len(file) for file in files]}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + b"".join(files))


if __name__ == "__main__":
    main()
