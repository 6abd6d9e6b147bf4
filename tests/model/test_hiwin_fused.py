"""The fused path against the formula: values, gradients, and the cache of folded weights."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from llava_uhd.benchmark.reference import tokens
from llava_uhd.model import hiwin_fused
from llava_uhd.model import pyramid as pyramid_module
from llava_uhd.model.configuration_llava_uhd import LlavaUhdProjectorConfig
from llava_uhd.model.folded_weights import reason_not_to_fuse
from llava_uhd.model.hiwin import HiWinProjector, hiwin_attention
from llava_uhd.model.hiwin_fused import fused_hiwin_attention
from llava_uhd.model.level_geometry import cached_geometries
from tests.golden import relative_error

PYRAMIDS = {
    "4x": {"levels": [1, 2, 4]},
    "1-4": {"levels": [1, 4], "box_dtype": "bfloat16"},
    "2x": {"levels": [1, 2]},
    "8x": {"levels": [1, 2, 4, 8]},
    "1-8": {"levels": [1, 8]},
    "1x": {"levels": [1], "upsampler": "none"},
    "bilinear": {"levels": [1, 2, 8], "upsampler": "bilinear"},
    "bins": {"levels": [1, 2, 4], "bin_embedding": True},
    "aligned": {"levels": [1, 2], "aligned_windows": True},
    "fixed": {"levels": [1, 2], "bin_grid": "fixed"},
    "pyramid": {"levels": [1, 2, 4], "bin_grid": "pyramid", "bin_embedding": True},
    "both": {"levels": [1, 2], "upsampler": "bilinear", "bin_embedding": True, "aligned_windows": True},
}
# The last two have a side too short for the windows, and for reflecting a border.
SHAPES = [(6, 6), (9, 4), (3, 2), (1, 7)]
# (encoder's channels, language model's): with more of the former the basis is as wide as the latter.
WIDTHS = [(12, 32), (36, 16)]


def build(channels: tuple[int, int] = (12, 32), seed: int = 0, **config) -> HiWinProjector:
    """A projector whose every weight makes a difference."""
    torch.manual_seed(seed)
    settings = {"levels": [1, 2, 4], "query_grid": 3, "num_attention_heads": 2, **config}
    projector = HiWinProjector(LlavaUhdProjectorConfig(**settings), *channels).eval()
    with torch.no_grad():
        for name, parameter in projector.named_parameters():
            if name != "positions":
                parameter.normal_(std=0.3 if parameter.ndim > 1 else 0.2)
            if "ln_" in name and name.endswith("weight") or "sigma" in name:
                parameter.add_(1)
    return projector


def view(shape: tuple[int, int], channels: int = 12, num_views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and pixels."""
    height, width = shape
    features = 2 * torch.randn(num_views, channels, height, width) + 0.5
    return features, torch.randn(num_views, 3, 14 * height, 14 * width)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_equals_the_plain_formula(pyramid, widths):
    projector = build(widths, **PYRAMIDS[pyramid])
    for shape in SHAPES:
        features, pixels = view(shape, widths[0])
        with torch.no_grad():
            expected = tokens(projector, features, pixels)
            assert relative_error(projector(features, pixels), expected) < 3e-6
            formula = hiwin_attention(projector, [(features, pixels)])
            assert relative_error(fused_hiwin_attention(projector, [(features, pixels)]), formula) < 3e-6
        assert relative_error(projector(features, pixels).detach(), expected) < 3e-6


def gradients(projector, function, features, pixels, direction) -> dict[str, torch.Tensor]:
    projector.zero_grad()
    features = features.clone().requires_grad_()
    torch.manual_seed(3)
    (function(features, pixels) * direction).sum().backward()
    return {name: p.grad.clone() for name, p in projector.named_parameters() if p.grad is not None} | {
        "features": features.grad
    }


@pytest.mark.parametrize("pyramid", ["4x", "8x", "bilinear", "bins", "pyramid", "both"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bias", ["random", "zero"])
def test_gradients(pyramid, training, bias):
    """A training step with the same seed has the same dropout; with a zero bias the basis has a null."""
    projector = build(**PYRAMIDS[pyramid]).train(training)
    if bias == "zero":
        for projection in projector.projections.values():
            nn.init.zeros_(projection.linear.bias)
    for name, parameter in projector.named_parameters():
        if ".range_" in name:  # else the softmax is so sharp that its gradient is rounding error
            parameter.data *= 0.3
    for shape in SHAPES[::2]:
        features, pixels = view(shape)
        direction = torch.randn(2, 9, 32)
        plain = gradients(projector, lambda *view: tokens(projector, *view), features, pixels, direction)
        fused = gradients(projector, projector, features, pixels, direction)
        assert fused.keys() == plain.keys()
        # The key bias adds the same to all scores of a query: what it gets is rounding error either way.
        plain.pop("attention.k_proj.bias"), fused.pop("attention.k_proj.bias")
        scale = max(gradient.abs().max() for gradient in plain.values())
        for name, gradient in plain.items():
            error = (fused[name] - gradient).norm() / (gradient.norm() + 1e-4 * scale)
            assert error < 1e-4, f"{name}: {error}"


def test_bf16_is_at_least_as_close_to_float32_as_the_plain_path():
    fused, plain = [], []
    for seed in range(6):
        projector = build((24, 64), seed=seed, box_dtype="bfloat16").bfloat16()
        wide = copy.deepcopy(projector).float()
        features, pixels = (tensor.bfloat16() for tensor in view((8, 6), 24))
        with torch.no_grad():
            expected = tokens(wide, features.float(), pixels.float())
            fused.append(relative_error(projector(features, pixels).float(), expected))
            plain.append(relative_error(tokens(projector, features, pixels).float(), expected))
    assert sum(fused) <= sum(plain)


def test_folded_weights_follow_the_weights():
    projector, (features, pixels) = build(), view((6, 6))
    keys = projector.state_dict().keys()

    def check() -> torch.Tensor:
        with torch.no_grad():
            out = projector(features, pixels)
            assert relative_error(out, tokens(projector, features, pixels)) < 3e-6
        return out

    first = check()
    kept = projector.folded_weights._entry
    assert torch.equal(check(), first) and projector.folded_weights._entry is kept  # folded once
    assert projector.state_dict().keys() == keys
    with torch.no_grad():
        projector.attention.k_proj.weight.mul_(1.5)
    assert not torch.allclose(check(), first)
    projector.load_state_dict(build(seed=1).state_dict())
    check()
    projector.load_state_dict(build(seed=2).state_dict(), assign=True)
    check()
    projector.bfloat16().float()
    check()
    assert projector.train().folded_weights.is_empty
    projector.attention.v_proj.weight.data.mul_(2)
    projector.eval()
    check()
    for copied in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector))):
        assert copied.folded_weights.is_empty and not projector.folded_weights.is_empty
        with torch.no_grad():
            copied.queries.mul_(2)
            assert relative_error(copied(features, pixels), tokens(copied, features, pixels)) < 3e-6
    check()


@pytest.mark.parametrize("fused", [False, True])
def test_folded_weights_follow_every_optimizer(fused):
    projector, (features, pixels) = build(), view((6, 6))
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        with torch.no_grad():
            before = projector(features, pixels)
        projector(features, pixels).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            after = projector(features, pixels)
            assert relative_error(after, tokens(projector, features, pixels)) < 3e-6
        assert not torch.allclose(before, after)


@pytest.mark.parametrize(
    "name", ["projections.4x", "projections.4x.linear", "ln_kv", "attention", "attention.v_proj", "upsampler"]
)
def test_hooks_of_layers_are_called(name):
    projector, (features, pixels) = build(), view((6, 6))
    called = []
    with torch.no_grad():
        plain = projector(features, pixels)
        handle = projector.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
        assert relative_error(projector(features, pixels), plain) < 3e-6 and called
        handle.remove()
        assert reason_not_to_fuse(projector) is None


def test_pruned_layers_are_trained():
    projector, (features, pixels) = build(), view((6, 6))
    prune.l1_unstructured(projector.projections["1x"].linear, "weight", amount=0.5)
    for _ in range(2):
        projector(features, pixels).square().sum().backward()
    assert projector.projections["1x"].linear.weight_orig.grad is not None


def test_float64_is_computed_in_float64():
    projector, (features, pixels) = build((4, 8), query_grid=2).double(), view((4, 5), 4)
    features, pixels = features.double(), pixels.double()
    projector.upsampler.eval()

    def project(features: torch.Tensor) -> torch.Tensor:
        return projector(features, pixels)

    assert project(features).dtype == torch.float64
    step = 1e-6 * torch.randn_like(features)
    difference = project(features + step) - project(features - step)
    slope = torch.autograd.functional.jvp(project, features, 2 * step)[1]
    # In float32 rounding alone makes a difference of a tenth.
    assert relative_error(difference, slope) < 1e-6


@pytest.mark.parametrize("levels", [[1], [1, 2]])
def test_groups_without_views_have_no_tokens(levels):
    projector = build(levels=levels, upsampler="none" if len(levels) == 1 else "jbu")
    some, none = view((6, 6)), view((6, 9), num_views=0)
    with torch.no_grad():
        assert projector(*none).shape == (0, 9, 32) and projector([], []) == []
        both = projector([none[0], some[0]], [none[1], some[1]])
        assert both[0].shape == (0, 9, 32) and torch.equal(both[1], projector(*some))


def test_positions_are_not_trained():
    projector = build().requires_grad_(False).requires_grad_(True)
    assert [name for name, p in projector.named_parameters() if not p.requires_grad] == ["positions"]


def test_frozen_weights_are_folded_once_though_gradients_are_recorded():
    projector, (features, pixels) = build().requires_grad_(False), view((6, 6))
    out = projector(features, pixels)
    kept = projector.folded_weights._entry
    assert kept is not None and not out.requires_grad
    assert torch.equal(projector(features, pixels), out) and projector.folded_weights._entry is kept
    # In training mode the pyramid's dropout is on, frozen or not, as published.
    projector.train()
    torch.manual_seed(3)
    dropped = projector(features, pixels)
    torch.manual_seed(3)
    assert relative_error(dropped, tokens(projector, features, pixels)) < 3e-6
    assert relative_error(dropped, out) > 1e-3
    features.requires_grad_()
    projector(features, pixels).sum().backward()
    assert features.grad is not None
    # Nor does the optimizer of another module, such as a language model's.
    other, kept = nn.Linear(2, 2), projector.folded_weights._entry
    optimizer = torch.optim.AdamW(other.parameters())
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    projector(features.detach(), pixels)
    assert projector.folded_weights._entry is kept is not None


def test_inference_mode_leaves_nothing_unusable_behind():
    projector, (features, pixels) = build(), view((5, 4))
    with torch.inference_mode():
        expected = projector(features, pixels).clone()
    with torch.no_grad():
        assert torch.equal(projector(features, pixels), expected)
    projector(features, pixels).sum().backward()
    with torch.inference_mode():
        made_inside = build()
        assert torch.equal(made_inside(features, pixels), expected)


def test_adapters_are_seen():
    """The folded layers wrapped by PEFT, switched off, merged and unloaded."""
    from peft import LoraConfig, inject_adapter_in_model

    projector, (features, pixels) = build(), view((6, 6))
    with torch.no_grad():
        before = projector(features, pixels)
        wrapped = inject_adapter_in_model(
            LoraConfig(target_modules=["k_proj", "v_proj", "linear"], r=2, init_lora_weights=False), projector
        ).eval()
        adapted = wrapped(features, pixels)
        assert relative_error(adapted, tokens(wrapped, features, pixels)) < 3e-6
        assert not torch.allclose(adapted, before, rtol=1e-2)
        for module in list(wrapped.modules()):
            for name, child in list(module.named_children()):
                if hasattr(child, "merge"):
                    child.merge()
                    setattr(module, name, child.get_base_layer())
        assert reason_not_to_fuse(wrapped) is None
        torch.testing.assert_close(wrapped(features, pixels), adapted, rtol=1e-3, atol=1e-4)


def test_offloaded_weights():
    from accelerate import cpu_offload

    projector, (features, pixels) = build(), view((6, 6))
    with torch.no_grad():
        expected = projector(features, pixels)
        cpu_offload(projector, execution_device=torch.device("cpu"))
        assert projector.attention.k_proj.weight.is_meta and reason_not_to_fuse(projector) is not None
        torch.testing.assert_close(projector(features, pixels), expected, rtol=1e-4, atol=1e-5)


def test_compiled():
    projector, (features, pixels) = build(), view((6, 6))
    compiled = torch.compile(projector, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(features, pixels), projector(features, pixels))
    expected = gradients(projector, projector, features, pixels, torch.ones(2, 9, 32))
    actual = gradients(projector, compiled, features, pixels, torch.ones(2, 9, 32))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-3)


def test_autocast_training():
    projector, (features, pixels) = build(), view((6, 6))
    direction = torch.randn(2, 9, 32)
    expected = gradients(projector, projector, features, pixels, direction)
    cached_geometries.cache_clear()  # as in a process that only ever trains in mixed precision

    def mixed(features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return projector(features, pixels)

    actual = gradients(projector, mixed, features, pixels, direction)
    for name in ("features", "queries", "join.weight", "attention.v_proj.weight", "projections.4x.linear.weight"):
        assert relative_error(actual[name], expected[name]) < 0.05


def test_groups_of_views_of_different_shapes():
    """Together they give what they give alone, values and gradients, and share one folding."""
    projector, groups = build(), [view(shape, num_views=n) for n, shape in enumerate(SHAPES, start=1)]
    features, pixels = ([group[part] for group in groups] for part in (0, 1))
    with torch.no_grad():
        for together, (f, p) in zip(projector(features, pixels), groups, strict=True):
            torch.testing.assert_close(together, projector(f, p))
    directions = [torch.randn(len(f), 9, 32) for f in features]

    def gradient_of(outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        projector.zero_grad()
        sum((out * direction).sum() for out, direction in zip(outputs, directions, strict=True)).backward()
        return {name: p.grad for name, p in projector.named_parameters() if p.grad is not None}

    alone = gradient_of([projector(f, p) for f, p in groups])
    for name, gradient in gradient_of(projector(features, pixels)).items():
        if "k_proj.bias" not in name and ".range_" not in name:
            assert relative_error(gradient, alone[name]) < 1e-4, name
    with pytest.raises(ValueError):
        projector(features, pixels[1:])


def test_outer_checkpointing():
    from torch.utils.checkpoint import checkpoint

    projector, (features, pixels) = build().train(), view((6, 6))
    direction = torch.randn(2, 9, 32)
    expected = gradients(projector, projector, features, pixels, direction)
    for reentrant in (False, True):
        actual = gradients(
            projector, lambda *v, r=reentrant: checkpoint(projector, *v, use_reentrant=r), features, pixels, direction
        )
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_the_whole_vision_path_compiles_as_one_graph(backend):
    """`fullgraph=True` fails on anything that would leave the graph, such as reading a shape back from the device."""
    from tests.conftest import build_model, small_config
    from tests.model.test_modeling import sample

    config = small_config(levels=[1, 2], bin_embedding=True)
    model, inputs = build_model(config).model, sample(config, [(150, 120)])
    views = model.group_views(len(inputs["pixel_values"]), inputs["view_shapes"], inputs["num_views"], inputs["grids"])
    with torch.no_grad():
        expected = model.image_tokens(inputs["pixel_values"], views)
        compiled = torch.compile(model.image_tokens, fullgraph=True, backend=backend, dynamic=False)
        torch.testing.assert_close(compiled(inputs["pixel_values"], views), expected, rtol=1e-4, atol=1e-4)
        for parameter in model.multi_modal_projector.parameters():
            parameter.mul_(1.1)
        model.eval()  # drops the folded weights, which the graph has seen
        changed = compiled(inputs["pixel_values"], views)
        assert not torch.allclose(changed, expected, rtol=1e-2)
        torch.testing.assert_close(changed, model.image_tokens(inputs["pixel_values"], views), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bf16_products_err_no_more_than_the_formula_in_bf16(monkeypatch):
    """Compute as on an accelerator, where weighted sums and value matrices are multiplied in the features' dtype."""
    projector = build(levels=[1, 2, 4]).bfloat16()
    exact = copy.deepcopy(projector).float()
    groups = [[tensor.bfloat16() for tensor in view(shape)] for shape in ((8, 8), (6, 9))]
    expected = torch.cat([hiwin_attention(exact, [[t.float() for t in group]]) for group in groups])
    formula = relative_error(hiwin_attention(projector, groups), expected)
    monkeypatch.setattr(hiwin_fused, "matmul_dtype", lambda features: features.dtype)
    monkeypatch.setattr(pyramid_module, "similarities", pyramid_module.similarities_by_rows)
    fused = relative_error(hiwin_fused.fused_hiwin_attention(projector, groups), expected)
    assert 1e-4 < fused < 1.1 * formula
