"""Execution on a device: no synchronization, CUDA graphs, compilation, resuming, two ranks."""

from collections.abc import Callable

import pytest
import torch

from llava_uhd.training.recipe import build_recipe
from llava_uhd.training.tuning import train_stage
from tests.conftest import build_model, small_config
from tests.model.test_modeling import sample
from tests.training.test_tuning import weights


def inputs_on(device: torch.device, name: str = "pixel_values") -> dict[str, torch.Tensor]:
    """Return the inputs of one image with slices on a device; its shapes stay on the host."""
    inputs = sample(small_config(), [(150, 120)])
    return {key: value.to(device) if key in ("input_ids", name) else value for key, value in inputs.items()}


@pytest.fixture
def error_on_synchronization() -> Callable[[str], None]:
    """Set CUDA's debug mode; it is reset at the end."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.accelerator
@torch.no_grad()
def test_inference_waits_for_nothing(cuda, error_on_synchronization):
    model, inputs = build_model(small_config()).to(cuda), inputs_on(cuda)
    model(**inputs, logits_to_keep=1)  # folds the weights and fills the caches
    torch.cuda.synchronize()
    error_on_synchronization("error")
    model(**inputs, logits_to_keep=1)


@pytest.mark.accelerator
@torch.no_grad()
def test_images_of_new_shapes_wait_for_nothing(cuda, error_on_synchronization):
    model, inputs = build_model(small_config()).to(cuda), inputs_on(cuda)
    del inputs["input_ids"]
    model.get_image_features(**inputs)
    from llava_uhd.model import view_groups

    view_groups._grouped.cache_clear()
    error_on_synchronization("error")
    model.get_image_features(**inputs)


@pytest.mark.accelerator
def test_a_training_step_of_the_vision_path_waits_for_nothing(cuda, error_on_synchronization):
    model, inputs = build_model(small_config()).to(cuda).train(), inputs_on(cuda)
    del inputs["input_ids"]

    def step() -> None:
        model.get_image_features(**inputs).pooler_output[0].square().mean().backward()

    step()
    error_on_synchronization("error")
    step()


@pytest.mark.accelerator
@torch.no_grad()
def test_the_vision_path_is_captured_in_a_cuda_graph(cuda):
    model, inputs = build_model(small_config()).to(cuda).model, inputs_on(cuda)
    shapes = [inputs[name] for name in ("view_shapes", "num_views", "grids")]
    views = model.group_views(len(inputs["pixel_values"]), *shapes, device=cuda)
    pixels = inputs["pixel_values"].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model.image_tokens(pixels, views)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model.image_tokens(pixels, views)
    pixels.copy_(pixels.flip(0))
    graph.replay()
    torch.testing.assert_close(captured, model.image_tokens(pixels, views), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_vision_path_compiles_as_one_graph(device):
    model, inputs = build_model(small_config()).to(device).model, inputs_on(device)
    shapes = [inputs[name] for name in ("view_shapes", "num_views", "grids")]
    views = model.group_views(len(inputs["pixel_values"]), *shapes, device=device)
    expected = model.image_tokens(inputs["pixel_values"], views)
    backend = "inductor" if device.type == "cuda" else "eager"
    compiled = torch.compile(model.image_tokens, fullgraph=True, dynamic=False, backend=backend)
    torch.testing.assert_close(compiled(inputs["pixel_values"], views), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.accelerator
def test_a_resumed_run_ends_with_the_same_bits(cuda, recipe_values, monkeypatch, tmp_path):
    """Train on the one device that the trainer takes; tests/training has the same on a CPU."""
    from tests.training.test_tuning import test_a_run_that_was_killed_ends_as_if_it_had_not_been

    test_a_run_that_was_killed_ends_as_if_it_had_not_been(recipe_values, monkeypatch, tmp_path)


@pytest.mark.accelerator
def test_a_run_repeats_its_bits(cuda, recipe_values, tmp_path):
    runs = [train_stage(build_recipe({**recipe_values, "out": str(tmp_path / name)})) for name in ("first", "second")]
    first, second = (weights(run.model) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.accelerator
def test_two_ranks_take_two_devices(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("two ranks need two devices: NCCL refuses two ranks on one")
    import subprocess
    import sys

    code = (
        "import torch, torch.distributed as dist\n"
        "from llava_uhd.distributed import Rank\n"
        "rank = Rank.from_environment()\n"
        "torch.cuda.set_device(rank.index)\n"
        "dist.init_process_group('nccl')\n"
        "ones = torch.ones(1, device='cuda'); dist.all_reduce(ones)\n"
        "assert ones.item() == rank.count == 2\n"
        "dist.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    subprocess.run([*command, sys.executable, "-c", code], check=True, timeout=120)
