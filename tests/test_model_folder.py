"""A damaged model folder is refused in one line that names the file; none loads as if it were whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_uhd import LlavaUhdProcessor
from llava_uhd.loading import load, load_processor
from tests.conftest import build_model, small_config

NORM = "model.language_model.norm.weight"
PROJECTOR = "model.multi_modal_projector."


@pytest.fixture(scope="module")
def whole(tmp_path_factory, qwen_tokenizer) -> Path:
    path = tmp_path_factory.mktemp("whole")
    build_model(small_config()).save_pretrained(path)
    LlavaUhdProcessor.from_config(small_config(), qwen_tokenizer, "qwen").save_pretrained(path)
    for code in path.glob("*.py"):
        code.unlink()
    return path


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_whole_folder_loads(whole):
    model, processor = load(str(whole), device="cpu")
    assert model.config.max_slices == processor.image_processor.max_slices == 6


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_projector(weights):
    for name in [name for name in weights if name.startswith(PROJECTOR)]:
        del weights[name]


@pytest.mark.parametrize(
    "change, said",
    [
        (drop_projector, f"lack {PROJECTOR}"),
        (lambda weights: weights.pop(NORM), f"lack {NORM}"),
        (lambda weights: weights[NORM].fill_(float("nan")), f"{NORM} holds NaN"),
        (lambda weights: weights[PROJECTOR + "queries"].fill_(float("inf")), "queries holds NaN or infinity"),
        (lambda weights: weights.update({NORM: torch.ones(7)}), f"{NORM} is [7], but config.json wants [32]"),
        (lambda weights: weights.update({NORM: torch.ones(32, dtype=torch.int64)}), "torch.int64, not a floating one"),
    ],
)
def test_wrong_weights_are_named(folder, change, said):
    rewrite(folder, change)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    "file, key, value, said",
    [
        ("config.json", "model_type", "llava", "a model of type 'llava'"),
        ("config.json", "max_slice", 3, "config.json: llava_uhd config has no key 'max_slice'"),
        ("config.json", "image_token_id", 424, "image_token_id is 424 in config.json and 423"),
        ("config.json", "layout", "sequential", "layout is 'sequential' in config.json and 'stitched'"),
        ("processor_config.json", "query_grid", 4, "query_grid is 3 in config.json and 4"),
        ("processor_config.json", "row_separator_id", 7, "row_separator_id is 198 in config.json and 7"),
        ("processor_config.json", "query_grid", "wide", "processor_config.json"),
        ("processor_config.json", "image_processor.max_slices", 0, "max_slices must be a whole number from 1"),
        ("processor_config.json", "image_processor.image_std", [0, 1, 1], "image_std must be 3 numbers above 0"),
        ("processor_config.json", "image_processor.max_slice", 3, "did you mean max_slices"),
        ("processor_config.json", "image_processor.patch_size", 10**9, "patch_size must be a whole number"),
        ("processor_config.json", "image_processor.resample", 77, "resample must be a filter"),
        ("generation_config.json", "eos_token_id", 10**12, "eos_token_id must be a token from 0 to 422"),
    ],
)
def test_wrong_settings_are_named(folder, file, key, value, said):
    values = json.loads((folder / file).read_text())
    *parents, name = key.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    (folder / file).write_text(json.dumps(values))
    assert said in refusal(folder)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut at its end": lambda content: content[:-3],
    "of zeros": lambda content: bytes(len(content)),
    "another kind": lambda content: b"[1, 2]",
}


def test_every_damaged_file_is_named(whole, tmp_path):
    """Each file missing, empty, cut, overwritten: a line that names it, or the same model as before."""
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = load(str(whole), device="cpu")[0](input_ids=ids).logits
    silent = []
    for name in sorted(file.name for file in whole.iterdir()):
        for damage, change in DAMAGES.items():
            folder = Path(shutil.copytree(whole, tmp_path / "model"))
            content = change((folder / name).read_bytes())
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            try:
                model, processor = load(str(folder), device="cpu")
                prompt = processor.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
            except ValueError as error:
                assert "\n" not in str(error), error
                stem = name.partition(".")[0]
                assert stem in str(error) or "template" in str(error), f"{name} {damage}: {error}"
            else:
                with torch.no_grad():
                    same = torch.equal(model(input_ids=ids).logits, expected)
                whole_prompt = load_processor(str(whole)).apply_chat_template(
                    [{"role": "user", "content": "hi"}], add_generation_prompt=True
                )
                if not same or prompt != whole_prompt:
                    silent.append((name, damage))
            shutil.rmtree(folder)
    assert not silent


def test_a_config_of_absurd_sizes_takes_no_memory(folder):
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"vocab_size": 2**23, "intermediate_size": 2**21}
    (folder / "config.json").write_text(json.dumps(values))
    assert "but config.json wants [" in refusal(folder)
    values["text_config"]["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(values))
    assert "num_hidden_layers must be a whole number from 0 to 2048" in refusal(folder)


def test_weights_in_shards(whole, tmp_path):
    model, processor = load(str(whole), device="cpu")
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="40KB")
    processor.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    load(str(folder), device="cpu")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    assert shard.name in refusal(folder)
    shard.unlink()
    assert shard.name in refusal(folder)
