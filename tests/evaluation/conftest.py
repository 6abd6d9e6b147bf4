"""A model folder with random weights, and the evaluation command run in this process."""

import json
from pathlib import Path

import pytest

from llava_uhd import LlavaUhdProcessor
from llava_uhd.evaluation.cli import app
from tests.conftest import build_model, small_config


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, qwen_tokenizer) -> Path:
    path = tmp_path_factory.mktemp("model")
    config = small_config()
    build_model(config).save_pretrained(path)
    LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen").save_pretrained(path)
    return path


@pytest.fixture
def evaluate(capsys):
    """Runs `llava-uhd eval ... --json` and returns what it prints."""

    def run(*arguments) -> dict:
        capsys.readouterr()
        app([*map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return run
