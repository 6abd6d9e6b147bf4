"""Is a folder whole, and do two people hold the same one?"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llava_uhd import LlavaUhdProcessor
from llava_uhd.checkpoints.push import push_checkpoint
from llava_uhd.checkpoints.verify import MODULES, verify_checkpoint
from tests.conftest import build_model, small_config
from tests.conversations import GOLDENS


@pytest.fixture
def folder(converted, tmp_path):
    """A copy of the converted folder, to be damaged."""
    shutil.copytree(converted[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def whole(converted):
    return verify_checkpoint(converted[0])


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_folder(whole, converted):
    weights = converted[0] / "model.safetensors"
    assert whole.problems == [] and whole.as_dict()["ok"]
    assert whole.fingerprints.keys() == set(MODULES)
    assert whole.dtypes == ["float32"]
    # Two slices and the overview, 144 tokens each; the row separators of the stitched raster are no image tokens.
    assert whole.forward["image_tokens"] == 3 * 144
    assert sum(whole.parameters.values()) == sum(weight.numel() for weight in load_file(weights).values())


def test_fingerprints_do_not_depend_on_files(whole, folder):
    """The same weights in other shards, and in other order."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights, reverse=True)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in (1, 2):
        file = f"model-0000{number}-of-00002.safetensors"
        shard = {name: weights[name] for name in names[number - 1 :: 2]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    again = verify_checkpoint(folder)
    assert again.fingerprints == whole.fingerprints and again.forward == whole.forward


def test_one_number_changes_one_fingerprint(whole, folder):
    rewrite(folder, lambda weights: weights["model.vision_tower.pre_layrnorm.bias"][0].add_(1e-6))
    changed = verify_checkpoint(folder).fingerprints
    assert {module for module in MODULES if changed[module] != whole.fingerprints[module]} == {"model.vision_tower"}


def test_numbers_that_are_none(folder):
    rewrite(folder, lambda weights: weights["lm_head.weight"][7, 7].fill_(float("nan")))
    found = verify_checkpoint(folder)
    assert found.problems == ["lm_head.weight holds NaN or infinity"] and not found.as_dict()["ok"]


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda weights: weights.pop("lm_head.weight"), "missing: lm_head.weight"),
        (lambda weights: weights.update(extra=torch.ones(1)), "unknown: extra"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.ones(2, 2)}),
            r"wrong shape: lm_head.weight is \[2, 2",
        ),
    ],
)
def test_weights_of_another_model(folder, change, match):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=match):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "name, value, problem",
    [
        ("image_token_id", 31999, "the tokenizer's id of <image> is 32000, the config says 31999"),
        ("slice_separator_id", 4000, "slice_separator_id is 4000 in the config and 29892 in the processor"),
        ("layout", "sequential", "the layout is 'sequential' in the config and 'stitched' in the processor"),
        ("auto_map", {"AutoConfig": "a.B"}, "auto_map should name AutoConfig, AutoModel, AutoModelForImageTextToText"),
    ],
)
def test_config_against_tokenizer_and_processor(folder, name, value, problem):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    found = verify_checkpoint(folder)
    assert len(found.problems) == 1 and found.problems[0].startswith(problem)


def test_folders_of_other_kinds(original, tmp_path):
    with pytest.raises(ValueError, match="convert an original checkpoint first"):
        verify_checkpoint(original)
    with pytest.raises(ValueError, match="holds no config.json"):
        verify_checkpoint(tmp_path)


def test_push_says_what_it_would_do(folder):
    upload = push_checkpoint(folder, "someone/llava-uhd-v2")
    assert upload.dry_run and upload.url is None and upload.private
    assert upload.license == "llama2"
    assert {"config.json", "model.safetensors", "README.md", "modeling_llava_uhd.py", "released/manifest.json"} <= set(
        upload.files
    )
    assert upload.as_dict()["num_bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_model_card(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: llama2\n")
    assert "base_model:\n- lmsys/vicuna-7b-v1.5\n" in card
    assert "| layout | stitched |" in card and "| levels | [1, 2, 4] |" in card


def test_push_needs_a_license_and_the_code(folder):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: llama2", "license: other"))
    with pytest.raises(ValueError, match="names no license"):
        push_checkpoint(folder, "someone/x")
    (folder / "README.md").write_text(card)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps({**json.loads(config), "auto_map": None}))
    with pytest.raises(ValueError, match="auto_map of .* lacks AutoConfig, AutoModel, AutoModelForImageTextToText"):
        push_checkpoint(folder, "someone/x")
    (folder / "config.json").write_text(config)
    (folder / "modeling_llava_uhd.py").unlink()
    with pytest.raises(ValueError, match="lacks the code that auto_map names: modeling_llava_uhd.py"):
        push_checkpoint(folder, "someone/x")
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match="lacks README.md"):
        push_checkpoint(folder, "someone/x")


def test_push_of_a_folder_that_was_trained_here(tmp_path):
    build_model(small_config()).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="lacks .*processor_config.json"):
        push_checkpoint(tmp_path / "model", "someone/x")
    tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    LlavaUhdProcessor.from_config(small_config(), tokenizer, "qwen").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"lacks README.md: name the license of its weights \(--license\)"):
        push_checkpoint(tmp_path / "model", "someone/x")
    upload = push_checkpoint(tmp_path / "model", "someone/x", license="apache-2.0")
    assert upload.license == "apache-2.0" and upload.files["README.md"] > 500
    assert not (tmp_path / "model" / "README.md").exists()  # a dry run writes nothing


def test_upload_writes_the_card_of_a_trained_model(tmp_path, monkeypatch):
    build_model(small_config()).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "qwen_tiny")
    LlavaUhdProcessor.from_config(small_config(), tokenizer, "qwen").save_pretrained(tmp_path / "model")
    sent = {}
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *_, **__: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: sent.update(options) or "url")
    upload = push_checkpoint(tmp_path / "model", "someone/x", dry_run=False, license="mit")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "was trained\nwith the `llava-uhd` package" in card
    assert "README.md" in sent["allow_patterns"] and upload.files["README.md"] == len(card.encode())
    assert push_checkpoint(tmp_path / "model", "someone/x").license == "mit"
