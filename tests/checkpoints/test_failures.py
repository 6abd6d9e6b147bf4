"""Errors name the fault of a source, and a failed conversion leaves nothing behind."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_uhd.checkpoints.convert import Options, convert_to_hf
from llava_uhd.checkpoints.sources import Parts, resolve
from llava_uhd.checkpoints.variants import Overrides
from llava_uhd.checkpoints.writing import new_folder
from tests.checkpoints.layouts import (
    LLAMA,
    MULTIMODAL,
    PROJECTOR_PREFIX,
    TOWER_PREFIX,
    original_tensors,
    write_json,
    write_numbered_tokenizer,
    write_original,
)

HEADS = Overrides(projector_heads=2)


def fails(tmp_path, tower, source, match, error=ValueError, options=None):
    """The conversion fails so, and leaves neither the folder nor a part of it."""
    before = set(os.listdir(tmp_path))
    with pytest.raises(error, match=match):
        convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", options or Options(HEADS))
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "name, part",
    [
        ("model.layers.1.mlp.up_proj.weight", "language-model"),
        (PROJECTOR_PREFIX + "query_3", "projector"),
        (PROJECTOR_PREFIX + "attn.in_proj_bias", "projector"),
        (PROJECTOR_PREFIX + "upsampler.upsampler.up2.sigma_spatial", "upsampler"),
        (TOWER_PREFIX + "pre_layrnorm.bias", "vision-tower"),
    ],
)
def test_missing_tensor(tmp_path, tower, name, part):
    tensors = original_tensors()
    del tensors[name]
    source = write_original(tmp_path / "in", tensors)
    fails(tmp_path, tower, source, f"missing: {name}; give the part it is in with --{part}")


def test_a_missing_tensor_may_be_allowed(tmp_path, tower):
    """It stays out of the folder, is reported, and verify says so."""
    from llava_uhd.checkpoints.verify import verify_checkpoint

    tensors = original_tensors()
    del tensors[PROJECTOR_PREFIX + "ln_proj.bias"], tensors[PROJECTOR_PREFIX + "query_3"]
    source = write_original(tmp_path / "in", tensors)
    options = Options(HEADS, allow_missing=("*ln_proj.bias", "*query_3"))
    report = convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", options)
    assert report.missing == [PROJECTOR_PREFIX + "ln_proj.bias", PROJECTOR_PREFIX + "query_3"]
    assert {e["name"] for e in report.ignored if "rest is missing" in e["reason"]} == {
        f"{PROJECTOR_PREFIX}query_{i}" for i in (1, 2, 4)
    }
    with pytest.raises(ValueError, match="missing: model.multi_modal_projector.ln_proj.bias"):
        verify_checkpoint(tmp_path / "out")


def test_unknown_tensor(tmp_path, tower):
    tensors = {**original_tensors(), "model.mm_projector.surprise": torch.ones(3)}
    source = write_original(tmp_path / "in", tensors)
    fails(tmp_path, tower, source, "unknown: model.mm_projector.surprise")
    options = Options(HEADS, ignore=("*.surprise",))
    report = convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", options)
    assert "model.mm_projector.surprise" in {entry["name"] for entry in report.ignored}


def test_levels_beyond_the_mask_are_dead_but_a_higher_stack_is_unknown(tmp_path, tower):
    config = {**LLAMA, **MULTIMODAL, "feature_scale_mask": 3}
    source = write_original(tmp_path / "in", config=config)
    fails(tmp_path, tower, source, "unknown: model.mm_projector.upsampler.upsampler.up2")


@pytest.mark.parametrize(
    "name, shape", [("model.norm.weight", (63,)), (PROJECTOR_PREFIX + "attn.in_proj_weight", (190, 64))]
)
def test_wrong_shape(tmp_path, tower, name, shape):
    source = write_original(tmp_path / "in", {**original_tensors(), name: torch.ones(shape)})
    fails(tmp_path, tower, source, rf"wrong shape: {name} in model-.* is \[{shape[0]}.*, the config wants \[")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(tmp_path, tower, value):
    tensors = original_tensors()
    name = PROJECTOR_PREFIX + "cat_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][5, 7] = value
    source = write_original(tmp_path / "in", tensors)
    fails(tmp_path, tower, source, f"model-.*: {name} holds NaN or infinity")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_truncated_shard(tmp_path, tower, kind):
    source = write_original(tmp_path / "in", kind=kind)
    shard = next(file for file in source.iterdir() if file.name.startswith(("model-00002", "pytorch_model-00002")))
    shard.write_bytes(shard.read_bytes()[:-1000])
    fails(tmp_path, tower, source, f"{shard.name} is .*cut short")


def test_lost_shard(tmp_path, tower):
    source = write_original(tmp_path / "in")
    (source / "model-00002-of-00002.safetensors").unlink()
    fails(tmp_path, tower, source, "index.json names model-00002-of-00002.safetensors, which are not there")


def test_an_index_stays_in_its_folder(tmp_path, tower):
    source = write_original(tmp_path / "in")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    fails(tmp_path, tower, source, "'../../secret', which is not a file beside it")


class Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_pickle_that_runs_code(tmp_path, tower):
    source = write_original(tmp_path / "in", kind="bin", count=1)
    torch.save({**original_tensors(), "x": Attack(tmp_path / "ran")}, source / "pytorch_model.bin")
    fails(tmp_path, tower, source, "pytorch_model.bin holds more than tensors and is not unpickled: .*system")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle(tmp_path, tower):
    """The format before PyTorch 1.6 allocates sizes from the file before reading: rejected."""
    source = write_original(tmp_path / "in", kind="bin", count=1)
    torch.save(original_tensors(), source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    fails(tmp_path, tower, source, "pytorch_model.bin is cut short, or not in PyTorch's zip format")


def test_a_small_file_of_a_huge_tensor(tmp_path, tower):
    """Sizes are checked before anything is allocated: an expanded tensor, a header that lies, a packed archive."""
    source = write_original(tmp_path / "in", kind="bin", count=1)
    torch.save({"model.norm.weight": torch.ones(1).expand(1 << 40)}, source / "pytorch_model.bin")
    fails(tmp_path, tower, source, "model.norm.weight of shape .* is larger than its data")

    with zipfile.ZipFile(source / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"0" * 100_000)
    fails(tmp_path, tower, source, "pytorch_model.bin holds compressed entries")

    header = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    encoded = json.dumps(header).encode()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"0" * 64)
    fails(tmp_path, tower, source, "model.safetensors is damaged or cut short")


def test_full_disk_is_told_beforehand(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match="out needs .* bytes, but the disk has"):
        with new_folder(tmp_path / "out", num_bytes=2 * free):
            pytest.fail("the block must not run")
    assert not os.listdir(tmp_path)


CONVERT = """
import sys, signal
from pathlib import Path
from llava_uhd.checkpoints.convert import Options, convert_to_hf
from llava_uhd.checkpoints.sources import Parts
from llava_uhd.checkpoints.variants import Overrides
source, tower, out = sys.argv[1:]
convert_to_hf(Parts(source, vision_tower=tower), Path(out), Options(Overrides(projector_heads=2)))
"""


def start(source, tower, out, **kwargs):
    command = [sys.executable, "-c", CONVERT, str(source), str(tower), str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **kwargs)


def test_disk_that_fills_up_meanwhile(tmp_path, original, tower):
    """A write that fails half-way, here for a limit of the process on the size of files."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))

    process = start(original, tower, tmp_path / "out", preexec_fn=limit)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "OSError" in stderr and "File too large" in stderr
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way(tmp_path, tower, how):
    """The folder is not there; a new run starts clean and ends well."""
    tensors = original_tensors()
    tensors |= {f"{PROJECTOR_PREFIX}upsampler.model.0.big{i}": torch.zeros(50_000_000) for i in range(2)}
    source = write_original(tmp_path / "in", tensors)
    # Storing the large unused tensors takes long enough to be killed meanwhile.
    slow = CONVERT.replace("projector_heads=2)", "projector_heads=2), keep_unused=True")
    # A shell's background jobs, these tests perhaps among them, have their children ignore interrupts.
    slow = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{slow}"
    command = [sys.executable, "-c", slow, str(source), str(tower), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".out.partial"
    deadline = time.monotonic() + 120
    while not (partial / "released" / "extras.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    assert not (tmp_path / "out").exists()
    assert partial.exists() == (how == signal.SIGKILL)
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", Options(HEADS))
    assert not partial.exists()
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 128


def test_a_folder_that_exists_is_not_touched(tmp_path, original, tower):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    parts = Parts(str(original), vision_tower=str(tower))
    with pytest.raises(ValueError, match="exists already; give --overwrite"):
        convert_to_hf(parts, tmp_path / "out", Options(HEADS))
    assert (tmp_path / "out" / "precious").read_text() == "x"
    convert_to_hf(parts, tmp_path / "out", Options(HEADS, overwrite=True))
    assert not (tmp_path / "out" / "precious").exists() and os.listdir(tmp_path) == ["out"]


def test_overwriting_that_fails_keeps_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(RuntimeError, match="half-way"):
        with new_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "new").write_text("y")
            raise RuntimeError("half-way")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type must be one of .* got 'mlp2x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_vision_select_feature": "cls_patch"}, "must be 'patch', got 'cls_patch'"),
        ({"feature_scale_mask": 6}, "feature_scale_mask must be odd .* got 6"),
        ({"model_type": "llava_mpt"}, "'llava_mpt' names no language model"),
        ({"vocab_size": 31000}, "the tokenizer has 32000 tokens, but the language model only 31000"),
    ],
)
def test_settings_that_were_never_released(tmp_path, tower, change, match):
    fails(tmp_path, tower, write_original(tmp_path / "in", config={**LLAMA, **MULTIMODAL, **change}), match)


def test_open_settings_are_asked_for(tmp_path, tower):
    config = {key: value for key, value in {**LLAMA, **MULTIMODAL}.items() if key != "feature_mode"}
    source = write_original(tmp_path / "in", config=config)
    fails(tmp_path, tower, source, "neither feature_mode .* nor model_mode .* --layout")
    fails(tmp_path, tower, source, "64 wide: name their number with --projector-heads", options=Options())
    with pytest.raises(ValueError, match="tiny'.*--vision-tower"):
        convert_to_hf(Parts(str(source)), tmp_path / "out", Options(HEADS))


def test_no_tokenizer(tmp_path, tower):
    source = write_original(tmp_path / "in", tokenizer=lambda folder: None)
    fails(tmp_path, tower, source, "no tokenizer in .*--tokenizer")
    (tmp_path / "tokenizer").mkdir()
    write_numbered_tokenizer(tmp_path / "tokenizer")
    options = Options(HEADS, tokenizer=str(tmp_path / "tokenizer"))
    convert_to_hf(Parts(str(source), vision_tower=str(tower)), tmp_path / "out", options)


def test_a_part_without_weights(tmp_path, original, tower):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no weights of a language model"):
        convert_to_hf(Parts(str(original), language_model=str(tmp_path / "empty")), tmp_path / "out")
    with pytest.raises(ValueError, match="nothing to convert"):
        convert_to_hf(Parts(), tmp_path / "out")
    write_json(tmp_path / "empty" / "config.json", {"model_type": "llama"})
    with pytest.raises(ValueError, match="neither a config with mm_projector_type nor a projector"):
        convert_to_hf(Parts(str(tmp_path / "empty")), tmp_path / "out")


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "./no", "nothing"])
def test_names_that_are_neither_folder_nor_hub_id(name):
    with pytest.raises(ValueError, match="there is no folder or file"):
        resolve(name)


def test_types_that_differ_within_a_tensor_of_ours(tmp_path, tower):
    tensors = original_tensors()
    tensors[PROJECTOR_PREFIX + "query_2"] = tensors[PROJECTOR_PREFIX + "query_2"].bfloat16()
    source = write_original(tmp_path / "in", tensors)
    fails(tmp_path, tower, source, "query_1, .*are stored in different types")


def test_text_that_is_no_json(tmp_path, tower):
    source = write_original(tmp_path / "in")
    (source / "config.json").write_text("{")
    fails(tmp_path, tower, source, "config.json is not valid JSON")


def test_a_tensor_type_that_is_not_supported(tmp_path, tower):
    source = write_original(tmp_path / "in", count=1)
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, source / "model.safetensors")
    fails(tmp_path, tower, source, "a has the type F8_E4M3, which is not supported")


# Two at once, and killed at any moment

RENAMES = """
import os, sys
from pathlib import Path
from llava_uhd.files import new_folder

out, steps = Path(sys.argv[1]), int(sys.argv[2])
rename = Path.rename

def counted(self, target):
    global steps
    if steps == 0:
        os._exit(9)
    steps -= 1
    return rename(self, target)

Path.rename = counted
with new_folder(out, overwrite=True) as folder:
    (folder / "new.txt").write_text("new")
"""


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_killed_between_renames_leaves_the_old_or_the_new(tmp_path, steps):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    killed = subprocess.run([sys.executable, "-c", RENAMES, str(out), str(steps)], env={**os.environ})
    assert killed.returncode == (0 if steps == 2 else 9)
    with pytest.raises(ValueError, match="exists already"), new_folder(out):
        pass
    assert [file.name for file in out.iterdir()] == ["new.txt" if steps == 2 else "old.txt"]
    with new_folder(out, overwrite=True) as folder:
        (folder / "third.txt").write_text("third")
    assert [file.name for file in out.iterdir()] == ["third.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_two_conversions_into_one_folder(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "first.txt").write_text("first")
        with pytest.raises(ValueError, match="in use by another run"), new_folder(tmp_path / "out"):
            pass
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["first.txt"]
