"""PDF and TIFF files as one image per page."""

import base64
import re
import struct
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from typer.main import get_command

from llava_uhd.cli import app
from llava_uhd.pages import OVERSAMPLING, count_pages, open_all, open_pages, page_scale, select_pages
from llava_uhd.planning import ImagePlanner
from llava_uhd.serving.documents import read_pages
from tests.conftest import random_image
from tests.documents import page_images, write_encrypted_pdf, write_pdf, write_tiff


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents")
    write_pdf(path / "five.pdf", 5)
    write_tiff(path / "three.tif", 3)
    write_encrypted_pdf(path / "secret.pdf")
    random_image(300, 200).save(path / "image.png")
    return path


def edge(image: Image.Image) -> tuple[int, ...]:
    """The color of the page's edge, which tells its number."""
    color = np.asarray(image.crop((10, 2, image.width - 10, 8))).reshape(-1, 3).mean(axis=0)
    return tuple(int(value) for value in np.rint(color / 40))


def test_every_page_of_a_pdf_in_order(folder):
    pages = open_pages(folder / "five.pdf")
    assert [(page.number, page.count) for page in pages] == [(number, 5) for number in range(1, 6)]
    assert [edge(page.image) for page in pages] == [edge(page) for page in page_images(5)]
    assert pages[1].name == f"{folder / 'five.pdf'}, page 2 of 5" and pages[1].dpi is not None
    assert all(page.image.mode == "RGB" for page in pages)


def test_every_page_of_a_tiff_as_its_own_pixels(folder):
    pages = open_pages(folder / "three.tif")
    assert [page.image.tobytes() for page in pages] == [page.tobytes() for page in page_images(3)]
    assert pages[2].name.endswith("three.tif, page 3 of 3") and pages[2].dpi is None


def test_pages_are_chosen_in_the_order_asked_for(folder):
    assert [page.number for page in open_pages(folder / "five.pdf", "5,1-2")] == [5, 1, 2]
    assert [page.number for page in open_pages(folder / "three.tif", [2])] == [2]
    assert edge(open_pages(folder / "five.pdf", "4")[0].image) == edge(page_images(5)[3])


@pytest.mark.parametrize(
    "selection, numbers",
    [
        (None, [1, 2, 3, 4]),
        ("2", [2]),
        ("2-3", [2, 3]),
        ("3-", [3, 4]),
        ("-2", [1, 2]),
        (" 4 , 1", [4, 1]),
        ("1,1", [1]),
    ],
)
def test_selections(selection, numbers):
    assert select_pages(selection, 4) == numbers


@pytest.mark.parametrize(
    "selection, said",
    [
        ("5", "no page 5"),
        ("0", "no page 0"),
        ("2-9", "no page 9"),
        ("3-2", "ends before"),
        ("two", "'two'"),
        ("", "''"),
    ],
)
def test_bad_selections_name_what_is_wrong(selection, said):
    with pytest.raises(ValueError, match=said):
        select_pages(selection, 4, "x.pdf")


def test_bytes_files_and_data_urls_are_the_same_document(folder):
    content = (folder / "five.pdf").read_bytes()
    expected = [page.image.tobytes() for page in open_pages(folder / "five.pdf", "1-2")]
    encoded = base64.encodebytes(content).decode()  # with line breaks
    urls = (f"data:application/pdf;base64,{encoded}", f"data:application/pdf;base64,{quote(encoded)}")
    for source in (content, BytesIO(content), *urls, str(folder / "five.pdf")):
        assert [page.image.tobytes() for page in open_pages(source, "1-2", name="file 1")] == expected
    assert open_pages(content, "2", name="file 1")[0].name == "file 1, page 2 of 5"
    assert count_pages(content) == 5 and count_pages(folder / "three.tif") == 3
    assert count_pages(folder / "image.png") == 1


def test_encrypted_damaged_and_too_long_documents_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"secret\.pdf is encrypted"):
        open_pages(folder / "secret.pdf")
    (tmp_path / "cut.pdf").write_bytes((folder / "five.pdf").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.pdf is damaged"):
        open_pages(tmp_path / "cut.pdf")
    (tmp_path / "cut.tif").write_bytes((folder / "three.tif").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.tif"):
        open_pages(tmp_path / "cut.tif")
    for name, count in (("five.pdf", 5), ("three.tif", 3)):
        with pytest.raises(ValueError, match=rf"{name} has {count} pages; at most 1 is .* choose one \(--page\)"):
            open_pages(folder / name, max_pages=1)
        with pytest.raises(ValueError, match=rf"{name} has {count} pages; at most 2 .* \(--pages\)"):
            open_pages(folder / name, max_pages=2)
        assert len(open_pages(folder / name, "2-3", max_pages=2)) == 2
    with pytest.raises(ValueError, match="5 pages, and 4 are chosen; at most 2"):
        open_pages(folder / "five.pdf", "2-", max_pages=2)


def test_a_large_page_of_a_tiff_is_refused_before_it_is_decoded(folder):
    with pytest.raises(ValueError, match=r"page 1 of 3 has 496 x 702 pixels; at most 1000 "):
        open_pages(folder / "three.tif", max_pixels=1000)


def tags_over_tags(before: int, size: int = 100_000) -> bytes:
    """A TIFF whose page behind so many others has 1,000 tags that point to the same bytes."""
    content = b"II*\0" + struct.pack("<I", 8)
    for _ in range(before):
        width, height = ((256 + index, 4, 1, 1) for index in range(2))
        page = struct.pack("<H", 2) + struct.pack("<HHII", *width) + struct.pack("<HHII", *height)
        content += page + struct.pack("<I", len(content) + len(page) + 4)
    place = len(content) + 2 + 12 * 1000 + 4
    tags = b"".join(struct.pack("<HHII", 0x8000 + index, 7, size, place) for index in range(1000))
    return content + struct.pack("<H", 1000) + tags + bytes(4 + size)


@pytest.mark.parametrize("before", [0, 1, 40])
def test_tags_of_the_same_bytes_are_refused_on_every_page(before, tmp_path, monkeypatch):
    content, read, load = tags_over_tags(before), [], ImageFileDirectory_v2.load
    monkeypatch.setattr(ImageFileDirectory_v2, "load", lambda self, file: (read.append(1), load(self, file)))
    file = tmp_path / "pages.tiff"
    file.write_bytes(content)
    for source in (content, file):
        for door in (open_pages, count_pages):
            with pytest.raises(ValueError, match=r"has EXIF or TIFF tags of 100000000 bytes in 11"):
                door(source)
    assert not read
    with pytest.raises(ValueError, match="pages.tiff has EXIF or TIFF tags of 1000000"):
        read_pages(content, "pages.tiff", 50, 10**6, 10**6, 60, time.monotonic() + 60)


def test_directories_over_each_other_are_refused():
    """Each begins one tag behind the one before, so that a small file has very many tags to read."""
    content = bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(50_000))
    for number in range(20):
        place = 8 + 12 * number
        content[place : place + 2] = struct.pack("<H", 4_000)
        content[place + 48_002 : place + 48_006] = struct.pack("<I", place + 12)
    with pytest.raises(ValueError, match="pages.tiff has 12000 or more EXIF or TIFF tags in 50008 bytes"):
        count_pages(bytes(content), "pages.tiff")


def test_pages_are_rendered_at_what_the_slices_can_use(folder):
    """Render at least `OVERSAMPLING` times their side, so that the model's own resizing makes the pixels."""
    for max_slices in (1, 7):
        num_pixels = ImagePlanner.load("tiny").num_pixels(max_slices)
        image = open_pages(folder / "five.pdf", "1", num_pixels=num_pixels)[0].image
        assert image.width * image.height == pytest.approx(OVERSAMPLING**2 * num_pixels, rel=0.02)
    assert page_scale(144, 72, 10**6) * 72 == pytest.approx((10**6 / (144 * 72)) ** 0.5 * 72)  # above 300 dpi
    assert page_scale(144, 72, 10**5) * 72 == pytest.approx(300)  # a label is not blown up
    with pytest.raises(ValueError, match="no area"):
        page_scale(0, 842, 10**6)


def test_several_sources(folder):
    sources = [folder / "image.png", folder / "five.pdf", folder / "three.tif"]
    assert [page.number for page in open_all(sources)] == [1, 1, 2, 3, 4, 5, 1, 2, 3]
    assert [page.number for page in open_all(sources, "2")] == [1, 2, 2]
    with pytest.raises(ValueError, match="none of the 2 files"):
        open_all([folder / "image.png"] * 2, "1")
    with pytest.raises(ValueError, match="has 1 page, and no page 2"):
        open_all([folder / "image.png"], "2")


def test_planner_agrees_with_the_processor():
    from llava_uhd.loading import load_processor

    processor, planner = load_processor("tiny"), ImagePlanner.load("tiny")
    # A processor does not know the language model's context.
    assert ImagePlanner.from_processor(processor) == replace(planner, context=None)
    for size in [(816, 1130), (40, 30), (2481, 3508)]:
        for max_slices in (None, 1, 3):
            options = {} if max_slices is None else {"max_slices": max_slices}
            assert planner.plan(*size, max_slices) == processor.image_processor.plan(*size, **options)
            assert planner.image_layout(*size, max_slices) == processor.image_layout(*size, **options)


def test_further_pages_of_a_tiff_do_not_vanish_without_a_word(folder, recwarn):
    from llava_uhd.model.images import decode_image

    with pytest.warns(UserWarning, match=r"three\.tif has several pages, and the first is taken"):
        first = decode_image(folder / "three.tif")
    assert first.tobytes() == page_images(3)[0].tobytes()
    recwarn.clear()
    open_pages(folder / "three.tif")
    decode_image(write_tiff(folder / "one.tif", 1))
    assert not recwarn.list


def test_the_page_about_the_command_line_runs(capsys):
    """Its Python as it stands, and the verbs and options that it names."""
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "examples/receipt.png (816, 1130) 448\n"
    options = {name for parameter in get_command(app).commands["ask"].params for name in parameter.opts}
    assert {"--pages", "--max-pages", "--max-slices"} <= options & set(re.findall(r"--[a-z-]+", page))
