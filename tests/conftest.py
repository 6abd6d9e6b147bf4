"""Small models and images that many tests share."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from llava_uhd import LlavaUhdConfig, LlavaUhdForConditionalGeneration, cli
from tests.golden import GOLDENS, hiwin_state, load, under

# Two test processes share the machine (`make test`).
torch.set_num_threads(1)


def small_config(text: str = "llama", layout: str = "stitched", **projector) -> LlavaUhdConfig:
    """A model of every part at the smallest size that still has several heads, layers and views."""
    return LlavaUhdConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={
            "model_type": text,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 423,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 420,
            "pad_token_id": 421,
        },
        projector={"levels": [1, 2], "query_grid": 3, "num_attention_heads": 2, **projector},
        layout=layout,
        image_token_id=423,
        slice_separator_id=14,
        row_separator_id=198,
        max_slices=6,
    )


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process, and return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llava-uhd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """The small ChatML tokenizer of the goldens, with an image token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    tokenizer.padding_side = "left"
    return tokenizer


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of random blocks, so that no two views are similar."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 9 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(9, axis=0).repeat(7, axis=1)[:height, :width])


def build_model(config: LlavaUhdConfig, seed: int = 0) -> LlavaUhdForConditionalGeneration:
    """Random weights, large enough that the image makes a difference to the logits."""
    torch.manual_seed(seed)
    model = LlavaUhdForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def procedural(shape: tuple[int, int], seed: int, scale: float) -> torch.Tensor:
    """The formula by which the end-to-end golden fills its embeddings (its index tells it)."""
    mask = np.uint64(0xFFFFFFFF)
    x = (np.arange(shape[0] * shape[1], dtype=np.uint64) + np.uint64(seed * 0x9E3779B1)) & mask
    x ^= x >> np.uint64(16)
    x = x * np.uint64(0x85EBCA6B) & mask
    x ^= x >> np.uint64(13)
    x = x * np.uint64(0xC2B2AE35) & mask
    x ^= x >> np.uint64(16)
    return torch.from_numpy(((x / 2**32 - 0.5) * 2 * scale).astype(np.float32).reshape(shape))


@pytest.fixture(scope="session")
def golden_model() -> LlavaUhdForConditionalGeneration:
    """The model of the end-to-end golden, its weights under our names."""
    config = LlavaUhdConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 32000,
            "rms_norm_eps": 1e-5,
        },
        projector={"num_attention_heads": 2},
    )
    published = under("w.", load("e2e.npz"))
    language = {k.removeprefix("model."): v for k, v in published.items() if "vision" not in k and "mm_" not in k}
    state = {f"model.language_model.{key}": value for key, value in language.items()}
    state["model.language_model.embed_tokens.weight"] = procedural((32000, 64), seed=81, scale=1.0)
    state["lm_head.weight"] = procedural((32000, 64), seed=1081, scale=0.5)
    for key, value in under("model.vision_tower.vision_tower.vision_model.", published).items():
        state[f"model.vision_tower.{key}"] = value
    projector = under("model.mm_projector.", published)
    hf_state = hiwin_state(projector, [1, 2, 4])
    hf_state |= {f"upsampler.{key}": value for key, value in under("upsampler.upsampler.", projector).items()}
    state |= {f"model.multi_modal_projector.{key}": value for key, value in hf_state.items()}
    model = LlavaUhdForConditionalGeneration(config).eval()
    model.load_state_dict(state)
    return model


def golden_image(width: int, height: int) -> Image.Image:
    """Return the image of the end-to-end golden (the formula is in its index)."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x // 40 + y // 30) % 2 * 200], axis=-1)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (20, 130, 250)
    return Image.fromarray(pixels.astype(np.uint8))
