"""Documents by seed and index: kind, size, fonts, questions, and pixels on request.

A document is a pure function of seed, index and the fonts of the machine.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .charts import (
    lay_out_bars,
    lay_out_grouped_bars,
    lay_out_line_chart,
    lay_out_lying_bars,
    lay_out_pie,
    lay_out_scatter,
    lay_out_stacked_bars,
)
from .content import Content
from .fonts import CHARACTERS, find_families
from .listings import lay_out_menu, lay_out_spreadsheet, lay_out_table, lay_out_timetable
from .papers import (
    lay_out_certificate,
    lay_out_form,
    lay_out_invoice,
    lay_out_letter,
    lay_out_note,
    lay_out_order,
    lay_out_plain_page,
    lay_out_scribble,
    lay_out_statement,
)
from .pictures import draw_picture, draw_size
from .questions import Asked, ask_all, ask_of_picture
from .render import draw_sheet
from .screens import lay_out_dialog, lay_out_phone, lay_out_slide
from .sheet import Run, Sheet, draw_style
from .slips import lay_out_card, lay_out_label, lay_out_receipt, lay_out_ticket
from .wear import Wear, apply, draw_wear

PICTURE = "picture"
# Random characters without questions, for training towers; drawn only if asked for.
SCRIBBLE = "scribble"
# Pixels of a page that are shown by default: twelve slices of 224 x 224, about 672 x 896.
SHOWN = 12 * 224**2
DRAWN = 2_000_000
ATTEMPTS = 60
PRINT = (8.5, 30.0)


@dataclass(frozen=True)
class Kind:
    """Kind of document.

    Attributes:
        lay_out: function that fills a sheet.
        widths: range of the page's width, in units of the body text's size.
        aspects: range of height over width.
        weight: sampling weight.
        screen: True for documents shown on screens.
        nouns: everyday nouns for a document of the kind, beside "document" and "page".
    """

    lay_out: Callable[[Sheet], None]
    widths: tuple[float, float]
    aspects: tuple[float, float]
    weight: float = 1.0
    screen: bool = False
    nouns: tuple[str, ...] = ()


_PAGE, _CHART = (1.2, 1.45), (0.5, 0.9)
_CHARTS = ("chart", "figure", "diagram")
KINDS: dict[str, Kind] = {
    "receipt": Kind(lay_out_receipt, (16, 34), (1.5, 3.4), 3, nouns=("receipt", "slip", "bill")),
    "invoice": Kind(lay_out_invoice, (34, 60), _PAGE, 2.5, nouns=("invoice", "bill")),
    "order": Kind(lay_out_order, (34, 60), _PAGE, nouns=("order", "form")),
    "statement": Kind(lay_out_statement, (34, 60), _PAGE, 1.5, nouns=("statement", "list")),
    "letter": Kind(lay_out_letter, (28, 56), _PAGE, 2.5, nouns=("letter", "text")),
    "form": Kind(lay_out_form, (20, 60), (0.7, 1.5), 2.5, nouns=("form", "record")),
    "certificate": Kind(lay_out_certificate, (24, 44), (0.6, 0.8), 1.5, nouns=("certificate", "diploma")),
    "page": Kind(lay_out_plain_page, (20, 64), (0.6, 1.5), 1.5, nouns=("text", "article")),
    "note": Kind(lay_out_note, (12, 30), (0.5, 1.2), nouns=("note", "notice", "slip")),
    "table": Kind(lay_out_table, (16, 60), (0.4, 1.3), 2.5, nouns=("table", "list")),
    "spreadsheet": Kind(lay_out_spreadsheet, (26, 60), (0.4, 0.9), 1.2, True, ("spreadsheet", "table")),
    "menu": Kind(lay_out_menu, (18, 36), (1.0, 1.8), 1.4, nouns=("menu", "list")),
    "timetable": Kind(lay_out_timetable, (16, 44), (0.6, 1.5), nouns=("timetable", "plan")),
    "label": Kind(lay_out_label, (14, 28), (0.6, 1.2), 1.8, nouns=("label", "tag")),
    "ticket": Kind(lay_out_ticket, (20, 36), (0.3, 0.7), nouns=("ticket",)),
    "card": Kind(lay_out_card, (16, 28), (0.5, 0.7), nouns=("card",)),
    "phone": Kind(lay_out_phone, (16, 26), (1.6, 2.2), 1.5, True, ("screen", "screenshot")),
    "dialog": Kind(lay_out_dialog, (18, 34), (0.4, 0.9), 0.6, True, ("window", "dialog")),
    "slide": Kind(lay_out_slide, (22, 40), (0.56, 0.75), 1.2, True, ("slide",)),
    "bars": Kind(lay_out_bars, (22, 44), _CHART, 1.2, True, _CHARTS),
    "lying bars": Kind(lay_out_lying_bars, (20, 40), _CHART, 1, True, _CHARTS),
    "grouped bars": Kind(lay_out_grouped_bars, (26, 44), _CHART, 0.8, True, _CHARTS),
    "stacked bars": Kind(lay_out_stacked_bars, (26, 44), _CHART, 0.8, True, _CHARTS),
    "line chart": Kind(lay_out_line_chart, (24, 44), _CHART, 0.8, True, _CHARTS),
    "pie": Kind(lay_out_pie, (20, 36), (0.4, 0.8), 0.8, True, _CHARTS),
    "scatter": Kind(lay_out_scatter, (22, 40), (0.6, 0.9), 0.5, True, _CHARTS),
    SCRIBBLE: Kind(lay_out_scribble, (16, 60), (0.6, 1.5), 0.0),
    PICTURE: Kind(lambda sheet: None, (0, 0), (1, 1), 1.6),
}


@dataclass(frozen=True)
class Glyphs:
    """Characters of an image with their positions.

    Attributes:
        text: the N characters.
        runs: (N,) index of each character's run in the sheet.
        points: (N, 2) x and y of each character's center in pixels of the image.
        sizes: (N,) font sizes in pixels.
        edges: (N, 2) x of each character's left and right edge in pixels of the image.
        begins: (N,) True where a run begins or a space stands before.
    """

    text: str
    runs: np.ndarray
    points: np.ndarray
    sizes: np.ndarray
    edges: np.ndarray
    begins: np.ndarray


@dataclass(frozen=True)
class VariedDocument:
    """Document, or an image without text, with its questions.

    Attributes:
        size: (width, height) of the image in pixels.
        sheet, wear: the page and its degradation; None for an image without text.
        seed: seed of the pixels of an image without text.
    """

    kind: str
    size: tuple[int, int]
    questions: tuple[Asked, ...]
    sheet: Sheet | None
    wear: Wear | None
    seed: str

    def render(self) -> Image.Image:
        """Render the RGB image."""
        if self.sheet is None or self.wear is None:
            return draw_picture(random.Random(self.seed))
        return apply(draw_sheet(self.sheet), self.wear)

    @cached_property
    def glyphs(self) -> Glyphs:
        """Every visible character of the image, run after run."""
        if self.sheet is None or self.wear is None:
            return Glyphs("", np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2)), np.zeros(0, bool))
        found = [
            (number, *glyph, before == " ")
            for number, run in enumerate(self.sheet.texts)
            for glyph, before in zip(run.boxes(), " " + run.text, strict=False)
            if glyph[0] != " "
        ]
        sizes = np.array([run.size for run in self.sheet.texts], float)
        runs = np.array([number for number, *_ in found], int)
        left, right, y = np.array([box for _, _, *box, _ in found], float).reshape(-1, 3).T
        middle, start, end = (self.wear.place(np.column_stack([x, y])) for x in ((left + right) / 2, left, right))
        text = "".join(character for _, character, *_ in found)
        begins = np.array([begins for *_, begins in found], bool)
        return Glyphs(text, runs, middle, sizes[runs], np.column_stack([start[:, 0], end[:, 0]]), begins)

    def characters(self) -> Iterator[tuple[str, float, float, float]]:
        """Yield every visible character with the x and y of its center in the image and its font size, by run."""
        glyphs = self.glyphs
        yield from zip(glyphs.text, *glyphs.points.T.tolist(), glyphs.sizes.tolist(), strict=True)

    def scale(self, shown: int = SHOWN) -> float:
        """Pixels that the model sees for one of the image's, along a side, if it sees at most `shown` in all."""
        return min((shown / (self.size[0] * self.size[1])) ** 0.5, 1.0)


def make_varied(
    seed: int | str,
    index: int,
    *,
    kind: str | None = None,
    shown: int = SHOWN,
    print_sizes: tuple[float, float] = PRINT,
    fonts: tuple[Path, ...] | None = None,
) -> VariedDocument:
    """Return the document of a seed and an index.

    Args:
        seed: seed of the set of documents.
        index: index of the document in the set.
        kind: one of `KINDS`; None to sample one by weight.
        shown: maximum number of pixels that the model sees; text is large enough to be read at that resolution.
        print_sizes: range of the body text's size in pixels after the model's resizing.
        fonts: folders of fonts in addition to the wheel's; None for those of the system.

    Raises:
        ValueError: the page is too small for its print.
    """
    rng = random.Random(f"varied:{seed}:{index}")
    weights = [each.weight for each in KINDS.values()]
    for _ in range(ATTEMPTS):
        # What does not fit a small page gives way to another kind, unless it was asked for.
        tried = kind or rng.choices(list(KINDS), weights)[0]
        if tried == PICTURE:
            picture_seed = f"picture:{seed}:{index}"
            size = draw_size(random.Random(picture_seed))
            return VariedDocument(tried, size, tuple(ask_of_picture(rng)), None, None, picture_seed)
        sheet = _lay_out(rng, tried, shown, print_sizes, fonts)
        if (sheet.facts or tried == SCRIBBLE) and _holds_its_text(sheet):
            questions = tuple(ask_all(sheet, KINDS[tried].nouns)) if sheet.facts else ()
            if questions or tried == SCRIBBLE:
                wear = draw_wear(rng, sheet.size, sheet.em, KINDS[tried].screen)
                return VariedDocument(tried, wear.size, questions, sheet, wear, f"{seed}:{index}")
    raise ValueError(
        f"no {kind or 'document'} of {ATTEMPTS} fits {shown} pixels at a print of {print_sizes[0]} pixels and more"
    )


def _lay_out(
    rng: random.Random, kind: str, shown: int, print_sizes: tuple[float, float], fonts: tuple[Path, ...] | None
) -> Sheet:
    about = KINDS[kind]
    width, aspect = rng.uniform(*about.widths), rng.uniform(*about.aspects)
    least, most = print_sizes
    # The largest print at which the page is shown whole; a page too wide for the least print is made smaller.
    largest = (shown / (width * width * aspect)) ** 0.5
    if largest < least:
        width *= largest / least
        largest = least
    size_shown = least * (min(largest, most) / least) ** rng.random()
    drawn = size_shown * (rng.uniform(1.0, 2.2) if rng.random() < 0.4 else 1.0)
    size = max(round(min(drawn, (DRAWN / (width * width * aspect)) ** 0.5)), 8)
    style = draw_style(rng, find_families(fonts), size, 0.2 if about.screen else 0.05)
    content = Content(rng)
    sheet = Sheet(rng, content, style, (round(width * size), round(width * aspect * size)), fonts)
    about.lay_out(sheet)
    return sheet


def _holds_its_text(sheet: Sheet) -> bool:
    """Return True if all text is on the page, in characters that every font has, and no two runs overlap."""
    width, height = sheet.size
    lines: dict[int, list[tuple[float, float]]] = {}
    turned: list[Run] = []
    for run in sheet.texts:
        left, top, right, bottom = run.bounds
        if min(left, top) < 0 or right > width or bottom > height or not set(run.text) <= set(CHARACTERS):
            return False
        if run.angle:
            turned.append(run)
        else:
            lines.setdefault(round(run.baseline), []).append((left, right))
    for spans in lines.values():
        spans.sort()
        if any(second[0] < first[1] - 0.5 for first, second in zip(spans, spans[1:], strict=False)):
            return False
    return not any(_meet(first, second) for first, second in zip(turned, turned[1:], strict=False))


def _meet(first: Run, second: Run) -> bool:
    """Return whether two runs that are turned alike overlap."""
    right, down = second.x - first.x, second.baseline - first.baseline
    cosine, sine = math.cos(math.radians(first.angle)), math.sin(math.radians(first.angle))
    along, aside = cosine * right - sine * down, abs(sine * right + cosine * down)
    return first.angle == second.angle and aside < first.size and -second.width < along < first.width
