"""Page layout in one style: a cursor that moves down line by line, and the questions collected on the way.

Documents are laid out for the encoder's eye: the unit is the *window*, the part of the page behind one image token.
A text of about one window's height shows one to three characters a window, which is readable in the slices; in the
overview, with a sixth of the area, it is not.
"""

import random
from dataclasses import dataclass

from ..model.slicing import plan_slices
from .fonts import BOLD, FONTS, text_width
from .page import Box, Color, Page, Text

VIEW_SIZE = 112
PATCH_SIZE = 14
QUERY_GRID = 8
MAX_SLICES = 7


@dataclass(frozen=True)
class Question:
    """Question about a document, with its only correct answer.

    Attributes:
        source: text of the page that contains the answer.
    """

    text: str
    answer: str
    source: Text


class Canvas:
    """Place texts on a page in one style.

    Attributes:
        page: page with all texts and boxes placed so far.
        questions: questions about the page.
        left, right: x of the margins. `top`: y of the next line's top. `bottom`: y where the page ends.
        pitch: distance of the lines, always more than a window's height, so that no two lines share a row of windows.
    """

    def __init__(self, rng: random.Random, size: tuple[int, int]):
        self.rng = rng
        width, height = size
        plan = plan_slices(width, height, max_slices=MAX_SLICES, view_size=VIEW_SIZE, patch_size=PATCH_SIZE)
        columns, rows = plan.grid or (1, 1)
        self.window = (width / (columns * QUERY_GRID), height / (rows * QUERY_GRID))
        side = (self.window[0] * self.window[1]) ** 0.5
        self.unit = side / PATCH_SIZE
        self.restyle()
        self.page = Page(size, _paper(rng))
        self.left = rng.uniform(0.3, 1.2) * self.window[0]
        self.right = width - rng.uniform(0.3, 1.2) * self.window[0]
        self.top = rng.uniform(0.2, rng.choice((1.2, 1.2, 4.0)) * rows**0.5) * self.window[1]
        self.bottom = height - 0.3 * self.window[1]
        self.questions: list[Question] = []
        self.hints: list[Question] = []

    def restyle(self) -> None:
        """Choose font, size, pitch and ink at random."""
        self.font = self.rng.choice(FONTS)
        self.size = round(self.rng.uniform(0.92, 1.18) * PATCH_SIZE * self.unit)
        self.pitch = max(self.rng.uniform(1.15, 1.7) * self.size, 1.12 * self.window[1])
        self.ink = _ink(self.rng)

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def bold(self) -> str:
        """Bold face of the font, or the font itself if it has none."""
        return BOLD.get(self.font, self.font)

    def lines_left(self) -> int:
        return max(int((self.bottom - self.top) / self.pitch), 0)

    def measure(self, text: str, font: str | None = None, size: int | None = None) -> float:
        return text_width(text, font or self.font, size or self.size)

    def place(self, text: str, x: float, align: float = 0.0, font: str | None = None, size: int | None = None) -> Text:
        """Place a text on the current line: its left end, middle or right end at x (align 0, 0.5 or 1)."""
        font, size = font or self.font, size or self.size
        x -= align * text_width(text, font, size)
        placed = Text(text, x, self.top + 0.5 * self.pitch + 0.36 * size, font, size, self.ink)
        self.page.texts.append(placed)
        return placed

    def next_line(self, lines: float = 1.0) -> None:
        self.top += lines * self.pitch

    def rule(self) -> None:
        """Place a thin rule across the page between the last line of text and the next one."""
        thickness = max(self.unit * self.rng.uniform(0.5, 1.0), 1.0)
        y = self.top
        self.page.boxes.append(Box((self.left, y, self.right, y + thickness), fill=self.ink))

    def box(self, bounds: tuple[float, float, float, float], fill: Color | None = None) -> None:
        """Place a filled box, or without a fill an outline in the ink's color."""
        width = max(round(self.unit * 0.7), 1)
        self.page.boxes.append(Box(bounds, fill, None if fill else self.ink, width))

    def heading(self, text: str, align: float = 0.5) -> Text | None:
        """Place a title line, in bold and larger if there is room; nothing is placed if it does not fit."""
        size = round(self.size * self.rng.choice((1.0, 1.15, 1.3)))
        font = self.bold if self.rng.random() < 0.7 else self.font
        if self.measure(text, font, size) > self.width:
            font, size = self.font, self.size
        if self.measure(text, font, size) > self.width:
            return None
        placed = self.place(text, self.left + align * self.width, align, font, size)
        self.next_line(max(size / self.size, 1.0))
        return placed

    def ask(self, templates: tuple[str, ...], answer: str, source: Text, **words: str) -> None:
        """Add a question in one of several wordings whose answer is in a placed text."""
        self.questions.append(Question(self.rng.choice(templates).format(**words), answer, source))

    def hint(self, text: str, answer: str, source: Text) -> None:
        """Add a question for training alone, an intermediate step of another question."""
        self.hints.append(Question(text, answer, source))


def _paper(rng: random.Random) -> Color:
    light = rng.randint(225, 255)
    return light, light - rng.randint(0, 8), light - rng.randint(0, 22)


def _ink(rng: random.Random) -> Color:
    dark = rng.randint(0, 60)
    return dark, dark, min(dark + rng.choice((0, 0, 0, 70)), 130)
