"""Documents of the first generator, `llava_uhd.synthetic`, as those of `varied` are used in the training.

The benchmark `synthdoc` has these documents: their letters are larger than most, and their questions have one wording.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from llava_uhd.synthetic.canvas import Question
from llava_uhd.synthetic.documents import Document, make_document
from llava_uhd.synthetic.fonts import advance
from llava_uhd.synthetic.page import Page, Text
from llava_uhd.synthetic.render import render
from llava_uhd.synthetic.varied import Glyphs, VariedDocument
from llava_uhd.synthetic.varied.sheet import Run


@dataclass(frozen=True)
class EarlierQuestion:
    """A question; `sources` is the text that the answer is a part of, `keys` the one by which it is found."""

    text: str
    answer: str
    sources: tuple[Text, ...]
    keys: tuple[Text, ...] = ()


@dataclass(frozen=True)
class EarlierDocument:
    """A document with what the training reads of a `VariedDocument`."""

    document: Document

    @property
    def kind(self) -> str:
        return self.document.kind

    @property
    def size(self) -> tuple[int, int]:
        return self.document.page.size

    @property
    def sheet(self) -> Page:
        return self.document.page

    @property
    def questions(self) -> tuple[EarlierQuestion, ...]:
        return tuple(
            EarlierQuestion(each.text, each.answer, (each.source,), self._key(each))
            for each in self.document.questions
        )

    def _key(self, question: Question) -> tuple[Text, ...]:
        """The text that a question names on the line of its answer, or else above it."""
        source, asked = question.source, question.text.lower()
        named = [
            text
            for text in self.document.page.texts
            if text is not source and text.text.rstrip(":").lower() in asked and text.baseline <= source.baseline + 1
        ]
        # Of two names on a line the longer one: a short one may be a part of another word.
        named.sort(key=lambda text: (source.baseline - text.baseline > 0.5 * source.size, -len(text.text)))
        return tuple(named[:1])

    def render(self) -> Image.Image:
        return render(self.document.page)

    def scale(self, shown: int) -> float:
        """Pixels that the model sees for one of the image's, along a side, if it sees at most `shown` in all."""
        return min((shown / (self.size[0] * self.size[1])) ** 0.5, 1.0)

    @cached_property
    def glyphs(self) -> Glyphs:
        """Every visible character of the image, text after text."""
        page = self.document.page
        found = []
        for number, text in enumerate(page.texts):
            before = " "
            for character, x, y in text.characters():
                if character != " ":
                    half = advance(text.font, text.size, character) / 2
                    ends = page.turn(x - half, y)[0], page.turn(x + half, y)[0]
                    found.append((character, number, page.turn(x, y), text.size, ends, before == " "))
                before = character
        characters, runs, points, sizes, edges, begins = zip(*found, strict=True)
        return Glyphs(
            "".join(characters),
            np.array(runs),
            np.array(points, float),
            np.array(sizes, float),
            np.array(edges, float),
            np.array(begins),
        )


def make_earlier(seed: int | str, index: int) -> EarlierDocument:
    """Return the document of a seed and an index; `make_document` never gives one without text."""
    return EarlierDocument(make_document(seed, index))


AnyDocument = VariedDocument | EarlierDocument
AnyText = Run | Text
