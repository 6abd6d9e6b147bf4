"""Opening images: every form and format, the same at every door, and refusals before anything is decoded."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_uhd.evaluation.samples import open_image as open_sample
from llava_uhd.model.formats import readable_formats
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.images import IMAGE_EXTENSIONS, decode_base64, decode_image, open_image
from llava_uhd.training.data.sources import IMAGE_SUFFIXES

SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))


def encoded(image: Image.Image = SMALL, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def same(image: Image.Image) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(SMALL))


PNG = encoded()
TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        base64.encodebytes(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        f"data:image/png;base64,{TEXT}",
        f"data:image/png;base64,{TEXT}\n",
        f"data:;base64,{base64.encodebytes(PNG).decode()}",
        f"DATA:image/PNG;charset=utf-8;BASE64,{TEXT.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
    ],
)
def test_base64_of_every_kind(text):
    assert same(decode_image(text))
    assert decode_base64(text) == PNG


@pytest.mark.parametrize("text, said", [("data:image/png,abc", "without base64"), ("data:a;base64,é", "not valid")])
def test_base64_that_is_none(text, said):
    with pytest.raises(ValueError, match=said):
        decode_image(text)


def test_a_string_that_is_no_image_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("receipt", "C:\\Users\\me\\page.png", "a" * 300, "x\0y", "A" * 4000):
        with pytest.raises(ValueError, match="there is no file|cannot be read|embedded null"):
            decode_image(name)
    with pytest.raises(ValueError, match="not an image"):
        decode_image("A" * 5000)
    with pytest.raises(ValueError, match="too long for a path: 5000 characters"):
        decode_image("?" * 5000)
    Path(TEXT[:40].replace("/", "_")).write_bytes(PNG)  # an existing file comes first
    assert same(decode_image(TEXT[:40].replace("/", "_")))


def test_paths_of_every_form(tmp_path, monkeypatch):
    path = tmp_path / "a page ü.png"
    path.write_bytes(PNG)
    monkeypatch.setenv("HOME", str(tmp_path))
    for form in (path, str(path), path.as_uri(), f"file://localhost{path.as_uri()[7:]}", "~/a page ü.png"):
        assert same(decode_image(form))
    with pytest.raises(ValueError, match="on another machine, server"):
        decode_image("file://server/page.png")
    monkeypatch.chdir(tmp_path)
    assert same(decode_image("a page ü.png"))
    with path.open() as text_file, pytest.raises((TypeError, ValueError)):
        decode_image(text_file)


def test_file_objects_are_read_from_their_beginning():
    file = io.BytesIO(PNG)
    file.read()
    assert same(decode_image(file))
    assert same(decode_image(file))


def test_dicts_as_data_sets_have_them(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert same(decode_image({"bytes": PNG, "path": None}))
    assert same(decode_image({"bytes": None, "path": str(tmp_path / "a.png")}))
    with pytest.raises(ValueError, match="^a.png is not an image"):
        decode_image({"bytes": b"nothing", "path": "a.png"})


FILES = {
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".JPG": "JPEG",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".ppm": "PPM",
    ".mpo": "MPO",
    ".avif": "AVIF",
}


@pytest.mark.parametrize("extension, file_format", FILES.items())
def test_every_format_at_every_door(tmp_path, extension, file_format):
    if file_format not in (*readable_formats(), "MPO"):
        pytest.skip(f"this Pillow has no {file_format}")
    path = tmp_path / f"page{extension}"
    path.write_bytes(encoded(SMALL, file_format))
    assert extension.lower() in IMAGE_EXTENSIONS and extension.lower() in IMAGE_SUFFIXES
    for image in (decode_image(path), decode_image(path.read_bytes()), open_image(path), open_sample(path)):
        assert image.size == (12, 9)
    assert LlavaUhdImageProcessor()(path)["num_views"].tolist() == [1]


@pytest.mark.parametrize(
    "content", [encoded(file_format="EPS"), encoded(file_format="TGA"), encoded(file_format="ICO")]
)
def test_other_formats_are_refused_and_run_nothing(content, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    for form in (content, io.BytesIO(content), base64.b64encode(content).decode()):
        with pytest.raises(ValueError, match="not supported|there is no file|cannot be read"):
            decode_image(form)
    if content.startswith(b"%!PS"):
        with pytest.raises(ValueError, match="EPS, which is not supported"):
            decode_image(Image.open(io.BytesIO(content)))


def test_limits_are_checked_before_decoding(monkeypatch):
    header = struct.pack(">II5B", 60_000, 2_000, 1, 0, 0, 0, 0)
    bomb = PNG[:8] + struct.pack(">I", 13) + b"IHDR" + header + PNG[29:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + PNG[33:]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    for source in (bomb, io.BytesIO(bomb), base64.b64encode(bomb).decode()):
        with pytest.raises(ValueError, match="60000 x 2000 pixels; at most 1000000"):
            decode_image(source, max_pixels=1_000_000)
    progressive = encoded(SMALL, "JPEG", progressive=True)
    first = progressive.index(b"\xff\xda")
    many = progressive[:-2] + progressive[first:-2] * 200 + b"\xff\xd9"
    with pytest.raises(ValueError, match="JPEG of more than 100 scans"):
        decode_image(many)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_files_are_named(tmp_path, file_format):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    content = encoded(large, file_format)
    path = tmp_path / f"page.{file_format.lower()}"
    for size in (len(content) // 2, 30, 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"^{path} (is damaged|is not an image|cannot be read)"):
            decode_image(path)


def test_a_second_page_that_cannot_be_read_is_named():
    content = bytearray(encoded(SMALL, "TIFF"))
    first = int.from_bytes(content[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    assert content[following : following + 4] == bytes(4)  # no further page
    content[following : following + 2] = (following + 2).to_bytes(2, "little")  # a directory without tags
    with pytest.raises(ValueError, match="^image cannot be read behind its first page: "):
        decode_image(bytes(content))


@settings(max_examples=150, deadline=None)
@given(
    file_format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    size=st.floats(0, 1),
)
def test_any_bytes_give_an_image_or_one_line(file_format, changes, size):
    content = bytearray(encoded(SMALL, file_format))
    for place, value in changes:
        content[int(place * len(content))] = value
    try:
        image = decode_image(bytes(content[: int(size * len(content))]), max_pixels=10**6)
    except ValueError as error:
        assert str(error).startswith("image ")
    else:
        assert image.mode == "RGB"


@pytest.mark.parametrize("array", [np.array([["a"]]), np.array([[1j]]), np.array([[None]])])
def test_arrays_of_other_things(array):
    with pytest.raises(ValueError, match="integers or floats"):
        decode_image(array)


def test_images_are_counted_from_one():
    with pytest.raises(ValueError, match="^image 3 is empty"):
        LlavaUhdImageProcessor()([[SMALL], [SMALL, b""]])


def test_transparency_and_polarity_of_16_bits(tmp_path):
    deep = np.zeros((4, 4), np.uint16)
    deep[0] = 65535
    Image.fromarray(deep).save(tmp_path / "clear.png", transparency=0)
    assert np.asarray(decode_image(tmp_path / "clear.png")).min() == 255
    Image.fromarray(deep).save(tmp_path / "plain.png")
    assert np.asarray(decode_image(tmp_path / "plain.png")).mean() == 255 / 4
    Image.fromarray(deep).save(tmp_path / "inverse.tif", tiffinfo={262: 0})
    assert np.asarray(decode_image(tmp_path / "inverse.tif")).mean() == 255 * 3 / 4
