"""Degradation of a page: screenshot, scan, photograph or fax.

Parameters are sampled first, so that the positions of all characters are available without pixels; `apply` then
computes the pixels.
"""

import io
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

GRAIN_SIDE = 512


@dataclass(frozen=True)
class Wear:
    """Parameters of the degradation of a page.

    Attributes:
        size: (width, height) of the result in pixels.
        matrix: (3, 3) rows of the homography from the page's pixels to the result's.
        ground: color of the background beside the page.
        light: brightness at the (left, right, top, bottom) edge relative to the middle.
        contrast: factor of the contrast, 1 for none.
        gray: True to convert to grayscale.
        blur: radius in pixels. `noise`: standard deviation in levels of 255. `jpeg`: quality, 0 for none.
    """

    size: tuple[int, int]
    matrix: tuple[tuple[float, ...], ...]
    ground: tuple[int, int, int] = (255, 255, 255)
    light: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    contrast: float = 1.0
    gray: bool = False
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    seed: int = 0

    @property
    def moves(self) -> bool:
        return self.matrix != IDENTITY

    def place(self, points: np.ndarray) -> np.ndarray:
        """Map points of the page to the result: (N, 2) to (N, 2)."""
        mapped = np.column_stack([points, np.ones(len(points))]) @ np.array(self.matrix).T
        return mapped[:, :2] / mapped[:, 2:]


IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the (3, 3) homography that maps four points to four others, (4, 2) each."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1.0).reshape(3, 3)


def draw_wear(rng: random.Random, size: tuple[int, int], em: float, screen: bool) -> Wear:
    """Sample the degradation of a page.

    Args:
        rng: random generator of the document.
        size: (width, height) of the page in pixels.
        em: size of the body text in pixels; the blur radius is a fraction of it.
        screen: True for documents of screens, which are mostly screenshots.
    """
    sort = rng.choices(("screenshot", "scan", "photo", "fax"), (8, 1, 3, 0) if screen else (6, 7, 6, 1))[0]
    seed = rng.getrandbits(32)
    jpeg = rng.choice((0, 0, rng.randint(35, 95)))
    if sort == "screenshot":
        return Wear(size, IDENTITY, jpeg=jpeg, seed=seed)
    width, height = size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    tilt = rng.gauss(0, 0.5 if sort != "photo" else 1.2)
    turn = np.deg2rad(min(max(tilt, -3.0), 3.0))
    middle = corners.mean(axis=0)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = (corners - middle) @ rotation.T + middle
    light = tuple(rng.uniform(0.9, 1.03) for _ in range(4))
    level = rng.randint(225, 255)
    ground = (level, level, level)
    if sort == "photo":
        spread = rng.uniform(0.0, 0.035) * min(width, height)
        moved = moved + np.array([[rng.uniform(-spread, spread) for _ in "xy"] for _ in range(4)])
        light = tuple(rng.uniform(0.6, 1.05) for _ in range(4))
        ground = (rng.randint(20, 200), rng.randint(20, 200), rng.randint(20, 200))
    if sort == "photo" and rng.random() < 0.8:
        low, high = moved.min(axis=0), moved.max(axis=0)
        margin = rng.uniform(0.0, 0.05) * min(width, height)
        moved = moved - low + margin
        width, height = (round(float(side)) for side in high - low + 2 * margin)
    matrix = homography(corners, moved)
    return Wear(
        (width, height),
        tuple(tuple(float(value) for value in row) for row in matrix),
        ground=ground,
        light=light,  # type: ignore[arg-type]
        contrast=rng.uniform(0.6, 1.0) if rng.random() < 0.4 else 1.0,
        gray=sort == "fax" or rng.random() < 0.25,
        blur=em * rng.uniform(0.0, 0.05) if rng.random() < 0.5 else 0.0,
        noise=rng.uniform(0.0, 9.0),
        jpeg=jpeg,
        seed=seed,
    )


def apply(image: Image.Image, wear: Wear) -> Image.Image:
    """Return the degraded page.

    Args:
        image: clean RGB page.
        wear: parameters of the degradation.
    """
    if wear.moves:
        inverse = np.linalg.inv(np.array(wear.matrix))
        coefficients = (inverse / inverse[2, 2]).flatten()[:8]
        image = image.transform(
            wear.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR, fillcolor=wear.ground
        )
    if wear.gray:
        image = image.convert("L").convert("RGB")
    if wear.blur > 0.3:
        image = image.filter(ImageFilter.BoxBlur(wear.blur))
    if wear.noise or wear.contrast != 1.0 or wear.light != (1.0,) * 4:
        image = _light_and_noise(image, wear)
    if wear.jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=wear.jpeg)
        image = Image.open(file).convert("RGB")
    return image


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((GRAIN_SIDE, GRAIN_SIDE), dtype=np.float32)


def _light_and_noise(image: Image.Image, wear: Wear) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    height, width = pixels.shape[:2]
    left, right, top, bottom = wear.light
    horizontal = np.interp(np.linspace(0, 1, width), (0, 0.5, 1), (left, 1, right)).astype(np.float32)
    down = np.interp(np.linspace(0, 1, height), (0, 0.5, 1), (top, 1, bottom)).astype(np.float32)
    if wear.contrast != 1.0:
        pixels = 128 + wear.contrast * (pixels - 128)
    pixels *= down[:, None, None] * horizontal[None, :, None]
    if wear.noise:
        grain = _grain()
        rows, columns = wear.seed % GRAIN_SIDE, wear.seed // GRAIN_SIDE % GRAIN_SIDE
        grain = np.roll(grain, (rows, columns), (0, 1))
        tiles = (-(-height // GRAIN_SIDE), -(-width // GRAIN_SIDE))
        pixels += wear.noise * np.tile(grain, tiles)[:height, :width, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
