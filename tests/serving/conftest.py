"""An engine on a small model with random weights, and images for questions."""

import io

import pytest

from llava_uhd import LlavaUhdProcessor
from llava_uhd.serving.engine import Engine, EngineOptions
from llava_uhd.serving.limits import Limits
from tests.conftest import build_model, random_image, small_config
from tests.serving.running import DEADLINE, Running


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Return an image as an encoded file."""
    file = io.BytesIO()
    random_image(width, height, seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def loaded(qwen_tokenizer):
    """(model, processor); of the first seeds the one whose answers vary most."""
    config = small_config()
    return build_model(config, seed=4), LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen")


@pytest.fixture(scope="module")
def engine(loaded):
    with Engine(*loaded, EngineOptions(batch_size=4, max_queue_size=16, max_new_tokens=12)) as engine:
        yield engine


@pytest.fixture(scope="module")
def running(loaded):
    options = EngineOptions(batch_size=4, max_queue_size=32, max_new_tokens=12, deadline=DEADLINE, max_pixels=2**20)
    limits = Limits(body_bytes=200_000, images=3, body_seconds=1.0, text=30_000)
    with Running(loaded, options, limits=limits) as running:
        yield running
