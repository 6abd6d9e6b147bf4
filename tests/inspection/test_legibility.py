"""The note that an image is seen much smaller than it is."""

import subprocess
import sys

from PIL import Image

from llava_uhd.inspection.legibility import legibility_note, seen_size
from llava_uhd.model.layout import TokenGrid
from llava_uhd.planning import ImagePlanner
from tests.documents import write_pdf


def test_a_scan_is_noted_and_what_the_slices_can_show_is_not():
    planner = ImagePlanner.load("tiny")
    said = legibility_note(planner, 2481, 3508)
    assert said == (
        "2481 x 3508 seen at 224 x 294: small print will not be legible; this model takes at most 7 slices"
    )
    assert legibility_note(planner, 816, 1130) is None  # the receipt, which the model reads
    assert "at most 1 slice" in legibility_note(planner, 816, 1130, max_slices=1)
    assert legibility_note(planner, 40, 30) is None


def test_padding_shows_the_image_smaller():
    planner = ImagePlanner(TokenGrid(), pad_to_square=True)
    assert seen_size(planner, 200, 100, max_slices=1) == (336, 168)
    assert seen_size(ImagePlanner(TokenGrid()), 200, 100, max_slices=1) == (462, 224)
    assert seen_size(ImagePlanner(TokenGrid(), pad_to_grid=True), 1000, 400) == (840, 336)


def test_a_pdf_page_is_measured_in_points():
    planner = ImagePlanner.load("tiny")
    assert legibility_note(planner, 496, 702, dpi=60).startswith("a page of 210 x 297 mm seen at ")
    assert legibility_note(planner, 236, 354, dpi=300) is None  # a small label


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
