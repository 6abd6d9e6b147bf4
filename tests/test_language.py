"""Docstrings, arguments, spellings and words stay in the language of the field. `python -m tests.language` counts."""

import collections

import pytest

from tests.language import CHECKS, Hit, check_docstrings, check_line, check_names, hits, package

# Packages that still have hits of a check. A package that is done leaves its list and never comes back.
REMAINING: dict[str, set[str]] = {
    "questions": set(),
    "fragments": set(),
    "arguments": set(),
    "british": set(),
    "names": {
        "benchmarks",
        "experiments/ablation",
        "experiments/tiny",
        "llava_uhd/benchmark",
        "llava_uhd/model",
        "llava_uhd/training",
        "tests/benchmark",
        "tests/experiments",
        "tests/model",
        "tests/training",
    },
    "words": {
        "benchmarks",
        "docs",
        "experiments/ablation",
        "experiments/tiny",
        "experiments/tiny_v1",
        "llava_uhd/benchmark",
        "llava_uhd/model",
        "llava_uhd/training",
        "tests/benchmark",
        "tests/experiments",
        "tests/model",
        "tests/training",
    },
}

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
def test_packages_that_are_done_stay_done(found, check):
    new = collections.defaultdict(list)
    for hit in found:
        if hit.check == check and package(hit.path) not in REMAINING[check]:
            new[package(hit.path)].append(f"{hit.path}:{hit.line}: {hit.text}")
    assert not new, f"see `python -m tests.language --show {check}`: {dict(new)}"


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
