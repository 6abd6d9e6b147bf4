"""Catalog of the fonts on this machine, grouped by family.

The wheel's fonts are always available; a training machine adds the open fonts of its packages, which
`experiments/tiny` lists. Families that the benchmark `webdocs` uses are left out, so that it measures unseen fonts.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from ..fonts import FOLDER

# Printable ASCII and the further characters that documents use.
CHARACTERS = "".join(map(chr, range(32, 127))) + "€£°•–éèüöäñçß"
PROBES = "Aaz09~|@" + CHARACTERS[95:]
SYSTEM_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
# Families of `benchmarks/webdocs.py`.
HELD_OUT = ("inter", "carlito", "caladea", "linux libertine", "linux biolinum", "cabin", "karla", "vollkorn", "hack",
            "sora", "cardo", "noto", "nimbus sans", "stixgeneral")  # fmt: skip
# Symbol, script and display fonts that no document is set in, and mathematical ones.
UNUSABLE = ("math", "symbol", "dingbat", "d050000l", "standard symbols", "initials", "emoji", "icons", "outline",
            "upright italic", "funny", "small caps", "smallcaps", " sc", "caps", "lm mono prop", "swash", "dunhill",
            "bebas", " thin", "chorus", "z003", "chancery", "fell", "stixsize", "stixvariants", "stixnonunicode",
            "stixintegrals", "ocr a", "averia sans gruesa")  # fmt: skip


@dataclass(frozen=True)
class Face:
    """Font file by its path; `index` selects the face of a collection."""

    path: str
    index: int = 0

    def load(self, size: int) -> ImageFont.FreeTypeFont:
        """Load a face at a size in pixels, in basic layout: pair kerning, no ligatures."""
        return _load(self, size)


@dataclass(frozen=True)
class Family:
    """Faces of one family; bold and italic fall back to the regular face."""

    name: str
    regular: Face
    bold: Face
    italic: Face
    mono: bool


@lru_cache(maxsize=2048)
def _load(face: Face, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face.path, size, index=face.index, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=200_000)
def _advance(face: Face, size: int, characters: str) -> float:
    return _load(face, size).getlength(characters)


def character_offsets(text: str, face: Face, size: int) -> list[float]:
    """Return the left edge of each character and the right edge of the last, in pixels: len(text) + 1 values."""
    offsets, x = [], 0.0
    for place, character in enumerate(text):
        if place:
            pair = text[place - 1 : place + 1]
            x += _advance(face, size, pair) - _advance(face, size, pair[0]) - _advance(face, size, pair[1])
        offsets.append(x)
        x += _advance(face, size, character)
    return [*offsets, x]


@lru_cache(maxsize=100_000)
def text_width(text: str, face: Face, size: int) -> float:
    """Return the width of a rendered text in pixels."""
    return character_offsets(text, face, size)[-1]


@lru_cache(maxsize=4)
def find_families(folders: tuple[Path, ...] | None = None) -> tuple[Family, ...]:
    """Return the families of the wheel's fonts and of the fonts below the folders, sorted by name.

    Args:
        folders: folders to search; None for the system's font folders, () for the wheel's fonts alone.
    """
    folders = SYSTEM_FOLDERS if folders is None else folders
    styles: dict[str, dict[str, Face]] = {}
    for folder in (FOLDER, *folders):
        for directory, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                if name.lower().endswith((".ttf", ".otf")):
                    _add_face(styles, Path(directory) / name)
    families = []
    for name, faces in sorted(styles.items()):
        regular = faces.get("regular") or faces.get("bold") or next(iter(faces.values()))
        families.append(
            Family(
                name,
                regular,
                faces.get("bold", regular),
                faces.get("italic", regular),
                _advance(regular, 20, "i") == _advance(regular, 20, "W"),
            )
        )
    return tuple(families)


def _add_face(styles: dict[str, dict[str, Face]], path: Path) -> None:
    try:
        font = ImageFont.truetype(path, 20, layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # not a font that FreeType scales
        return
    family, style = (part or "" for part in font.getname())
    whole = f"{family} {style}".lower()
    if not family or any(word in whole for word in UNUSABLE) or family.lower().startswith(HELD_OUT):
        return
    if path.parent != FOLDER and not _covers(font):
        return
    style = style.lower()
    if not any(word in style for word in ("condensed", "narrow", "black", "thin", "extralight", "hairline")):
        slanted = "italic" in style or "oblique" in style
        key = "bold" if "bold" in style and not slanted else "italic" if slanted else "regular"
        styles.setdefault(family, {}).setdefault(key, Face(str(path)))


def _covers(font: ImageFont.FreeTypeFont) -> bool:
    """Return True if a font has the characters that open fonts lack most often."""
    missing = font.getmask("\U000f0000").getbbox(), bytes(font.getmask("\U000f0000"))
    for character in PROBES:
        mask = font.getmask(character)
        if mask.getbbox() is None or (mask.getbbox(), bytes(mask)) == missing:
            return False
    return True
