"""Page under construction: runs of text and shapes at exact positions in one style, and the facts of the page.

Sizes and positions are pixels of the rendered page, (x, y) from the top left. The unit of every layout is the size of
its body text, so that one layout serves a slip and a sheet of A4.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..page import MIDDLE, Color
from .content import Content
from .fonts import Face, Family, character_offsets, text_width

if TYPE_CHECKING:
    from .facts import Fact

# Heights of a line's letters above and below the baseline, in font sizes.
RISE, FALL = 0.75, 0.25


@dataclass(frozen=True)
class Run:
    """Run of characters on one baseline.

    Attributes:
        x: left end in pixels. `baseline`: y of the baseline there. `size`: font size in pixels.
        angle: degrees by which the text rises from its left end, about which it is turned.
    """

    text: str
    x: float
    baseline: float
    face: Face
    size: int
    color: Color
    angle: float = 0.0

    @property
    def width(self) -> float:
        return text_width(self.text, self.face, self.size)

    def turn(self, right: float, down: float) -> tuple[float, float]:
        """Return x and y of a point so far right of the left end and below the baseline, before the text is turned."""
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        return self.x + cosine * right + sine * down, self.baseline - sine * right + cosine * down

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the box that the text is in."""
        corners = [self.turn(x, y * self.size) for x in (0.0, self.width) for y in (-RISE, FALL)]
        (left, *_, right), (top, *_, bottom) = map(sorted, zip(*corners, strict=True))
        return left, top, right, bottom

    def boxes(self) -> Iterator[tuple[str, float, float, float]]:
        """Yield each character with the x of its left and right edge and the y of its center."""
        offsets = character_offsets(self.text, self.face, self.size)
        cosine = math.cos(math.radians(self.angle))
        for character, left, right in zip(self.text, offsets, offsets[1:], strict=False):
            x, y = self.turn((left + right) / 2, -MIDDLE * self.size)
            half = cosine * (right - left) / 2
            yield character, x - half, x + half, y

    def characters(self) -> Iterator[tuple[str, float, float]]:
        """Yield each character with the x and y of its center."""
        for character, left, right, y in self.boxes():
            yield character, (left + right) / 2, y


@dataclass(frozen=True)
class Shape:
    """Shape: `box`, `round` (a box with round corners), `ellipse`, `line`, `polygon`, `slice` (of a pie).

    Attributes:
        points: corners; for a pie's slice the bounding box of the circle, with `angles` in degrees.
        width: width of the outline or line in pixels.
    """

    kind: str
    points: tuple[tuple[float, float], ...]
    fill: Color | None = None
    outline: Color | None = None
    width: int = 1
    angles: tuple[float, float] = (0.0, 360.0)


@dataclass(frozen=True)
class Style:
    """Look of one document.

    Attributes:
        body, head: families of the text and of titles.
        size: size of the body text in pixels.
        pitch: distance of the lines in pixels.
        paper, ink, accent, soft: colors of the ground, the text, titles and rules, and filled rows.
    """

    body: Family
    head: Family
    size: int
    pitch: float
    paper: Color
    ink: Color
    accent: Color
    soft: Color


def draw_style(rng: random.Random, families: tuple[Family, ...], size: int, dark: float = 0.08) -> Style:
    """Sample a style.

    Args:
        rng: random generator of the document.
        families: fonts to choose from.
        size: size of the body text in pixels.
        dark: probability of light text on a dark ground.
    """
    body = rng.choice(families)
    head = body if rng.random() < 0.6 else rng.choice(families)
    hue = _accent(rng)
    if rng.random() < dark:
        level = rng.randint(10, 60)
        paper: Color = (level, level, min(level + rng.choice((0, 0, 15, 40)), 255))
        ink = (rng.randint(205, 255),) * 3
        accent: Color = tuple(min(part + 110, 255) for part in hue)  # type: ignore[assignment]
        soft: Color = tuple(min(part + 28, 255) for part in paper)  # type: ignore[assignment]
    else:
        light = rng.choice((255, 255, rng.randint(228, 255)))
        paper = (light, light - rng.choice((0, 0, rng.randint(0, 8))), light - rng.choice((0, 0, rng.randint(0, 26))))
        shade = rng.choice((0, rng.randint(0, 70)))
        ink = (shade, shade, min(shade + rng.choice((0, 0, 60)), 140))
        accent = hue if rng.random() < 0.6 else ink
        soft = tuple(max(part - rng.randint(10, 26), 0) for part in paper)  # type: ignore[assignment]
    return Style(body, head, size, rng.uniform(1.22, 1.7) * size, paper, ink, accent, soft)


def _accent(rng: random.Random) -> Color:
    """Return a dark color of any hue."""
    channels = [rng.randint(0, 60), rng.randint(20, 110), rng.randint(60, 150)]
    rng.shuffle(channels)
    return channels[0], channels[1], channels[2]


@dataclass
class Sheet:
    """Page that is filled from top to bottom.

    Attributes:
        size: (width, height) in pixels; layouts of slips shorten the height to what they used.
        fonts: folders of fonts, see `fonts.find_families`.
        unlabeled: names in `LABELS` of values that are printed without a label, so that no question calls them absent.
        left, right, top, bottom: margins and cursor, in pixels; `top` is where the next line begins.
    """

    rng: random.Random
    content: Content
    style: Style
    size: tuple[int, int]
    fonts: tuple[Path, ...] | None = None
    texts: list[Run] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    unlabeled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        width, height = self.size
        margin = self.rng.uniform(0.8, 3.0) * self.style.size * min(width / (24 * self.style.size), 1.5)
        self.left, self.right = margin, width - margin
        self.top, self.bottom = self.rng.uniform(0.6, 1.6) * margin, height - 0.7 * margin

    @property
    def em(self) -> int:
        return self.style.size

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def lines_left(self) -> int:
        return max(int((self.bottom - self.top) / self.style.pitch), 0)

    def measure(self, text: str, face: Face | None = None, size: int | None = None) -> float:
        return text_width(text, face or self.style.body.regular, size or self.style.size)

    def put(
        self,
        text: str,
        x: float,
        align: float = 0.0,
        face: Face | None = None,
        size: int | None = None,
        color: Color | None = None,
        y: float | None = None,
    ) -> Run:
        """Place a text on the current line: its left end, middle or right end at x (align 0, 0.5 or 1).

        Args:
            text: text to place.
            x: position in pixels from the left edge.
            align: fraction of the text's width left of x.
            face: font face; None for that of the body text.
            size: font size in pixels; None for that of the body text.
            color: color; None for that of the body text.
            y: top of the line in pixels; None for the cursor's.
        """
        face, size = face or self.style.body.regular, size or self.style.size
        top = self.top if y is None else y
        x -= align * text_width(text, face, size)
        run = Run(text, x, top + 0.5 * self.style.pitch + MIDDLE * size, face, size, color or self.style.ink)
        self.texts.append(run)
        return run

    def put_turned(
        self,
        text: str,
        x: float,
        y: float,
        angle: float,
        align: float = 0.5,
        face: Face | None = None,
        size: int | None = None,
    ) -> Run:
        """Place a turned text.

        Args:
            text: text to place.
            x: position of the text at `align`: of its left end, middle or right end (0, 0.5 or 1).
            y: upper end of the box that the text is in.
            angle: degrees by which it rises.
            align: fraction of the text's width left of x.
            face: font face; None for that of the body text.
            size: font size in pixels; None for that of the body text.
        """
        face, size = face or self.style.body.regular, size or self.style.size
        run = Run(text, 0.0, 0.0, face, size, self.style.ink, angle)
        at, _ = run.turn(align * run.width, 0.5 * (FALL - RISE) * size)
        run = replace(run, x=x - at, baseline=y - run.bounds[1])
        self.texts.append(run)
        return run

    def feed(self, lines: float = 1.0) -> None:
        """Move the cursor down by a number of lines."""
        self.top += lines * self.style.pitch

    def rule(self, left: float | None = None, right: float | None = None, color: Color | None = None) -> None:
        """Place a thin rule across the page at the cursor."""
        width = max(round(self.em * self.rng.choice((0.05, 0.08, 0.12))), 1)
        points = ((self.left if left is None else left, self.top), (self.right if right is None else right, self.top))
        self.shapes.append(Shape("line", points, outline=color or self.style.accent, width=width))

    def box(self, bounds: tuple[float, float, float, float], kind: str = "box", **look) -> None:
        """Place a shape in a box (left, top, right, bottom); see `Shape` for its look."""
        left, top, right, bottom = bounds
        self.shapes.append(Shape(kind, ((left, top), (right, bottom)), **look))

    def heading(self, text: str, align: float | None = None, scale: float | None = None) -> Run | None:
        """Place a title, smaller if there is little room; return None if it does not fit."""
        rng = self.rng
        align = rng.choice((0.0, 0.0, 0.5)) if align is None else align
        size = round(self.em * (scale or rng.choice((1.2, 1.4, 1.7, 2.0, 2.6))))
        face = self.style.head.bold if rng.random() < 0.7 else self.style.head.regular
        while self.measure(text, face, size) > self.width and size > 0.8 * self.em:
            size -= 1
        if self.measure(text, face, size) > self.width:
            return None
        self.top += 0.5 * max(size - self.em, 0)
        run = self.put(text, self.left + align * self.width, align, face, size, self.style.accent)
        self.top += 0.5 * max(size - self.em, 0)
        self.feed()
        return run

    def wrap(self, text: str, width: float, face: Face | None = None) -> list[str]:
        """Return the lines of a text that fit a width in pixels, broken at spaces."""
        lines: list[str] = []
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and self.measure(longer, face) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        return [*lines, line] if line else lines

    def crop(self) -> None:
        """Crop the page a little below the last placed element."""
        self.size = (self.size[0], min(self.size[1], round(self.top + self.rng.uniform(0.6, 2.5) * self.em)))

    def characters(self) -> Iterator[tuple[str, float, float, int]]:
        """Yield every visible character with the x and y of its center and its size, run after run."""
        for run in self.texts:
            for character, x, y in run.characters():
                if character != " ":
                    yield character, x, y, run.size
