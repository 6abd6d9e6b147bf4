"""The processor: prompts, images and their tokens always agree."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from llava_uhd import LlavaUhdConfig, LlavaUhdProcessor
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.layout import LAYOUTS, TokenType
from tests.conversations import llama_tokenizer, qwen_tokenizer

SMALL, WIDE = Image.new("RGB", (120, 80), "red"), Image.new("RGB", (500, 260), "blue")
SLICE_ID, ROW_ID = 29892, 13


def make_processor(tokenizer=None, max_slices: int = 7, view_size: int = 336, **options) -> LlavaUhdProcessor:
    return LlavaUhdProcessor(
        LlavaUhdImageProcessor(max_slices=max_slices, view_size=view_size), tokenizer or qwen_tokenizer(), **options
    )


def expanded(processor: LlavaUhdProcessor, image: Image.Image) -> list[int]:
    """The ids that stand for an image, by the layout alone."""
    ids = {
        TokenType.IMAGE: processor.image_token_id,
        TokenType.SLICE_SEPARATOR: SLICE_ID,
        TokenType.ROW_SEPARATOR: ROW_ID,
    }
    return [ids[token_type] for token_type in processor.image_layout(*image.size).template]


# Expansion


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokenizer", [llama_tokenizer, qwen_tokenizer])
def test_an_image_becomes_its_layout_s_tokens(layout, tokenizer):
    """Whatever the ids of the separators mean to the tokenizer: 29892 lies outside these vocabularies."""
    processor = make_processor(tokenizer(), layout=layout)
    begin = processor.tokenizer("")["input_ids"]
    for image in (SMALL, WIDE, WIDE.rotate(90, expand=True)):
        assert processor(images=image, text="<image>")["input_ids"] == [begin + expanded(processor, image)]


def test_stitched_ids_by_hand():
    processor = make_processor(query_grid=2)
    image, newline, comma = processor.image_token_id, ROW_ID, SLICE_ID
    raster_row = [image] * 4 + [newline]
    ids = processor(images=WIDE, text="<image>")["input_ids"][0]
    assert ids == raster_row * 2 + [comma] + [image] * 4


def test_sequential_ids_by_hand():
    processor = make_processor(query_grid=2, layout="sequential")
    image, newline, comma = processor.image_token_id, ROW_ID, SLICE_ID
    ids = processor(images=WIDE, text="<image>")["input_ids"][0]
    assert ids == [image] * 4 + [comma] + [image] * 4 + [newline] + [image] * 4


def test_ordinary_commas_and_newlines_are_left_alone():
    processor = make_processor(llama_tokenizer())
    text = "a, b\nc,\nd"
    assert processor(text=text)["input_ids"] == [processor.tokenizer(text)["input_ids"]]


def test_text_after_an_image_is_tokenized_as_if_it_began_a_text():
    for tokenizer in (llama_tokenizer(), llama_tokenizer(legacy=True), qwen_tokenizer()):
        processor = make_processor(tokenizer, query_grid=1)
        image = processor.image_token_id
        for after in ("\nWhat?", "What?", "42"):
            piece = tokenizer(after, add_special_tokens=False)["input_ids"]
            ids = processor(images=[SMALL, SMALL], text=f"<image><image>{after}")["input_ids"][0]
            assert ids == [*tokenizer("")["input_ids"], image, image, *piece]


def test_an_mlp_projector_has_a_token_for_each_square_of_patches():
    processor = make_processor(query_grid=None, unshuffle_factor=2)
    ids = processor(images=SMALL, text="<image>")["input_ids"][0]
    assert ids == [processor.image_token_id] * (10 * 15)  # of 19 x 29 patches


# Batches


@pytest.mark.parametrize(
    ("name", "value"),
    [("layout", "sequential"), ("query_grid", 4), ("slice_separator_id", 60), ("row_separator_id", 61)],
)
def test_attributes_that_are_set_take_effect_and_are_saved(tmp_path, name, value):
    processor, image = make_processor(), Image.new("RGB", (800, 400))
    before = processor(images=image, text="<image>")["input_ids"][0]
    setattr(processor, name, value)
    ids = processor(images=image, text="<image>")["input_ids"][0]
    assert ids != before
    of_image = processor.ids_of_image(processor.image_processor(image), 0)
    assert of_image == ids[-len(of_image) :]
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path)(images=image, text="<image>")["input_ids"][0] == ids


def test_batches_of_prompts_with_none_one_and_several_images():
    processor = make_processor(query_grid=2)
    prompts = ["<image>\nhi", "nothing", "<image> and <image>, a\n"]
    nested = processor(images=[[WIDE], [], [SMALL, WIDE]], text=prompts, padding=True, return_tensors="pt")
    flat = processor(images=[WIDE, SMALL, WIDE], text=prompts, padding=True, return_tensors="pt")
    for name, value in nested.items():
        torch.testing.assert_close(value, flat[name], rtol=0, atol=0)
    assert nested.num_views.tolist() == [3, 1, 3]
    assert (nested.input_ids == processor.image_token_id).sum(1).tolist() == [12, 0, 16]
    assert set(nested) == set(processor.model_input_names)


@pytest.mark.parametrize("images", [None, [], [[], []]])
def test_prompts_without_images(images):
    outputs = make_processor()(images=images, text=["a", "bc"], padding=True, return_tensors="pt")
    assert set(outputs) == {"input_ids", "attention_mask"}


def test_images_without_prompts():
    outputs = make_processor()(images=[SMALL, WIDE], return_tensors="pt")
    assert set(outputs) == {"pixel_values", "view_shapes", "num_views", "grids"}


def test_padding_on_either_side_keeps_the_tokens():
    processor = make_processor(query_grid=3)
    images, prompts = [[WIDE], [SMALL]], ["<image>\nhi there", "<image>"]
    alone = [
        processor(images=[item], text=[prompt])["input_ids"][0] for item, prompt in zip(images, prompts, strict=True)
    ]
    for side in ("left", "right"):
        outputs = processor(images=images, text=prompts, padding=True, padding_side=side, return_tensors="pt")
        for ids, mask, expected in zip(outputs.input_ids, outputs.attention_mask, alone, strict=True):
            assert ids[mask.bool()].tolist() == expected
            padding = mask[: len(mask) - len(expected)] if side == "left" else mask[len(expected) :]
            assert padding.sum() == 0


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), max_size=3), min_size=1, max_size=3),
    text=st.text(st.sampled_from("ab, \n<é"), max_size=12),
    max_slices=st.integers(1, 9),
    layout=st.sampled_from(LAYOUTS),
    projector=st.sampled_from([(1, None), (3, None), (None, 2), (None, 5)]),
    side=st.sampled_from(["left", "right"]),
)
def test_tokens_in_the_prompt_are_the_features_of_the_views(sizes, text, max_slices, layout, projector, side):
    query_grid, unshuffle_factor = projector
    processor = make_processor(
        max_slices=3, view_size=112, layout=layout, query_grid=query_grid, unshuffle_factor=unshuffle_factor
    )
    images = [[Image.new("RGB", size) for size in sample] for sample in sizes]
    prompts = [text + "".join("<image>" + text for _ in sample) for sample in sizes]
    outputs = processor(
        images=images, text=prompts, max_slices=max_slices, padding=True, padding_side=side, return_tensors="pt"
    )
    in_prompts = (outputs.input_ids == processor.image_token_id).sum(1).tolist()
    shapes = [tuple(shape) for shape in outputs["view_shapes"].tolist()] if any(images) else []
    features = [rows * columns for rows, columns in map(processor.token_grid.shape, shapes)]
    assert sum(in_prompts) == sum(features)
    by_size = [
        [processor.image_layout(*size, max_slices=max_slices).num_image_tokens for size in sample] for sample in sizes
    ]
    assert in_prompts == list(map(sum, by_size))


# Masks and counts beside the ids


def test_image_tokens_are_marked_and_counted():
    processor = make_processor(query_grid=4)
    images = [WIDE, SMALL]
    outputs = processor(
        images=images, text="a, <image>, b <image>", return_mm_token_type_ids=True, return_tensors="pt"
    )
    assert (outputs.mm_token_type_ids == (outputs.input_ids == processor.image_token_id)).all()
    counts = processor._get_num_multimodal_tokens(image_sizes=[(image.height, image.width) for image in images])
    assert counts["num_image_tokens"] == [3 * 16, 16]
    assert outputs.mm_token_type_ids.sum() == sum(counts["num_image_tokens"])
    assert sum(counts["num_image_patches"]) == len(outputs.pixel_values)
    first = processor(images=WIDE, text="<image>", return_tensors="pt").pixel_values
    cut = outputs.pixel_values.split(counts["num_image_patches"])
    torch.testing.assert_close(cut[0], first, rtol=0, atol=0)
    fewer = processor._get_num_multimodal_tokens(image_sizes=[(260, 500)], max_slices=1)
    assert fewer["num_image_tokens"] == [16]
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens()


def test_reported_spans_are_those_of_the_expanded_text():
    processor = make_processor(llama_tokenizer(), query_grid=1)
    outputs = processor(
        images=[SMALL, WIDE, SMALL],
        text="x <image>\n<image><image>",
        return_text_replacement_offsets=True,
        return_offsets_mapping=True,
    )
    ids, spans = outputs["input_ids"][0], outputs["offset_mapping"][0]
    image_positions = [index for index, token in enumerate(ids) if token == processor.image_token_id]
    starts = [spans[position][0] for position in image_positions]
    entries = outputs["text_replacement_offsets"][0]
    assert [entry["replacement"].count("<image>") for entry in entries] == [1, 3, 1]
    for entry, first in zip(entries, (0, 1, 4), strict=True):
        assert entry["new_span"][0] == starts[first]
        assert entry["new_span"][1] - entry["new_span"][0] == len(entry["replacement"])


# Settings


def test_a_saved_processor_loads_the_same(tmp_path):
    processor = make_processor(
        query_grid=None,
        unshuffle_factor=3,
        layout="sequential",
        slice_separator_id=5,
        row_separator_id=6,
        max_slices=4,
    )
    processor.save_pretrained(tmp_path)
    for loaded in (LlavaUhdProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, LlavaUhdProcessor)
        assert loaded.image_token_id == processor.image_token_id
        before, after = (each(images=[WIDE], text="<image>, a\n", return_tensors="np") for each in (processor, loaded))
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name], err_msg=name)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["layout"] == "sequential"
    assert saved["unshuffle_factor"] == 3
    assert (saved["slice_separator_id"], saved["row_separator_id"]) == (5, 6)


@pytest.mark.parametrize("projector", [{"type": "hiwin", "query_grid": 8}, {"type": "mlp", "unshuffle_factor": 3}])
def test_a_config_sets_the_processor(projector):
    config = LlavaUhdConfig(
        vision_config={"image_size": 112, "patch_size": 16, "hidden_size": 8, "num_attention_heads": 1},
        projector=projector,
        layout="sequential",
        image_token_id=423,
        slice_separator_id=7,
        row_separator_id=8,
        max_slices=3,
    )
    processor = LlavaUhdProcessor.from_config(config, qwen_tokenizer(), chat_template="qwen")
    images = processor.image_processor
    assert (images.max_slices, images.view_size, images.patch_size) == (3, 112, 16)
    assert processor.token_grid.shape((7, 6)) == ((8, 8) if projector["type"] == "hiwin" else (3, 2))
    assert (processor.layout, processor.slice_separator_id, processor.row_separator_id) == ("sequential", 7, 8)
    assert processor.apply_chat_template([{"role": "user", "content": "hi"}]).endswith("user\nhi<|im_end|>\n")
    config.image_token_id = 9
    with pytest.raises(ValueError, match="is 423, but config.image_token_id is 9"):
        LlavaUhdProcessor.from_config(config, qwen_tokenizer())


# Refusals


@pytest.mark.parametrize(
    "images, text, complaint",
    [
        ([SMALL], "<image> <image>", "2 <image> placeholders in all, but 1 images"),
        ([SMALL, SMALL], "<image>", "1 <image> placeholders in all, but 2 images"),
        (None, "<image>", "1 <image> placeholders in all, but 0 images"),
        ([SMALL], "no placeholder", "0 <image> placeholders in all, but 1 images"),
        ([[SMALL], [SMALL]], ["<image><image>", "none"], "prompt 1 has 2 <image> placeholders, but 1 images"),
        ([[SMALL], [SMALL]], ["<image>"], "1 prompts, but 2 lists of images"),
    ],
)
def test_prompts_and_images_must_agree(images, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_processor()(images=images, text=text)


def test_an_image_in_place_of_the_text_is_named():
    with pytest.raises(ValueError, match="got Image; images come first, as in"):
        make_processor()("<image> What?", SMALL)


@pytest.mark.parametrize("return_tensors", [None, "pt"])
def test_image_tokens_are_never_cut(return_tensors):
    """The reference implementation truncates the sequence at `max_length`, image tokens or not."""
    processor = make_processor(query_grid=4)
    length = len(processor(images=WIDE, text="<image> hi there")["input_ids"][0])
    options = {"truncation": True, "return_tensors": return_tensors}
    with pytest.raises(ValueError, match=f"a prompt of {length} tokens was cut to 30"):
        processor(images=WIDE, text="<image> hi there", max_length=30, **options)
    shortened = processor(images=WIDE, text="<image> hi there", max_length=length - 1, **options)
    assert len(shortened["input_ids"][0]) == length - 1


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="got 'spiral'"):
        make_processor(layout="spiral")
    with pytest.raises(ValueError, match="12 and 2"):
        make_processor(unshuffle_factor=2)
    with pytest.raises(ValueError, match="max_slices must be a whole number from 1 to 1024, got 0"):
        make_processor()(images=SMALL, text="<image>", max_slices=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokenizer", [llama_tokenizer, qwen_tokenizer])
def test_a_prompt_of_images_processed_before_has_the_same_ids(layout, tokenizer):
    processor = make_processor(tokenizer(), layout=layout)
    text, images = "one <image> two <image>\nthree", [WIDE, SMALL]
    alone = [processor.image_processor(image, return_tensors="pt") for image in images]
    shapes = {name: torch.cat([inputs[name] for inputs in alone]) for name in ("num_views", "view_shapes", "grids")}
    assert processor.encode_prompt(text, shapes) == processor(images=images, text=text)["input_ids"][0]
    assert processor.encode_prompt("no image, at all", {}) == processor(text="no image, at all")["input_ids"][0]
    with pytest.raises(ValueError, match="1 <image> placeholders, but 2 images"):
        processor.encode_prompt("<image>", shapes)


# Normalization


def siglip_config(model_type: str) -> LlavaUhdConfig:
    return LlavaUhdConfig(
        vision_config={
            "model_type": model_type,
            "image_size": 112,
            "patch_size": 16,
            "hidden_size": 8,
            "num_attention_heads": 1,
        },
        image_token_id=423,
    )


def test_the_images_are_normalized_as_the_tower_expects():
    for model_type, mean in (("siglip_vision_model", 0.5), ("clip_vision_model", 0.48145466)):
        images = LlavaUhdProcessor.from_config(siglip_config(model_type), qwen_tokenizer()).image_processor
        assert images.image_mean[0] == mean
        gray = images(Image.new("RGB", (56, 56), (255, 255, 255)), return_tensors="pt").pixel_values
        assert gray.max() == pytest.approx((1 - images.image_mean[2]) / images.image_std[2])
    images = LlavaUhdProcessor.from_config(
        siglip_config("clip_vision_model"), qwen_tokenizer(), image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1]
    ).image_processor
    assert list(images.image_mean) == [0.1, 0.2, 0.3]


def test_an_unknown_normalization_must_be_given():
    config = siglip_config("clip_vision_model")
    config.vision_config.model_type = "dinov2"
    with pytest.raises(ValueError, match="type 'dinov2' is unknown: give image_mean and image_std"):
        LlavaUhdProcessor.from_config(config, qwen_tokenizer())
    processor = LlavaUhdProcessor.from_config(config, qwen_tokenizer(), image_mean=[0.5] * 3, image_std=[0.2] * 3)
    assert list(processor.image_processor.image_std) == [0.2] * 3
