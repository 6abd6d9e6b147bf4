"""Page before rendering: texts, boxes and lines at exact positions.

Layout is separate from rendering, so that character positions are available without rendering: a decoder can be
trained on the characters of a page alone, and an encoder gets its labels.

Sizes and positions are pixels of the drawn image, (x, y) from the top left.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .fonts import advance, text_width

Color = tuple[int, int, int]
# Height of a text's middle over its baseline, as a part of the font size: half of the height of a capital.
MIDDLE = 0.36


@dataclass(frozen=True)
class Text:
    """Run of characters on one baseline.

    Attributes:
        x: left end in pixels.
        baseline: y of the baseline.
        size: font size in pixels.
    """

    text: str
    x: float
    baseline: float
    font: str
    size: int
    color: Color

    @property
    def width(self) -> float:
        return text_width(self.text, self.font, self.size)

    def characters(self) -> Iterator[tuple[str, float, float]]:
        """Yield each character with the x and y of its center."""
        x, y = self.x, self.baseline - MIDDLE * self.size
        for character in self.text:
            width = advance(self.font, self.size, character)
            yield character, x + width / 2, y
            x += width


@dataclass(frozen=True)
class Box:
    """Rectangle (left, top, right, bottom), filled, outlined or both; a line if one side is thin."""

    bounds: tuple[float, float, float, float]
    fill: Color | None = None
    outline: Color | None = None
    width: int = 1


@dataclass
class Page:
    """Page content, paper and lighting.

    Attributes:
        size: (width, height) in pixels.
        tilt: rotation about the middle in degrees, counter-clockwise.
        light: brightness at the (left, right, top, bottom) edge relative to the middle.
        noise: standard deviation of the grain, in gray levels.
    """

    size: tuple[int, int]
    paper: Color
    tilt: float = 0.0
    light: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    noise: float = 0.0
    texts: list[Text] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def characters(self) -> Iterator[tuple[str, float, float]]:
        """Yield every visible character with the x and y of its center on the tilted page, text after text."""
        for text in self.texts:
            for character, x, y in text.characters():
                if character != " ":
                    yield character, *self.turn(x, y)

    def turn(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point of the page after the tilt."""
        cx, cy = self.size[0] / 2, self.size[1] / 2
        cos, sin = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        dx, dy = x - cx, y - cy
        return cx + cos * dx + sin * dy, cy - sin * dx + cos * dy
