"""The plain formulas against what the published code computed."""

import pytest
import torch

from llava_uhd.model.image_processing_llava_uhd import LlavaUhdImageProcessor
from llava_uhd.model.packing import unpack
from llava_uhd.model.vision_tower import encode_views
from llava_uhd.oracle import hiwin, jbu, vision
from tests.conftest import build_model, picture, small_config
from tests.golden import load, relative_error
from tests.model import test_hiwin, test_pyramid


@pytest.mark.parametrize("mask", test_hiwin.MASKS)
def test_tokens(mask):
    golden = load("hiwin.npz")
    projector = test_hiwin.build(golden, mask)
    for image, tokens in enumerate(test_hiwin.project(golden, projector, through=hiwin.tokens)):
        assert relative_error(tokens[:, :: 1 if mask == "mask7" else 3], golden[f"{mask}.out_image{image}"]) < 1e-5


def test_up_sampling():
    golden = load("jbu.npz")
    up = test_pyramid.build(golden, "jbu4x").up1
    with torch.no_grad():
        kernels = jbu.kernels(up, golden["jbu4x.up1.guidance"])
        assert relative_error(kernels, golden["jbu4x.up1.combined_kernel"]) < 1e-5
        pyramid = test_pyramid.build(golden, "jbu4x")
        maps = jbu.maps(pyramid, golden["src_0"], golden["img_0"].float())
        ours = pyramid(golden["src_0"], golden["img_0"].float())
    for expected, actual in zip(maps, ours, strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_vision():
    """An image of slices and overview: the model's features are those of two plain passes."""
    config = small_config(levels=[1, 2, 4])
    model = build_model(config).model
    processor = LlavaUhdImageProcessor(view_size=56, max_slices=config.max_slices)
    inputs = processor([picture(150, 120)], return_tensors="pt")
    shapes = [tuple(shape) for shape in inputs["view_shapes"].tolist()]
    views = inputs["pixel_values"].split([height * width for height, width in shapes])
    with torch.no_grad():
        features = vision.encode(model.vision_tower, views[-1][None], shapes[-1])
        torch.testing.assert_close(features, encode_views(model.vision_tower, views[-1][None], shapes[-1], -2))
        slices, overview = vision.image_tokens(model, torch.stack(views[:-1]), shapes[0], views[-1], shapes[-1])
        tokens = torch.cat([*slices, *overview])
        packing = unpack(
            len(inputs["pixel_values"]),
            inputs["view_shapes"],
            inputs["num_views"],
            inputs["grids"],
            model.token_grid,
            config.layout,
        )
        (ours,) = model.get_image_features(**inputs).pooler_output
        # The same tokens, whatever their order: the layout has tests of its own.
        assert len(ours) == len(tokens) == packing.tokens_of_image[0]
        distances = torch.cdist(ours.double(), tokens.double())
        assert distances.min(dim=1).values.max() < 1e-4 * tokens.norm(dim=1).mean()
        assert (distances.argmin(dim=1).sort().values == torch.arange(len(tokens))).all()
