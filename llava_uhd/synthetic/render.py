"""Rendering of pages."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .fonts import load_font
from .page import Page

GRAIN_SIDE = 512


def render(page: Page) -> Image.Image:
    """Render a page as an RGB image of `page.size`."""
    image = Image.new("RGB", page.size, page.paper)
    draw = ImageDraw.Draw(image)
    for box in page.boxes:
        draw.rectangle(box.bounds, fill=box.fill, outline=box.outline, width=box.width)
    for text in page.texts:
        font = load_font(text.font, text.size)
        draw.text((text.x, text.baseline), text.text, fill=text.color, font=font, anchor="ls")
    if page.tilt:
        image = image.rotate(page.tilt, Image.Resampling.BILINEAR, fillcolor=page.paper)
    if page.noise or page.light != (1.0, 1.0, 1.0, 1.0):
        image = Image.fromarray(_under_light(np.asarray(image), page))
    return image


def _under_light(pixels: np.ndarray, page: Page) -> np.ndarray:
    """Apply uneven light and grain to (height, width, 3) uint8 pixels."""
    height, width = pixels.shape[:2]
    left, right, top, bottom = page.light
    horizontal = np.linspace(left, right, width, dtype=np.float32)
    down = np.linspace(top, bottom, height, dtype=np.float32)
    lit = pixels * (down[:, None] * horizontal[None, :])[..., None]
    if page.noise:
        repeats = (-(-height // GRAIN_SIDE), -(-width // GRAIN_SIDE))
        lit += page.noise * np.tile(_grain(), repeats)[:height, :width, None]
    return lit.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((GRAIN_SIDE, GRAIN_SIDE), dtype=np.float32)
