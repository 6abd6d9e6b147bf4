"""Height of letters, and images resized by it, on drawn lines of known print."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps
from transformers.dynamic_module_utils import get_imports

from llava_uhd.evaluation.generation import BatchGenerator, GenerationOptions
from llava_uhd.evaluation.results import describe_protocol
from llava_uhd.evaluation.synthdoc import read_synthdoc
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.generation.bounded import BoundedCache
from llava_uhd.inspection.explanation import explain_image
from llava_uhd.inspection.slices import draw_slices
from llava_uhd.loading import load, load_processor, resolve
from llava_uhd.model import letter_height
from llava_uhd.model.configuration_llava_uhd import LlavaUhdConfig
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.letter_height import LEAST_CHANGE, MOST_ENLARGED, fit_letters, fitted_size, measure_letters
from llava_uhd.model_folder import check_processor
from llava_uhd.planning import ImagePlanner
from llava_uhd.serving.prompts import PromptBuilder
from llava_uhd.synthetic import held_out_documents, render
from llava_uhd.synthetic.fonts import FONTS, load_font
from llava_uhd.training.data.check import check_source
from llava_uhd.training.data.encoding import Encoder
from llava_uhd.training.recipe import DataRecipe, Source

NUM_PIXELS = 12 * 224**2
TEXT = "Subtotal 39.90 for hammer, nails and paint\nof March 2026: see page 48 of the catalog"


def draw_page(size: int, font: int = 0) -> Image.Image:
    """Dark print of a size in pixels on light paper."""
    page = Image.new("RGB", (26 * size, 8 * size), (240, 238, 230))
    ImageDraw.Draw(page).multiline_text((size, size), TEXT, (30, 30, 40), load_font(FONTS[font], size), spacing=size)
    return page


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 60), st.integers(0, len(FONTS) - 1), st.booleans())
def test_letters_are_about_half_the_print_s_size_high_dark_or_light(size, font, is_light):
    page = draw_page(size, font)
    measured = measure_letters(ImageOps.invert(page) if is_light else page, NUM_PIXELS)
    assert measured is not None and 0.4 * size < measured < 0.9 * size


def test_letters_of_synthetic_documents_are_measured_whatever_paper_light_and_noise():
    for document in held_out_documents(40):
        size = np.median([text.size for text in document.page.texts])
        assert 0.45 * size < measure_letters(render(document.page), NUM_PIXELS) < 0.85 * size, document.kind


def test_images_without_letters_are_not_measured():
    assert measure_letters(Image.new("RGB", (300, 200), "white"), NUM_PIXELS) is None
    assert measure_letters(Image.new("L", (1, 1)), NUM_PIXELS) is None
    blank = Image.new("RGB", (300, 200), "white")
    assert fit_letters(blank, 11, NUM_PIXELS).size == (300, 200)
    assert fit_letters(blank, 11, NUM_PIXELS, max_side=600).size == (600, 400)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.floats(1, 300),
    st.integers(5, 64),
    st.integers(224**2, 24 * 224**2),
)
def test_letters_are_brought_to_the_height_within_what_the_slices_show(size, measured, height, num_pixels):
    fitted = fitted_size(size, measured, height, num_pixels)
    most = (num_pixels / (size[0] * size[1])) ** 0.5
    best, unchanged = min(height / measured, MOST_ENLARGED, most), min(most, 1.0)
    if fitted == size:  # or so little is changed that both round to the same
        assert best == pytest.approx(unchanged, rel=LEAST_CHANGE - 1 + 1e-9) or abs(best - 1) * max(size) <= 1
    else:
        assert fitted == (max(round(best * size[0]), 1), max(round(best * size[1]), 1))
        assert not unchanged / LEAST_CHANGE < best < unchanged * LEAST_CHANGE


def test_small_print_is_enlarged_and_a_large_scan_left():
    page = draw_page(13)
    width = 11 / measure_letters(page, NUM_PIXELS) * page.width
    assert fit_letters(page, 11, NUM_PIXELS).width == pytest.approx(width, abs=1)
    assert width > 1.2 * page.width
    assert fit_letters(page, 64, NUM_PIXELS).width == pytest.approx(MOST_ENLARGED * page.width, abs=1)
    scan = page.resize((4 * page.width, 16 * page.height))
    assert fit_letters(scan, 64, NUM_PIXELS) is scan
    assert fitted_size((300, 200), None, 11, NUM_PIXELS) == (300, 200)


def test_a_reduced_page_has_letters_of_the_height_asked_for_and_is_not_reduced_again():
    page = draw_page(48)
    reduced = fit_letters(page, 11, NUM_PIXELS)
    assert reduced.width < 0.5 * page.width
    assert abs(measure_letters(reduced, NUM_PIXELS) - 11) <= 1.5
    assert fit_letters(reduced, 11, NUM_PIXELS) is reduced
    assert fit_letters(page, None, NUM_PIXELS) is page


def test_the_image_processor_resizes_before_it_cuts(tmp_path):
    page, plain = draw_page(48), LlavaUhdImageProcessor(view_size=224, max_slices=12)
    reducing = LlavaUhdImageProcessor(view_size=224, max_slices=12, letter_height=11)
    reducing.save_pretrained(tmp_path)
    for processor in (reducing, LlavaUhdImageProcessor.from_pretrained(tmp_path)):
        pages = [page, draw_page(12)]
        outputs, expected = processor(pages), plain([processor.fit_letters(each) for each in pages])
        for name in processor.model_input_names:
            np.testing.assert_array_equal(outputs[name], expected[name])
    assert outputs["num_views"][0] < plain(page)["num_views"][0]
    np.testing.assert_array_equal(plain(page, letter_height=11)["pixel_values"], reducing(page)["pixel_values"])


def test_an_image_is_enlarged_before_its_letters_are_measured_and_not_after():
    page, processor = draw_page(20), LlavaUhdImageProcessor(view_size=224, max_slices=12, letter_height=11)
    assert max(page.size) < 1024 < max(draw_page(48).size)
    outputs = processor(page, max_side=1024)
    reduced = processor.fit_letters(page, max_side=1024)
    assert reduced.width < 1024 and processor.plan(*reduced.size, max_side=1024).num_views == outputs["num_views"][0]
    np.testing.assert_array_equal(outputs["pixel_values"], processor(reduced)["pixel_values"])


@pytest.mark.parametrize("value", [0, 4, 65, 11.5, "11", True])
def test_a_height_that_cannot_be_measured_is_refused(value):
    with pytest.raises((ValueError, TypeError), match="letter_height"):
        LlavaUhdImageProcessor(letter_height=value)
    with pytest.raises((ValueError, TypeError), match="letter_height"):
        LlavaUhdConfig(letter_height=value)


@pytest.mark.parametrize("value", [0, -5, 1, 500])
def test_a_height_of_a_call_that_cannot_be_measured_is_refused(value):
    processor, page = LlavaUhdImageProcessor(view_size=112, letter_height=11), draw_page(20)
    for call in (processor, processor.fit_letters):
        with pytest.raises((ValueError, TypeError), match="letter_height"):
            call(page, letter_height=value)


def test_none_in_a_call_takes_the_processor_s_own_option():
    processor, page = LlavaUhdImageProcessor(view_size=112, letter_height=11, max_side=1024), draw_page(20)
    for each in (processor, LlavaUhdImageProcessor(view_size=112, max_side=1024)):
        expected = each(page)
        for name in ("letter_height", "max_side", "max_slices"):
            np.testing.assert_array_equal(each(page, **{name: None})["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("options", [{"slice_grid": [2, 2]}, {"max_slices": 1}])
def test_nothing_is_resized_where_views_show_every_image_at_one_size(options):
    page = draw_page(48).crop((0, 0, 400, 384))
    assert LlavaUhdImageProcessor(view_size=112, letter_height=6).fit_letters(page).width < 120
    for processor, of_call in (
        (LlavaUhdImageProcessor(view_size=112, letter_height=6, **options), {}),
        (LlavaUhdImageProcessor(view_size=112, letter_height=6), options),
    ):
        assert processor.fit_letters(page, **of_call) is page
        for side in ({}, {"max_side": 1400}):
            plain = LlavaUhdImageProcessor(view_size=112, **options)(page, **side)
            np.testing.assert_array_equal(processor(page, **of_call, **side)["pixel_values"], plain["pixel_values"])


def test_remote_code_of_models_without_the_option_needs_no_scipy():
    package = Path(letter_height.__file__).parent
    imports = {name for file in package.glob("*.py") for name in get_imports(file)}
    assert "numpy" in imports and "scipy" not in imports


def test_varied_training_images_are_refused_with_it(reducing_processor):
    data = DataRecipe((Source("data.json"),), vary_images=True, template="vicuna")
    with pytest.raises(ValueError, match="letter_height of 6"):
        Encoder(reducing_processor, data)


def test_the_protocol_of_an_evaluation_names_the_height(reducing_processor):
    samples, task = read_synthdoc(Path())[:1], TASKS["synthdoc"]
    model, options = load("tiny")[0], GenerationOptions(None, None, 1, 8, 1)
    shown = []
    for processor in (load_processor("tiny"), reducing_processor):
        generator = BatchGenerator(model, processor, options)
        shown.append(describe_protocol(task, samples, generator, "tiny", 0, 1, "official"))
    assert [protocol["letter_height"] for protocol in shown] == [None, 6]


@pytest.fixture
def reducing_processor():
    processor = load_processor("tiny")
    processor.image_processor.letter_height = 6
    return processor


def test_the_processor_s_option_is_that_of_the_model_s_config(reducing_processor):
    config = LlavaUhdConfig.from_pretrained(resolve("tiny"))
    with pytest.raises(ValueError, match="letter_height is None in config.json and 6"):
        check_processor(reducing_processor, config, "model")
    config.letter_height = 6
    check_processor(reducing_processor, config, "model")


def test_explain_and_the_figure_of_slices_show_the_plan_of_the_reduced_image(reducing_processor):
    page = draw_page(48)
    plain, explained = explain_image(load_processor("tiny"), page), explain_image(reducing_processor, page)
    assert "fitted_size" not in plain and explained["size"] == plain["size"] == list(page.size)
    assert explained["fitted_size"] == list(ImagePlanner.from_processor(reducing_processor).fit_letters(page).size)
    outputs = reducing_processor.image_processor(page)
    assert explained["num_views"] == outputs["num_views"][0] < plain["num_views"]
    axis = Figure().subplots()
    draw_slices(axis, page, reducing_processor)
    corners = np.concatenate([line.get_xydata() for line in axis.lines])
    assert corners.max(0).round().tolist() == pytest.approx(
        [page.width - 0.5, page.height - 0.5], abs=page.width * 0.05
    )


def test_a_planner_reads_the_option_from_a_folder(reducing_processor, tmp_path):
    shutil.copy(Path(resolve("tiny"), "config.json"), tmp_path)
    reducing_processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]["letter_height"] == 6
    assert ImagePlanner.load(str(tmp_path)).letter_height == 6


def test_tokens_are_not_counted_from_sizes_alone(reducing_processor):
    with pytest.raises(ValueError, match="letter_height of 6"):
        reducing_processor._get_num_multimodal_tokens(image_sizes=[(100, 100)])


@settings(max_examples=20, deadline=None)
@given(size=st.integers(7, 40), max_slices=st.sampled_from((None, 1, 4, 12, 30)))
def test_the_slices_of_a_call_decide_how_large_an_image_is_shown(size, max_slices):
    processor = LlavaUhdImageProcessor(view_size=112, max_slices=6, letter_height=11)
    page, options = draw_page(size), {} if max_slices is None else {"max_slices": max_slices}
    fitted = processor.fit_letters(page, **options)
    outputs = processor(page, **options)
    assert outputs["num_views"][0] == processor.plan(*fitted.size, **options).num_views
    of_call = LlavaUhdImageProcessor(view_size=112, max_slices=max_slices or 6, letter_height=11)(page)
    np.testing.assert_array_equal(outputs["pixel_values"], of_call["pixel_values"])
    planner = replace(ImagePlanner.load("tiny"), view_size=112, max_slices=6, letter_height=11)
    assert planner.fit_letters(page, max_slices).size == fitted.size


def test_more_slices_show_a_dense_page_larger():
    processor, page = LlavaUhdImageProcessor(view_size=112, max_slices=4, letter_height=20), draw_page(20)
    assert processor.fit_letters(page).size < processor.fit_letters(page, max_slices=20).size


def test_images_that_fit_the_context_when_they_are_reduced_are_not_refused(reducing_processor):
    page = draw_page(48)
    sizes = [reducing_processor.image_processor.fit_letters(page).size, page.size]
    reduced, plain = (3 * reducing_processor.image_layout(*size).num_image_tokens for size in sizes)
    assert reduced < plain
    builder = PromptBuilder(reducing_processor, BoundedCache(1000, lambda _: 1), None, context=(reduced + plain) // 2)
    content = [*[{"type": "image", "image": page}] * 3, {"type": "text", "text": "Which page?"}]
    prompt = builder.build([{"role": "user", "content": content}])
    assert reduced < prompt.input_ids.shape[1] < plain


def test_images_that_exceed_the_context_are_refused_as_soon_as_their_tokens_are_counted(reducing_processor):
    pages = [draw_page(size) for size in (48, 47, 46, 45)]
    one = reducing_processor.image_layout(*reducing_processor.image_processor.fit_letters(pages[0]).size)
    encoded = BoundedCache(1000, lambda _: 1)
    builder = PromptBuilder(reducing_processor, encoded, None, context=one.num_image_tokens * 2 - 1)
    processed = []
    of_processor = reducing_processor.image_processor.fit_letters
    reducing_processor.image_processor.fit_letters = lambda image, **kwargs: (
        processed.append(image.size) or of_processor(image, **kwargs)
    )
    content = [*[{"type": "image", "image": page} for page in pages], {"type": "text", "text": "Which page?"}]
    with pytest.raises(ValueError, match="the images alone have"):
        builder.build([{"role": "user", "content": content}])
    assert processed == [page.size for page in pages[:2]]


def test_checking_data_counts_the_tokens_of_the_reduced_image(reducing_processor, tmp_path):
    draw_page(48).save(tmp_path / "page.png")
    turns = [{"from": "human", "value": "<image>\nWhich page?"}, {"from": "gpt", "value": "48"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "0", "image": "page.png", "conversations": turns}]))
    source = Source(str(tmp_path / "data.json"), str(tmp_path))
    processors = load_processor("tiny"), reducing_processor
    plain, reduced = (each.image_layout(*each.image_processor.fit_letters(draw_page(48)).size) for each in processors)
    counted = [check_source(source, each).tokens for each in processors]
    assert counted[0] - counted[1] == plain.length - reduced.length > 100
