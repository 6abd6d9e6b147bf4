"""New weights of projectors: each is usable by itself, and drawn as in the reference implementation."""

import pytest
import torch

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from llava_uhd.model.hiwin import HiWinProjector
from llava_uhd.model.modeling_llava_uhd import PROJECTORS
from tests.conftest import small_config


@pytest.mark.parametrize("name", PROJECTORS)
def test_a_projector_is_usable_by_itself(name):
    torch.manual_seed(0)
    projector = PROJECTORS[name](LlavaUhdProjectorConfig(type=name, query_grid=4), 96, 128)
    tokens = projector(torch.randn(2, 96, 8, 6), torch.randn(2, 3, 112, 84))
    assert tokens.isfinite().all() and tokens.std() > 1e-3
    assert all(parameter.isfinite().all() for parameter in projector.parameters())


@pytest.mark.parametrize("hidden_size", [128, 512])
def test_queries_keys_and_values_are_one_xavier_matrix(hidden_size):
    """`nn.MultiheadAttention`, which the reference uses, draws the joint (3E, E) in-projection: std (2E)^-0.5."""
    torch.manual_seed(0)
    attention = HiWinProjector(LlavaUhdProjectorConfig(query_grid=2), 16, hidden_size).attention
    reference = torch.nn.MultiheadAttention(hidden_size, hidden_size // 128).in_proj_weight
    joint = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert joint.shape == reference.shape
    assert joint.detach().std() == pytest.approx((2 * hidden_size) ** -0.5, rel=0.02)
    assert joint.detach().abs().max() == pytest.approx(reference.abs().max().item(), rel=0.01)
    assert attention.out_proj.weight.detach().std() == pytest.approx(0.02, rel=0.02)


def test_a_whole_model_draws_the_same_law():
    config = small_config(bin_embedding=True)
    config.text_config.hidden_size, config.text_config.head_dim, config.projector.num_attention_heads = 256, 64, 2
    projector = LlavaUhdForConditionalGeneration(config).requires_grad_(False).model.multi_modal_projector
    assert projector.attention.k_proj.weight.std() == pytest.approx(512**-0.5, rel=0.02)
    assert projector.queries.std() == pytest.approx(0.02, rel=0.05)
    assert projector.proj.std() == pytest.approx(1 / 16, rel=0.02)
    assert projector.projections["2x"].embedding.abs().max() == 0
    assert projector.projections["2x"].bin_embedding.detach().std() == pytest.approx(1, rel=0.1)
    # PyTorch's own bound of a convolution, fan_in^-0.5, not a normal with the language model's std.
    assert projector.upsampler.up1.range_proj[0].weight.abs().max() > 0.3


def test_loading_leaves_old_weights_alone(tmp_path):
    model = LlavaUhdForConditionalGeneration(small_config(bin_embedding=True))
    model.save_pretrained(tmp_path)
    loaded = LlavaUhdForConditionalGeneration.from_pretrained(tmp_path)
    for name, parameter in loaded.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name


def test_released_configs_have_the_new_options_off():
    projector = LlavaUhdConfig().projector
    assert not projector.bin_embedding and not projector.aligned_windows
