"""The built-in model that reads documents: its size, one page that it reads, and one image that is none."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_uhd.cli import app
from llava_uhd.loading import DEFAULT_MODEL, built_in
from llava_uhd.planning import ImagePlanner

RECEIPT = "examples/receipt.png"


def ask(image, question):
    done = CliRunner().invoke(app, ["ask", str(image), question, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_it_is_what_commands_use_and_has_at_most_twenty_megabytes():
    assert DEFAULT_MODEL == "small"
    assert (Path(built_in()) / "model.safetensors").stat().st_size < 20e6


def test_an_a4_page_is_seen_in_twelve_slices():
    layout = ImagePlanner.load("small").image_layout(2481, 3508)
    assert layout.num_image_tokens == 13 * 16 * 16


def test_the_receipt_of_the_readme_is_read():
    asked = {"What is the total?": "$42.69", "What is the date?": "12.02.2017", "What is the price of Jam?": "$15.19"}
    for question, answer in asked.items():
        assert ask(RECEIPT, question)["answer"] == answer


def test_what_the_receipt_does_not_say_is_declined_or_answered_with_a_guess():
    found = ask(RECEIPT, "What is the price of bread?")
    assert found["is_guess"] or found["answer"] == "not in the document"


def test_a_photograph_is_declined_or_answered_with_a_guess(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="it has a photograph")
    photograph = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    photograph.convert("RGB").save(tmp_path / "photograph.png")
    for question in ("What is the total?", "Who signed it?"):
        found = ask(tmp_path / "photograph.png", question)
        assert found["is_guess"] or found["answer"].startswith(("not in the document", "this is not a document"))
