"""The vision tower on packed patches against the published adaptive CLIP."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_uhd.model.vision_tower import encode_views, num_layers_used, patches_to_pixels, position_embedding
from tests.golden import load, relative_error, under

SIZES = [(336, 336), (266, 406), (350, 308)]


@pytest.fixture
def tower():
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    model = CLIPVisionModel(config).eval()
    model.load_state_dict(under("w.vision_model.", load("vit.npz")))
    return model


def to_patches(image: torch.Tensor) -> torch.Tensor:
    channels, height, width = image.shape
    patches = image.view(channels, height // 14, 14, width // 14, 14).permute(1, 3, 0, 2, 4)
    return patches.reshape(1, -1, channels * 14 * 14)


@pytest.mark.parametrize("case", range(3))
def test_features(tower, case):
    golden = load("vit.npz")
    image, shape = golden[f"px_{case}"].float(), (SIZES[case][0] // 14, SIZES[case][1] // 14)
    patches = to_patches(image)
    assert torch.equal(patches_to_pixels(patches, shape, 14)[0], image)
    with torch.no_grad():
        features = encode_views(tower, patches, shape, -2)
    assert relative_error(features[0].flatten(1).T[::2], golden[f"feat_{case}"]) < 1e-5


def test_resized_positions(tower):
    golden = load("vit.npz")
    table = tower.embeddings.position_embedding.weight
    resized = torch.cat([table[:1], position_embedding(table[1:], (19, 29))])[None]
    assert relative_error(resized[..., ::4], golden["pos_resized_1"]) < 1e-5


def test_the_whole_tower_agrees_with_transformers(tower):
    image = load("vit.npz")["px_0"].float()
    with torch.no_grad():
        hidden = tower(image[None], output_hidden_states=True).hidden_states
        for layer in (0, 1, -2, -1):
            actual = encode_views(tower, to_patches(image), (24, 24), layer).flatten(2).transpose(1, 2)
            assert relative_error(actual, hidden[layer][:, 1:]) < 1e-5


def test_layers():
    assert [num_layers_used(24, layer) for layer in (-1, -2, 0, 24)] == [24, 23, 0, 24]
    with pytest.raises(ValueError, match="25.*24 layers"):
        num_layers_used(24, 25)
