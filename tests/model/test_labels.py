"""Labels: image tokens and separators never count, wherever their ids lie."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_uhd.checkpoints.tokenizers import from_sentencepiece
from llava_uhd.model.labels import ImageTextInputs, ignore_images
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor
from tests.conftest import GOLDENS, build_model, small_config
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
    expected = torch.tensor([row + [False] * (length - len(row)) for row in expected])
    labels = ignore_images(input_ids.clone(), input_ids, image, separator, config.row_separator_id, counts)
    assert torch.equal(labels == -100, expected)
    assert torch.equal(labels[~expected], input_ids[~expected])


@pytest.fixture(scope="module")
def processor():
    """The processor of Vicuna's kind: SentencePiece, the image token outside the vocabulary."""
    tokenizer = from_sentencepiece(GOLDENS / "tokenizers" / "llama_tiny")
    config = small_config()
    config.image_token_id = len(tokenizer)
    return LlavaUhdProcessor.from_config(config, tokenizer, "vicuna")


@pytest.mark.parametrize(
    "texts", [["<image>,\n<image>\nSay it.", "No image."], ["<image>One.", "<image>\nTwo, then."]]
)
def test_labels_set_beside_the_inputs_of_a_processor_are_the_text_alone(processor, texts):
    """Trainers copy the input ids, set padding to -100 and put the result beside them, in this order."""
    images = [[Image.new("RGB", (300, 200)), Image.new("RGB", (90, 250))][: text.count("<image>")] for text in texts]
    inputs = processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[inputs["attention_mask"] == 0] = -100
    inputs["labels"] = labels
    for row, text in zip(inputs["labels"], texts, strict=True):
        expected = [
            token
            for index, piece in enumerate(text.split("<image>"))
            for token in processor.tokenizer(piece, add_special_tokens=index == 0)["input_ids"]
        ]
        assert row[row != -100].tolist() == expected
    sent = pickle.loads(pickle.dumps(inputs))
    sent["labels"] = sent["input_ids"].clone()
    assert not (sent["labels"] == processor.image_token_id).any()
    # As accelerate copies a batch: by type and one dictionary.
    assert torch.equal(type(inputs)(dict(inputs))["labels"], inputs["labels"])


def test_labels_in_lists_and_arrays_are_the_text_alone_too(processor):
    images, texts = [[Image.new("RGB", (300, 200))], []], ["<image>\nSay, it.", "None."]
    options = {"images": images, "text": texts, "padding": True}
    tensors = processor(**options, return_tensors="pt")
    tensors["labels"] = tensors["input_ids"].clone()
    for kind in ("np", None):
        inputs = processor(**options, return_tensors=kind)
        inputs["labels"] = copy.deepcopy(inputs["input_ids"])
        assert type(inputs["labels"]) is type(inputs["input_ids"])
        assert torch.equal(torch.as_tensor(inputs["labels"]), tensors["labels"])
    ragged = processor(images=images, text=texts)
    ragged["labels"] = copy.deepcopy(ragged["input_ids"])
    assert [len(row) for row in ragged["labels"]] == [len(row) for row in ragged["input_ids"]]
    assert [token for token in ragged["labels"][0] if token != -100] == tensors["labels"][0][
        tensors["labels"][0] != -100
    ].tolist()[-sum(token != -100 for token in ragged["labels"][0]) :]
    assert ragged["labels"][1] == ragged["input_ids"][1]


def test_the_number_of_labels_that_a_trainer_counted_is_corrected():
    config = small_config()
    model, inputs = build_model(config).eval(), sample(config, SIZES, text=(5, 14, 6, 198))
    labels = inputs["input_ids"].clone()
    with torch.no_grad():
        loss = model(**inputs, labels=labels).loss
        count = labels[:, 1:].ne(-100).sum()
        assert float(model(**inputs, labels=labels, num_items_in_batch=count).loss) == pytest.approx(float(loss))
        halved = model(**inputs, labels=labels, num_items_in_batch=2 * int(count)).loss
    assert float(halved) == pytest.approx(float(loss) / 2)


def test_labels_of_another_shape_are_taken_as_they_are(processor):
    inputs = processor(images=Image.new("RGB", (90, 90)), text="<image>What?", return_tensors="pt")
    assert isinstance(inputs, ImageTextInputs)
    inputs["labels"] = torch.tensor([1])
    assert inputs["labels"].tolist() == [1]


def test_images_beside_embeddings_give_the_loss_of_the_ids():
    """Prompt tuning embeds the prompt, image tokens included, and passes the pixels on."""
    config = small_config()
    config.image_token_id = 7
    model, inputs = build_model(config), sample(config, SIZES, text=(5, 14, 6, 198))
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        by_ids = model(input_ids=ids, **inputs, labels=ids.clone())
        by_embeds = model(inputs_embeds=embeds, **inputs, labels=ids.clone())
        torch.testing.assert_close(by_embeds.logits, by_ids.logits)
        torch.testing.assert_close(by_embeds.loss, by_ids.loss)
        with pytest.raises(ValueError, match="the prompt has 0 image tokens, but the images have"):
            model(inputs_embeds=embeds[:, :1], **inputs)
        for beams in (1, 2):
            options = {**inputs, "max_new_tokens": 4, "do_sample": False, "num_beams": beams}
            answer = model.generate(input_ids=ids, **options)[:, ids.shape[1] :]
            assert torch.equal(model.generate(inputs_embeds=embeds, **options), answer)
    config.image_token_id = 5000
    with pytest.raises(ValueError, match=r"its id is 5000 and the vocabulary has \d+ tokens: call resize_token_embed"):
        model(inputs_embeds=embeds, **inputs)
