"""Images without text: photographs that packages ship, and textures."""

import random
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Photographs in scikit-image; others of it (the astronaut, the cat) are kept for measuring.
PHOTOGRAPHS = (
    "coffee.png",
    "rocket.jpg",
    "camera.png",
    "moon.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "coins.png",
    "motorcycle_left.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "ihc.png",
    "cell.png",
)
SIDE = (180, 900)


@lru_cache(maxsize=1)
def _photographs() -> tuple[Path, ...]:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        return ()
    files = (Path(found.origin).parent / "data" / name for name in PHOTOGRAPHS)
    return tuple(file for file in files if file.is_file())


@lru_cache(maxsize=16)
def _open(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def draw_size(rng: random.Random) -> tuple[int, int]:
    """Return the (width, height) of the picture of a generator, which is the first that it draws."""
    return rng.randint(*SIDE), rng.randint(*SIDE)


def draw_picture(rng: random.Random) -> Image.Image:
    """Return a crop of a photograph, flipped, rotated and recolored, or a texture or arrangement of shapes."""
    size = draw_size(rng)
    photographs = _photographs()
    if photographs and rng.random() < 0.6:
        return _part(rng, _open(rng.choice(photographs)), size)
    return rng.choice((_clouds, _stripes, _shapes, _gradient))(rng, size)


def _part(rng: random.Random, photograph: Image.Image, size: tuple[int, int]) -> Image.Image:
    width, height = photograph.size
    share = rng.uniform(0.35, 1.0)
    wide, high = int(share * width), int(rng.uniform(0.8, 1.0) * share * height)
    left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
    part = photograph.crop((left, top, left + wide, top + high)).resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gains = np.array([rng.uniform(0.75, 1.2) for _ in "rgb"])
    return Image.fromarray((np.asarray(part) * gains + rng.uniform(-20, 20)).clip(0, 255).astype(np.uint8))


def _clouds(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Return noise of several wavelengths in two colors."""
    noise = np.random.default_rng(rng.getrandbits(32))
    field = np.zeros((size[1], size[0]), np.float32)
    for octave in range(rng.randint(2, 6)):
        cells = noise.random((2 + 3**octave, 2 + 3**octave), dtype=np.float32)
        field += np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)) / 1.7**octave
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    one, two = (np.array([rng.randint(0, 255) for _ in "rgb"], np.float32) for _ in "ab")
    return Image.fromarray((one + field[..., None] * (two - one)).clip(0, 255).astype(np.uint8))


def _stripes(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    angle, length = rng.uniform(0, np.pi), rng.uniform(6, 120)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length)
    wave = np.sign(wave) if rng.random() < 0.4 else wave
    one, two = (np.array([rng.randint(0, 255) for _ in "rgb"]) for _ in "ab")
    return Image.fromarray((one + (wave[..., None] + 1) / 2 * (two - one)).clip(0, 255).astype(np.uint8))


def _gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    corners = Image.new("RGB", (2, 2))
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.putpixel(place, tuple(rng.randint(0, 255) for _ in "rgb"))
    return corners.resize(size, Image.Resampling.BICUBIC)


def _shapes(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    image = _gradient(rng, size)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 60)):
        x, y = rng.randint(-50, size[0]), rng.randint(-50, size[1])
        bounds = (x, y, x + rng.randint(5, size[0] // 2), y + rng.randint(5, size[1] // 2))
        color = tuple(rng.randint(0, 255) for _ in "rgb")
        rng.choice((draw.ellipse, draw.rectangle))(bounds, fill=color)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3)))
