"""A converted checkpoint that many tests share."""

from pathlib import Path

import pytest

from llava_uhd.checkpoints.convert import Options, convert_to_hf
from llava_uhd.checkpoints.sources import Parts
from llava_uhd.checkpoints.variants import Overrides
from tests.checkpoints.layouts import write_original, write_tower_config

HEADS = Options(overrides=Overrides(projector_heads=2))


@pytest.fixture(scope="session")
def tower(tmp_path_factory) -> Path:
    return write_tower_config(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return write_original(tmp_path_factory.mktemp("original") / "LLaVA-UHD-v2")


@pytest.fixture(scope="session")
def converted(tmp_path_factory, original, tower):
    """The folder, and the report of its conversion."""
    out = tmp_path_factory.mktemp("converted") / "uhd-v2"
    return out, convert_to_hf(Parts(str(original), vision_tower=str(tower)), out, HEADS)
