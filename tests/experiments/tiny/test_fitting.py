"""Pages as the image processor resizes them: characters stay where they are printed."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tiny.earlier import make_earlier
from experiments.tiny.fitting import fit_letters
from experiments.tiny.samples import make_sample
from experiments.tiny.setting import Phase, Setting
from llava_uhd.synthetic.varied import make_varied

SETTING = Setting()
UNFITTED = replace(SETTING, letter_height=None)


@pytest.fixture(scope="module")
def documents():
    varied = [make_varied("reduction", index, print_sizes=(24.0, 50.0), fonts=()) for index in range(12)]
    return [make_earlier("reduction", index) for index in range(12)] + [each for each in varied if each.sheet]


def test_characters_are_at_the_same_part_of_the_page(documents):
    for document in documents:
        fitted = fit_letters(document, SETTING, document.render())
        whole, glyphs = document.glyphs, fitted.glyphs
        np.testing.assert_allclose(glyphs.points / fitted.size, whole.points / document.size)
        np.testing.assert_allclose(glyphs.edges / fitted.size[0], whole.edges / document.size[0])
        np.testing.assert_allclose(glyphs.sizes / fitted.size[1], whole.sizes / document.size[1])
        assert (glyphs.text, fitted.sheet) == (whole.text, document.sheet)


def test_pages_of_large_print_are_reduced_with_and_without_their_pixels(documents):
    large = [each for each in documents if np.percentile(each.glyphs.sizes, 25) > 30]
    assert len(large) > 5
    ratios = []
    for document in large:
        drawn, coded = (fit_letters(document, SETTING, image) for image in (document.render(), None))
        assert drawn.size < document.size and coded.size < document.size
        ratios.append(drawn.size[0] / coded.size[0])
    assert 0.85 < np.median(ratios) < 1.2


def test_without_a_height_pages_keep_their_size(documents):
    for document in documents:
        assert fit_letters(document, UNFITTED, document.render()).size == document.size


def test_a_sample_of_large_print_has_fewer_views():
    phase = Phase("drawn", "frozen", 1, 2200, earlier=1.0, symbols=0.0)
    views = {
        setting: sum(len(make_sample(setting, phase, 1, index).view_shapes) for index in range(8))
        for setting in (SETTING, UNFITTED)
    }
    assert views[SETTING] < 0.7 * views[UNFITTED]
