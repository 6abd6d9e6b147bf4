"""The fonts that come with the package, and how wide their characters are."""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FOLDER = Path(__file__).parent / "fonts"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "OpenSans-Regular",
    "Roboto-Bold",
    "Roboto-Regular",
    "RobotoSlab-Regular",
)
BOLD = {"DejaVuSans": "DejaVuSans-Bold", "Roboto-Regular": "Roboto-Bold"}


@lru_cache(maxsize=1024)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels. Basic layout and no kerning: a text is as wide as its characters together."""
    return ImageFont.truetype(FOLDER / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def advance(name: str, size: int, character: str) -> float:
    """Width of one character in pixels, as drawn."""
    return load_font(name, size).getlength(character)


def text_width(text: str, name: str, size: int) -> float:
    """Width of a text in pixels, as drawn."""
    return sum(advance(name, size, character) for character in text)
