"""The reference formulation against the goldens of the reference implementation."""

import pytest
import torch

from llava_uhd.benchmark import reference
from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.vision_tower import encode_views, patches_to_pixels
from tests.conftest import build_model, random_image, small_config
from tests.golden import load, relative_error
from tests.model import test_hiwin, test_pyramid


@pytest.mark.parametrize("mask", test_hiwin.MASKS)
def test_tokens(mask):
    golden = load("hiwin.npz")
    projector = test_hiwin.build(golden, mask)
    for image, tokens in enumerate(test_hiwin.project(golden, projector, through=reference.tokens)):
        assert relative_error(tokens[:, :: 1 if mask == "mask7" else 3], golden[f"{mask}.out_image{image}"]) < 1e-5


def test_up_sampling():
    golden = load("jbu.npz")
    up = test_pyramid.build(golden, "jbu4x").up1
    with torch.no_grad():
        kernels = reference.kernels(up, golden["jbu4x.up1.guidance"])
        assert relative_error(kernels, golden["jbu4x.up1.combined_kernel"]) < 1e-5
        pyramid = test_pyramid.build(golden, "jbu4x")
        maps = reference.pyramid_maps(pyramid, golden["src_0"], golden["img_0"].float())
        fused = pyramid(golden["src_0"], golden["img_0"].float())
    for expected, actual in zip(maps, fused, strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_vision():
    """An image of slices and overview: the model's features are those of two plain passes."""
    config = small_config(levels=[1, 2, 4])
    model = build_model(config).model
    processor = LlavaUhdImageProcessor(view_size=56, max_slices=config.max_slices)
    inputs = processor([random_image(150, 120)], return_tensors="pt")
    shapes = [tuple(shape) for shape in inputs["view_shapes"].tolist()]
    views = inputs["pixel_values"].split([height * width for height, width in shapes])
    with torch.no_grad():
        pixels = patches_to_pixels(views[-1][None], shapes[-1], 14)
        features = reference.encode(model.vision_tower, pixels)
        torch.testing.assert_close(features, encode_views(model.vision_tower, views[-1][None], shapes[-1], -2))
        slices, overview = reference.image_tokens(model, torch.stack(views[:-1]), shapes[0], views[-1], shapes[-1])
        tokens = torch.cat([*slices, *overview])
        (fused,) = model.get_image_features(**inputs).pooler_output
        # The same tokens, whatever their order: the layout has tests of its own.
        assert len(fused) == len(tokens)
        distances = torch.cdist(fused.double(), tokens.double())
        assert distances.min(dim=1).values.max() < 1e-4 * tokens.norm(dim=1).mean()
        assert (distances.argmin(dim=1).sort().values == torch.arange(len(tokens))).all()
