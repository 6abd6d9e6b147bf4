"""State of one browser session: the conversation, and the last answer for the panel."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..generation.prompt import Message, question_message
from ..pages import count_pages, open_pages

Upload = Path | bytes
DOCUMENT_TYPES = (".pdf", ".tif", ".tiff")


@dataclass
class Session:
    """State of one browser session.

    Attributes:
        messages: answered turns, with images as paths of their uploads and pages of documents as PNG bytes.
        answer_ids: token ids of the last answer.
        max_slices: maximum number of slices of the last question; None for the model's own.
    """

    messages: list[Message] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    max_slices: int | None = None

    @property
    def images(self) -> list[Upload]:
        """Images of the conversation in order."""
        parts = [part for message in self.messages for part in message["content"]]
        return [part["image"] for part in parts if part["type"] == "image"]

    @property
    def last_question(self) -> list[Message]:
        """Conversation up to the last question, the prompt of the last answer."""
        return self.messages[:-1]

    def answered(
        self, files: Sequence[str | bytes], question: str, answer: str, answer_ids: list[int], max_slices: int | None
    ) -> "Session":
        """Return the session with one more turn."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        asked = question_message([Path(file) if isinstance(file, str) else file for file in files], question)
        return Session([*self.messages, asked, reply], answer_ids, max_slices)


def with_bytes(messages: Sequence[Message]) -> list[Message]:
    """Read the uploads of messages for the engine, so that its errors do not reveal their paths."""
    return [
        {
            **message,
            "content": [
                {**part, "image": part["image"].read_bytes()} if isinstance(part.get("image"), Path) else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def unfold(files: Sequence[str], pages: str | None, num_pixels: int) -> list[str | bytes]:
    """Return uploads with every document as the images of its pages; other images stay paths.

    Args:
        files: paths of uploads.
        pages: selection of pages, see `llava_uhd.pages.select_pages`.
        num_pixels: number of pixels per page, see `llava_uhd.pages.open_pages`.

    Raises:
        ValueError: a document cannot be read, or has no such page; the message does not reveal its path.
    """
    unfolded: list[str | bytes] = []
    for file in files:
        if Path(file).suffix.lower() not in DOCUMENT_TYPES:
            unfolded.append(file)
            continue
        content, name = Path(file).read_bytes(), Path(file).name
        chosen = pages if len(files) == 1 or count_pages(content, name) > 1 else None
        for page in open_pages(content, chosen, num_pixels=num_pixels, name=name):
            png = io.BytesIO()
            page.image.save(png, format="png", dpi=(page.dpi, page.dpi) if page.dpi else None)
            unfolded.append(png.getvalue())
    return unfolded


def page_dpi(upload: Upload) -> float | None:
    """Return the dots per inch of a page of a PDF, as `unfold` has written it; None for any other image."""
    if not isinstance(upload, bytes):
        return None
    with Image.open(io.BytesIO(upload)) as image:
        dpi = image.info.get("dpi")
    return float(dpi[0]) if dpi else None
