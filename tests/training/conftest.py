"""A small model in a folder, LLaVA data about small images, and the recipes that go with them."""

import json

import pytest

from llava_uhd import LlavaUhdProcessor
from tests.conftest import build_model, random_image, small_config

SIZES = [(120, 80), (80, 120), (56, 56), (300, 90)]


def image_record(index, **changes):
    """A conversation of two turns about one image."""
    turns = [
        {"from": "human", "value": f"<image>\nWhat is shown in {index}?"},
        {"from": "gpt", "value": f"Blocks, {index} of them."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes" + " indeed" * (index % 3)},
    ]
    return {"id": str(index), "image": f"{index % len(SIZES)}.png", "conversations": turns, **changes}


def text_record(index):
    turns = [{"from": "human", "value": f"Say {index}"}, {"from": "gpt", "value": f"It is {index}" * 2}]
    return {"id": f"text{index}", "conversations": turns}


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """`train.json` with 12 image, 1 two-image and 5 text samples, and the images."""
    folder = tmp_path_factory.mktemp("data")
    for index, size in enumerate(SIZES):
        random_image(*size, seed=index).save(folder / f"{index}.png")
    both = [{"from": "human", "value": "<image> and <image>: same?"}, {"from": "gpt", "value": "No."}]
    records = [image_record(index) for index in range(12)]
    records += [{"id": "two", "image": ["0.png", "1.png"], "conversations": both}]
    records += [text_record(index) for index in range(5)]
    (folder / "train.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, qwen_tokenizer):
    folder = tmp_path_factory.mktemp("small")
    config = small_config(layout="sequential")
    config.row_separator_id = 13
    build_model(config).save_pretrained(folder)
    LlavaUhdProcessor.from_config(config, qwen_tokenizer, "qwen").save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_values(model_folder, data_folder, tmp_path):
    """Nested values of a stage-2 recipe: 18 samples, five steps of four."""
    return {
        "stage": "instruct",
        "out": str(tmp_path / "run"),
        "model": {"start": str(model_folder)},
        "data": {
            "train": [{"path": str(data_folder / "train.json"), "images": str(data_folder)}],
            "max_length": 400,
            "workers": 0,
        },
        "optimization": {
            "learning_rates": {
                "language_model": 1e-3,
                "projector": 2e-3,
                "vision_tower": 5e-4,
                "upsampler_fixup": 1e-3,
            },
            "global_batch": 4,
            "micro_batch": 2,
            "precision": "fp32",
            "loss_chunk": 16,
        },
        "checkpoints": {"save_every": 2},
        "monitoring": {"log_every": 1},
        "schedule": {},
    }
