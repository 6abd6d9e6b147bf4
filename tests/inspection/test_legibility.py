"""The note that an image is seen much smaller than it is."""

import subprocess
import sys

from PIL import Image, ImageDraw

from llava_uhd.inspection.legibility import legibility_note, seen_size
from llava_uhd.model.layout import TokenGrid
from llava_uhd.planning import ImagePlanner
from llava_uhd.synthetic.fonts import FONTS, load_font
from tests.documents import write_pdf


def page(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height), 255)


def test_a_scan_is_noted_and_what_the_slices_can_show_is_not():
    planner = ImagePlanner.load("tiny")
    said = legibility_note(planner, page(2481, 3508))
    assert said == (
        "2481 x 3508 seen at 224 x 294: small print will not be legible; this model takes at most 7 slices"
    )
    assert legibility_note(planner, page(816, 1130)) is None  # the receipt, which the model reads
    assert "at most 1 slice" in legibility_note(planner, page(816, 1130), max_slices=1)
    assert legibility_note(planner, page(40, 30)) is None


def test_padding_shows_the_image_smaller():
    planner = ImagePlanner(TokenGrid(), pad_to_square=True)
    assert seen_size(planner, 200, 100, max_slices=1) == (336, 168)
    assert seen_size(ImagePlanner(TokenGrid()), 200, 100, max_slices=1) == (462, 224)
    assert seen_size(ImagePlanner(TokenGrid(), pad_to_grid=True), 1000, 400) == (840, 336)


def test_a_pdf_page_is_measured_in_points():
    planner = ImagePlanner.load("tiny")
    assert legibility_note(planner, page(496, 702), dpi=60).startswith("a page of 210 x 297 mm seen at ")
    assert legibility_note(planner, page(236, 354), dpi=300) is None  # a small label


def lines(size: int, width: int, height: int) -> Image.Image:
    """A page full of lines of print of a size in pixels."""
    blank = page(width, height)
    text = "\n".join(["Subtotal 39.90 for hammer, nails and paint " * 6] * (height // size))
    ImageDraw.Draw(blank).multiline_text((size, size), text, 0, load_font(FONTS[0], size))
    return blank


def test_where_letters_are_measured_their_height_counts_and_not_the_resolution():
    planner = ImagePlanner.load("small")
    assert planner.letter_height is not None
    # Large print is shown in few slices: 46 pixels would be too small there, but nothing on the page is so small.
    assert legibility_note(planner, lines(220, 2400, 1600)) is None
    said = legibility_note(planner, lines(34, 4200, 6000))
    assert said is not None and said.startswith("4200 x 6000 seen at ") and said.endswith("at most 12 slices")
    assert legibility_note(planner, lines(34, 1000, 1000)) is None
    assert legibility_note(planner, page(4200, 6000)) is not None  # nothing is measured: as a scan


def test_the_size_of_an_enlarged_image_is_that_of_all_its_pixels():
    planner = ImagePlanner(TokenGrid(), max_side=1024, pad_to_grid=True)
    width, height = seen_size(planner, 300, 200)
    assert width > 800 and abs(width / height - 1.5) < 0.02


def test_explain_says_it_on_stderr(tmp_path):
    Image.new("RGB", (2481, 3508), "white").save(tmp_path / "scan.png")
    for file, said in [
        (tmp_path / "scan.png", "2481 x 3508 seen at 224 x 294"),
        (write_pdf(tmp_path / "a.pdf", 1), "mm"),
    ]:
        command = [sys.executable, "-m", "llava_uhd", "explain", str(file), "--model", "tiny", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stderr and "seen at" not in done.stdout
        assert subprocess.run([*command, "--quiet"], capture_output=True, text=True).stderr == ""
