"""Labels: image tokens and separators never count, wherever their ids lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_uhd.model.modeling_llava_uhd import ignore_images
from tests.conftest import build_model, small_config
from tests.model.test_modeling import batch, sample

SIZES = [(56, 56), (150, 120), (300, 60)]


def text_loss(model, inputs: dict, is_text: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss over the positions that are text."""
    logits = model(**inputs).logits[:, :-1].log_softmax(dim=-1)
    targets, counted = inputs["input_ids"][:, 1:], is_text[:, 1:]
    losses = -logits.gather(2, targets.clamp(max=logits.shape[-1] - 1)[..., None])[..., 0]
    return losses[counted].mean()


@pytest.mark.parametrize("layout", ["stitched", "sequential"])
@pytest.mark.parametrize("image_token_id", [423, 7, 5000])
def test_a_copy_of_the_input_ids_gives_the_loss_of_the_text_alone(layout, image_token_id):
    config = small_config(layout=layout)
    config.image_token_id = image_token_id
    # Text with the ids of both separators, also right before and after an image.
    text = (5, config.slice_separator_id, 6, config.row_separator_id)
    model, inputs = build_model(config), sample(config, SIZES, text=text)
    is_text = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    counts = model.model.group_views(
        len(inputs["pixel_values"]), inputs["view_shapes"], inputs["num_views"], inputs["grids"]
    ).tokens_per_image
    positions = (inputs["input_ids"][0] == image_token_id).nonzero().flatten().split(counts)
    for of_image in positions:
        is_text[0, of_image[0] : of_image[-1] + 1] = False
    assert is_text.sum() == 1 + len(SIZES) * len(text) + len(text) + 1
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"].clone()).loss
        torch.testing.assert_close(loss, text_loss(model, inputs, is_text))
        features = torch.cat(
            model.get_image_features(
                **{name: inputs[name] for name in ("pixel_values", "view_shapes", "num_views", "grids")}
            ).pooler_output
        )
        ids = inputs["input_ids"]
        torch.testing.assert_close(model(input_ids=ids, image_features=features, labels=ids.clone()).loss, loss)


def test_batches_and_embeddings():
    config = small_config()
    model = build_model(config)
    samples = [sample(config, [(150, 120)]), sample(config, []), sample(config, [(56, 56), (300, 60)])]
    inputs = batch(samples, pad=421, side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        losses = [
            (model(**item, labels=item["input_ids"].clone()).loss, (item["input_ids"] < 423).sum()) for item in samples
        ]
        together = model(**inputs, labels=labels).loss
        assert together.isfinite() and min(loss for loss, _ in losses) < together < max(loss for loss, _ in losses)
        features = model.get_image_features(
            **{name: inputs[name] for name in ("pixel_values", "view_shapes", "num_views", "grids")}
        )
        embeds = model.model.embed_tokens(inputs["input_ids"], torch.cat(features.pooler_output))
        masked = labels.masked_fill(labels == config.image_token_id, -100)
        by_embeds = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], labels=labels).loss
        assert by_embeds.isfinite() and (masked != labels).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4), st.integers(0, 3))
def test_whatever_lies_within_an_image_is_ignored(rows, gap):
    """Images of one to five tokens with a separator after each token; `gap` text tokens that look like separators."""
    config = small_config()
    image, separator = config.image_token_id, config.slice_separator_id
    ids, expected, counts = [], [], []
    for images in rows:
        row, ignored = [1], [False]
        for count in images:
            inside = [image, separator] * (count - 1) + [image]
            row += inside + [separator] * gap
            ignored += [True] * len(inside) + [False] * gap
            counts.append(count)
        ids.append(row)
        expected.append(ignored)
    length = max(map(len, ids))
    input_ids = torch.tensor([row + [2] * (length - len(row)) for row in ids])
    wanted = torch.tensor([row + [False] * (length - len(row)) for row in expected])
    labels = ignore_images(input_ids.clone(), input_ids, config, counts)
    assert torch.equal(labels == -100, wanted)
    assert torch.equal(labels[~wanted], input_ids[~wanted])
