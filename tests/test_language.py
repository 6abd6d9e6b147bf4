"""Docstrings, arguments, spellings and words stay in the language of the field. `python -m tests.language` counts."""

import pytest

from tests.language import CHECKS, ROOT, STAY, Hit, check_docstrings, check_line, check_names, files, hits

SOURCE = '''
def shapes(size, seed):
    """What the views measure.

    Args:
        size: of the image, in pixels
        seed: seed of all draws
        grid: how the slices lie

    Returns:
        of each view, its shape
    """
    parts, likeness = 1, 2


class Mark:
    """Of the prompt."""
'''


@pytest.fixture(scope="module")
def found() -> list[Hit]:
    return hits()


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_departs_from_the_language_of_the_field(found, check):
    departing = [f"{hit.path}:{hit.line}: {hit.text}" for hit in found if hit.check == check]
    assert not departing, f"see `python -m tests.language --show {check}`: {departing}"


def test_every_word_that_stays_is_still_there():
    for place, words, reason in STAY:
        texts = [(ROOT / path).read_text(encoding="utf-8").lower() for path in files(ROOT) if path.startswith(place)]
        missing = {word for word in words if not any(word in text for text in texts)}
        assert not missing, f"{place}: {missing} ({reason})"


def test_docstrings_and_arguments_of_every_kind_are_counted():
    found = [(hit.check, hit.line, hit.text) for hit in check_docstrings("module.py", SOURCE)]
    assert sorted(found) == [
        ("arguments", 6, "of the image, in pixels"),
        ("arguments", 11, "of each view, its shape"),
        ("fragments", 17, "Of the prompt."),
        ("questions", 3, "What the views measure."),
        ("questions", 8, "how the slices lie"),
    ]


def test_names_count_in_the_folders_where_they_would_have_to_be_translated():
    assert [hit.text for hit in check_names("llava_uhd/model/x.py", SOURCE)] == ["Mark", "likeness"]
    assert "parts" in {hit.text for hit in check_names("llava_uhd/training/x.py", SOURCE)}


def test_british_spellings_count_inside_identifiers_and_links_do_not():
    line = "def coloured_map(greyScale): ...  # the colour of https://example.org/colour and a neighbour"
    assert [hit.text for hit in check_line("x.py", 1, line)] == ["coloured", "grey", "colour", "neighbour"]
