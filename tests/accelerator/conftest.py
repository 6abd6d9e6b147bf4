"""Devices of the tests: each runs on the CPU, and on CUDA with `make test-accelerator`."""

import copy
from collections.abc import Iterator

import pytest
import torch

from llava_uhd import LlavaUhdProcessor
from tests.conftest import build_model, small_config
from tests.training.conftest import data_folder, model_folder, recipe_values  # noqa: F401

NO_DEVICE = "no CUDA device: torch.cuda.is_available() is False"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.accelerator)])
def device(request) -> torch.device:
    """CPU and CUDA in turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    return torch.device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    """CUDA alone, for what a CPU does not have."""
    if not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def full_fp32() -> Iterator[None]:
    """Turn TF32 off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def small(device, qwen_tokenizer):
    """(model, processor) of a small model with random weights on the device."""
    config = small_config()
    return build_model(config, seed=4).to(device), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


@pytest.fixture
def golden_on_device(device, golden_model):
    """Model of the end-to-end golden on the device."""
    return copy.deepcopy(golden_model).to(device)
