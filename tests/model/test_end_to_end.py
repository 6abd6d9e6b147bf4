"""The whole model against the published one: same image, same weights, same logits and greedy tokens."""

import pytest
import torch

from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.layout import TokenType, plan_layout
from tests.conftest import golden_image
from tests.golden import load, relative_error


def expand(ids: torch.Tensor, labels: torch.Tensor, model, plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts an image's tokens where the reference implementation has its placeholder -200."""
    config = model.config
    template = plan_layout(plan, model.model.token_grid, config.layout).template
    token_types = {
        TokenType.IMAGE: config.image_token_id,
        TokenType.SLICE_SEPARATOR: config.slice_separator_id,
        TokenType.ROW_SEPARATOR: config.row_separator_id,
    }
    new_ids, new_labels = [], []
    for token, label in zip(ids[0].tolist(), labels[0].tolist(), strict=True):
        new_ids += [token_types[token_type] for token_type in template] if token == -200 else [token]
        new_labels += [-100] * len(template) if token == -200 else [label]
    return torch.tensor([new_ids]), torch.tensor([new_labels])


@pytest.fixture(scope="module")
def inputs(golden_model):
    golden = load("e2e.npz")
    processor = LlavaUhdImageProcessor()
    image = golden_image(240, 500)
    ids, labels = expand(golden["input_ids"], golden["labels"], golden_model, processor.plan(240, 500))
    return {"input_ids": ids, "labels": labels, **processor(image, return_tensors="pt")}


def test_logits_and_loss(golden_model, inputs):
    golden = load("e2e.npz")
    with torch.no_grad():
        outputs = golden_model(**inputs)
    logits = outputs.logits[0]
    assert relative_error(logits[-1], golden["logits_last"]) < 1e-5
    assert relative_error(logits[golden["logits_pos"], :256], golden["logits_pos_first256"]) < 1e-5
    assert relative_error(logits.logsumexp(dim=-1), golden["logits_lse"]) < 1e-5
    assert abs(outputs.loss - golden["loss"][0]) < 1e-5


def test_image_tokens(golden_model, inputs):
    golden = load("e2e.npz")
    with torch.no_grad():
        images = {key: inputs[key] for key in ("pixel_values", "view_shapes", "num_views", "grids")}
        (features,) = golden_model.get_image_features(**images).pooler_output
        embeds = golden_model.model.embed_tokens(inputs["input_ids"], features)
    assert relative_error(embeds[0, ::10], golden["inputs_embeds_every10"]) < 1e-5
    # One column of two slices: the stitched raster is the slices one after the other.
    assert relative_error(features.view(3, 144, 64)[:, ::6], golden["projected"]) < 1e-5


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens(golden_model, inputs, use_cache):
    prompt = {key: value for key, value in inputs.items() if key != "labels"}
    generated = golden_model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    assert generated[:, inputs["input_ids"].shape[1] :].tolist() == load("e2e.npz")["generated"].tolist()


def test_bf16_with_rounded_boxes(golden_model, inputs):
    """The published bf16 run, whose window boxes are rounded: a tenth of a standard deviation is its own noise."""
    import copy

    golden = load("e2e_bf16.npz")
    model = copy.deepcopy(golden_model).bfloat16()
    model.model.multi_modal_projector.box_dtype = "bfloat16"
    with torch.no_grad():
        outputs = model(**inputs)
    logits = outputs.logits[0, golden["logits_pos"], :256].float()
    assert (logits - golden["logits_pos_first256"]).std() < 0.1 * golden["logits_pos_first256"].std()
    assert abs(outputs.loss - golden["loss"][0]) < 0.05
