"""Documents of the first generator, `llava_uhd.synthetic`, as those of `varied` are used in the training.

The benchmark `synthdoc` has these documents: their letters are larger than most, and their questions have one wording.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from llava_uhd.synthetic.canvas import Question
from llava_uhd.synthetic.charts import HIGHEST, HIGHEST_VALUE, LOWEST, LOWEST_VALUE, WHICH
from llava_uhd.synthetic.documents import Document, make_document
from llava_uhd.synthetic.fonts import advance
from llava_uhd.synthetic.page import Page, Text
from llava_uhd.synthetic.render import render
from llava_uhd.synthetic.varied import NOT_THERE, Glyphs, VariedDocument
from llava_uhd.synthetic.varied.notes import compare_rows
from llava_uhd.synthetic.varied.sheet import Run
from llava_uhd.synthetic.vocabulary import FIRST_NAMES, GOODS, THINGS


@dataclass(frozen=True)
class EarlierQuestion:
    """A question; `sources` is the text that the answer is a part of, `keys` those by which it is found.

    `notes` has the note of each key; see `llava_uhd.synthetic.varied.notes`.
    """

    text: str
    answer: str
    sources: tuple[Text, ...]
    keys: tuple[Text, ...] = ()
    notes: tuple[str, ...] = ()


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
        """Those of the document, and one that names what is not there instead of what it asks for."""
        asked = [
            EarlierQuestion(each.text, each.answer, (each.source,), *self._keys(each))
            for each in self.document.questions
        ]
        return (*asked, *self._absent(asked))

    def _absent(self, asked: Sequence[EarlierQuestion]) -> list[EarlierQuestion]:
        """A question with another name than one that is printed, which the page does not answer."""
        printed = " ".join(text.text for text in self.document.page.texts).lower()
        rng = random.Random(printed)
        others = [word for word in (*GOODS, *THINGS, *FIRST_NAMES) if word.lower() not in printed]
        for question in rng.sample(asked, k=len(asked)):
            for key in question.keys:
                name = key.text.rstrip(":")
                found = re.search(rf"\b{re.escape(name)}\b", question.text, re.IGNORECASE)
                if found is not None and len(name) > 2:
                    other = rng.choice(others)
                    other = other.lower() if found[0].islower() else other
                    text = question.text[: found.start()] + other + question.text[found.end() :]
                    return [EarlierQuestion(text, NOT_THERE, ())]
        return []

    def _keys(self, question: Question) -> tuple[tuple[Text, ...], tuple[str, ...]]:
        """Texts that a question is answered by, with notes: all bars where they are compared, or a name."""
        if question.text in HIGHEST:
            return self._bars(HIGHEST_VALUE, max)
        if question.text in LOWEST:
            return self._bars(LOWEST_VALUE, min)
        return self._named(question), ()

    def _bars(
        self, of_value: str, best: Callable[[Sequence[float]], float]
    ) -> tuple[tuple[Text, ...], tuple[str, ...]]:
        """All bars as they are read; the best value if notes do not tell it. The document's hints ask for both."""
        values = [text for text in self.document.page.texts if text.text.rstrip("%").isdecimal()]
        asked = {WHICH.format(value=value.text) for value in values}
        names = [hint.source for hint in self.document.hints if hint.text in asked]
        keys, notes = compare_rows(names, values, [float(value.text.rstrip("%")) for value in values], best)
        return (keys, notes) if notes else (self._hinted(of_value), ())

    def _hinted(self, asked: str) -> tuple[Text, ...]:
        return tuple(hint.source for hint in self.document.hints if hint.text == asked)

    def _named(self, question: Question) -> tuple[Text, ...]:
        """The text that a question names on the line of its answer, in tables also the one above, or else a bar's."""
        source, asked = question.source, question.text.lower()
        # Of two names the longer one: a short one may be a part of another word.
        named = sorted(
            (
                text
                for text in self.document.page.texts
                if text is not source and text.text.rstrip(":").lower() in asked
            ),
            key=lambda text: (-len(text.text), abs(text.x - source.x)),
        )
        lower = [(text.baseline - source.baseline) / source.size for text in named]
        beside = [text for text, lines in zip(named, lower, strict=True) if abs(lines) <= 0.5][:1]
        above = [text for text, lines in zip(named, lower, strict=True) if lines < -0.5][:1]
        if beside:
            return (*beside, *above) if self.kind == "table" else tuple(beside)
        return tuple(above or named[:1])

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


def make_earlier(seed: int | str, index: int, kind: str | None = None) -> EarlierDocument:
    """Return the document of a seed, an index and a kind; `make_document` never gives one without text."""
    return EarlierDocument(make_document(seed, index, kind=kind))


AnyDocument = VariedDocument | EarlierDocument
AnyText = Run | Text
