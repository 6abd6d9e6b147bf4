"""Figures show the numbers that the model computes."""

import importlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from llava_uhd import LlavaUhdProcessor
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.inspection.attention_record import recording
from llava_uhd.inspection.attribution import (
    answer_words,
    attribute,
    attribution_figure,
    image_heats,
    overlay,
)
from llava_uhd.inspection.figure import principal_colors, pyramid_figure, view_pyramid
from llava_uhd.inspection.figures import FIGURES, make_figure
from llava_uhd.inspection.kernels import kernel_figure, point_kernels
from llava_uhd.inspection.slices import slice_boxes, slice_figure
from llava_uhd.inspection.view import encode_view
from llava_uhd.inspection.window_attention import window_attention, window_figure
from llava_uhd.model.configuration_llava_uhd import LlavaUhdConfig
from llava_uhd.model.hiwin import pooled_keys_and_values
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.layout import layout_views
from llava_uhd.model.upsample_2x import RADIUS, SPAN
from tests.conftest import build_model, random_image, small_config

IMAGE = random_image(300, 200)


def pair(qwen_tokenizer, layout: str = "stitched", **projector):
    config = small_config(layout=layout, **projector)
    return build_model(config, seed=4), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


@pytest.fixture(scope="module")
def small(qwen_tokenizer):
    """One head in the projector, so that the mean over heads is all of its attention; three levels."""
    return pair(qwen_tokenizer, num_attention_heads=1, levels=[1, 2, 4])


def drawn(figure: Figure) -> bytes:
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    return file.getvalue()


def test_slices_tile_the_image(small):
    _, processor = small
    boxes = slice_boxes(processor, 300, 200)
    assert boxes.tolist()[:2] == [[0, 0, 100, 100], [100, 0, 200, 100]] and len(boxes) == 6
    assert np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum() == 300 * 200
    assert slice_boxes(processor, 300, 200, max_slices=1).shape == (0, 4)
    padding = SimpleNamespace(image_processor=LlavaUhdImageProcessor(slice_grid=[2, 2], pad_to_square=True))
    assert slice_boxes(padding, 300, 200).tolist()[0] == [0, -50, 150, 100]
    assert slice_boxes(padding, 300, 200).tolist()[3] == [150, 100, 300, 250]
    padding = SimpleNamespace(image_processor=LlavaUhdImageProcessor(pad_to_grid=True, max_slices=2))
    assert slice_boxes(padding, 600, 200).tolist() == [[0, -50, 300, 250], [300, -50, 600, 250]]
    padding.image_processor.max_side = 1200  # cut when it is twice as large
    assert slice_boxes(padding, 600, 200).tolist() == [[0, -50, 300, 250], [300, -50, 600, 250]]
    assert drawn(slice_figure(processor, IMAGE)) != drawn(slice_figure(processor, IMAGE, max_slices=1))


def test_pyramid_of_a_slice_depends_on_its_pixels_alone(small):
    model, processor = small
    one = view_pyramid(model, processor, IMAGE, view=1)
    slice_ = IMAGE.resize((168, 112), 3).crop((56, 0, 112, 56))
    alone = view_pyramid(model, processor, slice_)
    assert list(one) == [1, 2, 4] and one[4].shape == (16, 16, 16)
    for level, maps in one.items():
        torch.testing.assert_close(maps, alone[level], rtol=1e-4, atol=1e-4)
    colors = principal_colors(one)
    assert drawn(pyramid_figure(colors)) and colors[4].shape == (16, 16, 3)
    with pytest.raises(ValueError, match="7 views, so there is no view 7"):
        view_pyramid(model, processor, IMAGE, view=7)


def test_point_kernels_reproduce_the_upsampled_maps(small):
    model, processor = small
    x, y = 0.3, 0.9
    maps = view_pyramid(model, processor, IMAGE)
    kernels = point_kernels(model, processor, IMAGE, (x, y))
    assert [kernel.level for kernel in kernels] == [2, 4]
    for kernel in kernels[:1]:  # above 2x a correction of the whole map comes after
        row, column = kernel.position
        source = maps[kernel.level // 2][None]
        upsampled = F.interpolate(source, scale_factor=2, mode="bicubic", align_corners=False)
        bordered = F.pad(upsampled, (RADIUS,) * 4, mode="reflect")
        neighbors = bordered[0, :, row : row + SPAN, column : column + SPAN]
        made = (neighbors * torch.from_numpy(kernel.kernel)).sum(dim=(1, 2))
        torch.testing.assert_close(made, maps[kernel.level][:, row, column], rtol=1e-4, atol=1e-4)
    for kernel in kernels:
        rows, columns, _ = kernel.guidance.shape
        assert kernel.position == (int(y * rows), int(x * columns))
        assert kernel.range.sum() == pytest.approx(1, abs=1e-5) and kernel.spatial[3, 3] == kernel.spatial.max() == 1
    assert drawn(kernel_figure(kernels))
    assert point_kernels(model, processor, IMAGE, (1.0, 1.0))[0].position[0] == kernels[0].guidance.shape[0] - 1
    with pytest.raises(ValueError, match="from 0 to 1"):
        point_kernels(model, processor, IMAGE, (0.5, 1.5))


def test_window_attention_reproduces_the_projector_output(small):
    model, processor = small
    projector = model.model.multi_modal_projector
    attention = window_attention(model, processor, IMAGE, view=2)
    sets, grid, _, levels, bin_rows, bin_columns = attention.weights.shape
    assert (sets, grid, levels) == (4, 3, 3)
    flat = torch.from_numpy(attention.weights).reshape(sets, grid**2, -1)
    torch.testing.assert_close(flat.sum(dim=-1), torch.ones(sets, grid**2))
    encoded = encode_view(model, processor, IMAGE, view=2)
    with torch.no_grad():
        keys, values = pooled_keys_and_values(projector, encoded.features, encoded.pixels)
        queries = (projector.ln_q(projector.queries) + projector.positions).transpose(0, 1)
        expected = projector.attention(queries, keys, values)[0]
        attended = torch.einsum("swl,wle->wse", flat, projector.attention.v_proj(values)[0])
        torch.testing.assert_close(projector.attention.out_proj(attended), expected, rtol=1e-4, atol=1e-4)
    assert attention.shares().sum(axis=0) == pytest.approx(np.ones((3, 3)), abs=1e-5)
    maps = attention.maps()
    assert maps.shape == (3, 3 * bin_rows, 3 * bin_columns) and maps.sum() == pytest.approx(9, abs=1e-4)
    assert maps[1, bin_rows, 0] == pytest.approx(attention.weights[:, 1, 0, 1, 0, 0].mean())
    assert drawn(window_figure(attention))


def test_projectors_without_pyramid_or_jbu_are_rejected(qwen_tokenizer):
    model, processor = pair(qwen_tokenizer, type="resampler")
    with pytest.raises(ValueError, match="'resampler' has no pyramid"):
        window_attention(model, processor, IMAGE)
    model, processor = pair(qwen_tokenizer, upsampler="bilinear")
    with pytest.raises(ValueError, match="'bilinear' has no kernels"):
        point_kernels(model, processor, IMAGE)


@pytest.fixture(scope="module")
def asked(small):
    """(model, processor, inputs, answer ids) of a question about two images."""
    model, processor = small
    inputs = prepare(model, processor, [question_message([IMAGE, random_image(30, 40)], "What is this?")], 6)
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return model, processor, inputs, answer.tolist()


def test_rollout_is_the_product_of_mean_attention_matrices(asked):
    model, _, inputs, answer = asked
    sequence = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    images = {name: inputs[name] for name in ("pixel_values", "view_shapes", "num_views", "grids")}
    with torch.no_grad():
        plain = model(input_ids=sequence, **images)
        with recording(model) as recorded:
            logits = model(input_ids=sequence, **images, use_cache=False, recorded=recorded).logits
        torch.testing.assert_close(logits, plain.logits, rtol=1e-4, atol=1e-4)
        model.set_attn_implementation("eager")
        attentions = model(input_ids=sequence, **images, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    rollout = torch.eye(sequence.shape[1])
    for attention, mean in zip(attentions, recorded, strict=True):
        torch.testing.assert_close(attention[0].mean(dim=0), mean, rtol=1e-4, atol=1e-5)
        rollout = (attention[0].mean(dim=0) + torch.eye(len(rollout))) / 2 @ rollout
    is_image = sequence[0] == model.config.image_token_id
    place = inputs["input_ids"].shape[1] + 2 - 1
    expected = rollout[place][is_image]
    weights = attribute(model, inputs, answer, [2])
    assert weights == pytest.approx((expected / expected.sum()).numpy(), abs=1e-6)
    both = attribute(model, inputs, answer, [2, 3])
    assert both.sum() == pytest.approx(1) and not np.allclose(both, weights)


def test_gradient_attribution_matches_finite_differences(asked):
    model, _, inputs, answer = asked
    images = {name: inputs[name] for name in ("pixel_values", "view_shapes", "num_views", "grids")}
    with torch.no_grad():
        features = torch.cat(model.get_image_features(**images).pooler_output)
        sequence = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
        place = inputs["input_ids"].shape[1] + 1 - 1

        def logit(window: int, factor: float) -> float:
            scaled = features.clone()
            scaled[window] *= factor
            return float(model(input_ids=sequence, image_features=scaled).logits[0, place, answer[1]])

        windows, step = range(0, len(features), 9), 0.2  # smaller ones drown in rounding
        changes = [abs(logit(window, 1 + step) - logit(window, 1 - step)) / (2 * step) for window in windows]
    weights = attribute(model, inputs, answer, [1], "gradient")[::9]
    assert weights / weights.sum() == pytest.approx(np.array(changes) / sum(changes), rel=0.05, abs=0.01)
    with torch.inference_mode():  # as on the engine's thread
        assert attribute(model, inputs, answer, [1], "gradient")[::9] == pytest.approx(weights)


@pytest.mark.parametrize("layout", ["stitched", "sequential"])
def test_weights_are_arranged_by_window(qwen_tokenizer, layout):
    _, processor = pair(qwen_tokenizer, layout)
    inputs = processor.image_processor([random_image(30, 40), IMAGE], return_tensors="pt")
    weights = np.arange(9 + 63, dtype=float)
    first, second = image_heats(processor, inputs, weights)
    assert first.slices is None and first.overview.tolist() == weights[:9].reshape(3, 3).tolist()
    assert second.overview.tolist() == weights[-9:].reshape(3, 3).tolist()
    raster = weights[9:-9]
    if layout == "sequential":  # slice after slice: 2 rows of 3 slices of 3 x 3 windows
        raster = raster.reshape(2, 3, 3, 3).transpose(0, 2, 1, 3)
    assert second.slices.tolist() == raster.reshape(6, 9).tolist()
    for wrong in (weights[:-1], np.append(weights, 1.0)):
        with pytest.raises(ValueError, match=f"{len(wrong)} weights"):
            image_heats(processor, inputs, wrong)


def test_combined_weights_cover_the_image_and_keep_their_sum(asked):
    model, processor, inputs, answer = asked
    heats = image_heats(processor, inputs, attribute(model, inputs, answer, [0]))
    shares = [sum(part.sum() for part in (heat.slices, heat.overview) if part is not None) for heat in heats]
    assert sum(shares) == pytest.approx(1)
    combined = heats[0].combined(300, 200)
    assert combined.shape == (200, 300) and combined.mean() == pytest.approx(shares[0], rel=0.2)
    painted = overlay(IMAGE, heats[0])
    assert painted.shape == (200, 300, 3) and 0 <= painted.min() and painted.max() <= 1
    assert drawn(attribution_figure([IMAGE, random_image(30, 40)], heats, "What?"))


@pytest.fixture(scope="module")
def padding(qwen_tokenizer):
    """A model whose processor pads images to their grid."""
    config = LlavaUhdConfig.from_dict({**small_config().to_dict(), "pad_to_grid": True})
    return build_model(config, seed=4), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


@pytest.mark.parametrize("size", [(224, 56), (56, 224), (448, 112), (900, 200), (333, 333)])
def test_weights_lie_where_the_image_does_in_a_padded_canvas(padding, size):
    _, processor = padding
    width, height = size
    spot, reach = (0.75 * width, 0.3 * height), 0.04 * max(size)
    background = (122, 116, 104)  # as the padding
    image = Image.new("RGB", size, background)
    image.paste("white", tuple(round(center + side * reach) for side in (-1, 1) for center in spot))
    inputs = processor.image_processor(image, return_tensors="pt")
    # A window weighs the more, the brighter its patches are.
    pixels = inputs["pixel_values"].mean(dim=1)
    shapes = [tuple(shape) for shape in inputs["view_shapes"].tolist()]
    views = pixels.split([rows * columns for rows, columns in shapes])
    bright = [
        F.interpolate(
            (view - pixels.median()).clamp(min=0.01).view(1, 1, *shape), processor.token_grid.shape(shape), mode="area"
        )
        for view, shape in zip(views, shapes, strict=True)
    ]
    grid = tuple(inputs["grids"][0].tolist())
    layout = layout_views(grid, shapes[0], shapes[-1], processor.token_grid, processor.layout)
    weights = torch.cat([view.flatten() for view in bright]).numpy()[list(layout.order)]
    with pytest.raises(ValueError, match="this processor pads images: give all 1"):
        image_heats(processor, inputs, weights)
    (heat,) = image_heats(processor, inputs, weights, [image])
    combined = heat.combined(width, height)
    row, column = np.unravel_index(combined.argmax(), combined.shape)
    window = max(size) / min(heat.overview.shape)
    assert abs(column - spot[0]) < window and abs(row - spot[1]) < window, (column, row, spot)


@pytest.mark.parametrize("name", ["pyramid", "kernels", "windows", "explanation"])
def test_figures_show_the_views_of_the_slices_that_were_asked_for(padding, name):
    model, processor = padding
    image = random_image(700, 130)
    shown = [drawn(make_figure(name, model, processor, image, max_slices=number)) for number in (None, 1)]
    assert shown[0] != shown[1]


@pytest.mark.parametrize(
    "change, said",
    [({"method": "magic"}, "magic"), ({"tokens": [6]}, "6 tokens"), ({"tokens": []}, "6 tokens")],
)
def test_invalid_attribution_arguments_are_rejected(asked, change, said):
    model, processor, inputs, answer = asked
    with pytest.raises(ValueError, match=said):
        attribute(model, inputs, answer, **{"tokens": [0], **change})
    without = prepare(model, processor, [question_message([], "?")], 6)
    with pytest.raises(ValueError, match="no image"):
        attribute(model, without, answer, [0])


def test_answer_words_map_to_their_tokens(qwen_tokenizer):
    text = "The total is 12.50 é"
    ids = [*qwen_tokenizer(text)["input_ids"], qwen_tokenizer.eos_token_id]
    words = answer_words(qwen_tokenizer, ids)
    assert [word.text for word in words] == text.split()
    for word in words:
        assert qwen_tokenizer.decode([ids[token] for token in word.tokens]).strip() == word.text
    assert answer_words(qwen_tokenizer, []) == []


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_made_by_name(small, name):
    assert drawn(make_figure(name, *small, IMAGE, question="What is this?"))


def test_unknown_figures_and_words_are_rejected(small):
    for arguments, said in [
        ({"name": "selfie"}, "selfie"),
        ({"name": "answer"}, "question"),
        ({"name": "answer", "question": "?", "method": "magic"}, "magic"),
        ({"name": "answer", "question": "?", "word": "nowhere in it"}, "nowhere in it"),
    ]:
        with pytest.raises(ValueError, match=said):
            make_figure(**{"model": small[0], "processor": small[1], "image": IMAGE, **arguments})


@pytest.mark.parametrize(
    ("module", "name", "new"),
    [
        ("pictures", "picture", make_figure),  # former name
        ("pictures", "PICTURES", FIGURES),  # former name
        ("figure", "principal_colours", principal_colors),  # former name
    ],
)
def test_former_names_work_and_warn(module, name, new):
    former = importlib.import_module(f"llava_uhd.inspection.{module}")
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now llava_uhd\.inspection\."):
        assert getattr(former, name) is new
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        former.nothing  # noqa: B018
