"""The forward pass waits for no device: counted on the meta device, whose tensors have no values to read back."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.model import hiwin, view_groups
from llava_uhd.model.view_groups import CACHED_BATCHES, group_views
from tests.conftest import build_model, small_config
from tests.model.test_modeling import sample

META = torch.device("meta")


class HostCopies(TorchDispatchMode):
    """Count copies from the host to the meta device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if source is not None and source.device.type == "cpu" and isinstance(out, torch.Tensor):
            self.count += out.device.type == "meta" and source.dim() > 0
        return out


@pytest.fixture
def model(monkeypatch) -> LlavaUhdForConditionalGeneration:
    """Model without values, its projector on the fused path, which weights on the meta device would rule out."""
    monkeypatch.setattr(hiwin, "reason_not_to_fuse", lambda projector: None)
    with META:
        return LlavaUhdForConditionalGeneration(small_config(levels=[1, 2], bin_embedding=True)).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Inputs of one image with slices; its shapes stay on the host."""
    inputs = sample(small_config(), [(150, 120)])
    return {name: value.to(META) if name in ("input_ids", "pixel_values") else value for name, value in inputs.items()}


def test_reading_a_value_back_fails_on_the_meta_device():
    numbers = torch.ones(3, device=META)
    for read in (
        torch.Tensor.tolist,
        torch.Tensor.nonzero,
        torch.Tensor.cpu,
        lambda t: t.sum().item(),
        lambda t: bool(t[0]),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(numbers)


@torch.no_grad()
def test_inference_reads_nothing_back(model, inputs):
    outputs = model(**inputs, logits_to_keep=1)
    assert outputs.logits.device == META and outputs.logits.shape == (1, 1, 423)
    shapes = {name: inputs[name] for name in ("view_shapes", "num_views", "grids")}
    (tokens,) = model.get_image_features(inputs["pixel_values"], **shapes).pooler_output
    assert tokens.shape[1] == 32


@torch.no_grad()
def test_the_second_call_copies_nothing_to_the_device(model, inputs):
    images = {name: inputs[name] for name in ("pixel_values", "view_shapes", "num_views", "grids")}
    view_groups._grouped.cache_clear()
    with HostCopies() as first:
        model.get_image_features(**images)
    with HostCopies() as second:
        model.get_image_features(**images)
    assert first.count > 0 and second.count == 0


def test_a_training_step_reads_nothing_back(model, inputs):
    outputs = model.train()(**inputs)
    outputs.logits.float().square().mean().backward()
    assert model.model.multi_modal_projector.queries.grad is not None


def test_device_shapes_are_read_back_once_and_host_shapes_never():
    config = small_config()
    shapes = sample(config, [(150, 120), (60, 60)])
    del shapes["input_ids"]
    pixels = shapes.pop("pixel_values")
    model = build_model(config).model
    expected = model.group_views(len(pixels), **shapes)
    for convert in (torch.Tensor.numpy, torch.Tensor.tolist, lambda tensor: tensor.to(torch.int32)):
        grouped = model.group_views(len(pixels), **{name: convert(value) for name, value in shapes.items()})
        assert torch.equal(grouped.order, expected.order) and grouped.tokens_per_image == expected.tokens_per_image
    with pytest.raises((RuntimeError, NotImplementedError)):
        model.group_views(len(pixels), **{name: value.to(META) for name, value in shapes.items()})


def test_index_tensors_are_built_once_per_shape_and_the_cache_is_bounded():
    config = small_config()
    model = build_model(config).model
    view_groups._grouped.cache_clear()
    shapes = {"view_shapes": [[4, 4]], "num_views": [1], "grids": [[0, 0]]}
    assert model.group_views(16, **shapes) is model.group_views(16, **shapes)
    assert model.group_views(16, **shapes, device=META).order.device == META
    for side in range(1, CACHED_BATCHES + 10):
        group_views(side, [[1, side]], [1], [[0, 0]], model.token_grid, config.layout)
    assert view_groups._grouped.cache_info().currsize == CACHED_BATCHES


def test_indices_made_in_inference_mode_serve_training():
    config = small_config()
    inputs = sample(config, [(150, 120)])
    del inputs["input_ids"]
    model = build_model(config).model
    view_groups._grouped.cache_clear()
    with torch.inference_mode():
        model.get_image_features(**inputs)
    model.train()
    model.get_image_features(**inputs).pooler_output[0].sum().backward()
    assert model.multi_modal_projector.queries.grad.abs().sum() > 0


def test_generate_names_both_numbers_where_image_tokens_and_features_differ():
    config = small_config()
    model, inputs = build_model(config), sample(config, [(150, 120)])
    features = torch.cat(
        model.get_image_features(**{k: v for k, v in inputs.items() if k != "input_ids"}).pooler_output
    )
    count = len(features)
    ids = inputs["input_ids"]
    cut = ids[:, : int((ids == config.image_token_id).nonzero()[-1, 1])]
    for images in ({k: v for k, v in inputs.items() if k != "input_ids"}, {"image_features": features}):
        with pytest.raises(ValueError, match=f"{count - 1} image tokens, but the images have {count} features"):
            model._check_image_tokens(
                cut, dict.fromkeys(("pixel_values", "view_shapes", "num_views", "grids", "image_features")) | images
            )
        with pytest.raises(ValueError, match=f"{count - 1} image tokens, but the images have {count} features"):
            model.generate(input_ids=cut, **images, max_new_tokens=1)


def test_empty_batch_of_images_is_refused_with_numbers():
    with pytest.raises(ValueError, match="num_views holds 1 images, grids 0"):
        group_views(
            16,
            np.array([[4, 4]]),
            np.array([1]),
            np.zeros((0, 2)),
            build_model(small_config()).model.token_grid,
            "stitched",
        )
