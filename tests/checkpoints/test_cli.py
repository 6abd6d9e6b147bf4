"""The verbs, as a user calls them."""

import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from llava_uhd.checkpoints.cli import mount
from tests.checkpoints.layouts import write_original

app = typer.Typer()
mount(app)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_convert_verify_export_and_push(tmp_path, original, tower):
    out = tmp_path / "uhd"
    result = run("convert", original, "--vision-tower", tower, "--projector-heads", 2, "--out", out)
    assert "layout: stitched" in result.stdout and "never run" in result.stdout
    report = json.loads(run("verify", out, "--json").stdout)
    assert report["ok"] and len(report["fingerprints"]) == 5
    assert "model.vision_tower" in run("verify", out).stdout
    report = json.loads(run("convert", out, "--to", "original", "--out", tmp_path / "back", "--json").stdout)
    assert report["num_bytes"] > 0 and (tmp_path / "back" / "model-00001-of-00002.safetensors").is_file()
    former = run("convert", out, "--to", "released", "--out", tmp_path / "former", "--json")
    assert "warning: --to released is now --to original" in former.stderr
    assert json.loads(former.stdout)["used"] == report["used"]
    pushed = json.loads(run("push", out, "someone/uhd", "--json").stdout)
    assert pushed["dry_run"] and pushed["num_bytes"] > 0
    assert "dry run: --upload sends this to someone/uhd" in run("push", out, "someone/uhd").stdout


def test_a_report_in_json(tmp_path, original, tower):
    arguments = ["--vision-tower", tower, "--projector-heads", 2, "--layout", "sequential", "--levels", "1,2,4"]
    result = run("convert", original, *arguments, "--max-slices", 9, "--out", tmp_path / "uhd", "--json")
    report = json.loads(result.stdout)
    assert report["settings"]["layout"] == "sequential" and report["settings"]["max_slices"] == 9
    assert {"used", "derived", "ignored", "missing"} <= report.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "in"],
        ["convert", "in", "--out", "o", "--to", "elsewhere"],
        ["convert", "in", "--out", "o", "--dtype", "int8"],
        ["convert", "in", "--out", "o", "--layout", "spiral"],
        ["convert", "in", "--out", "o", "--levels", "one"],
        ["convert", "in", "--out", "o", "--box-dtype", "float16"],
        ["convert", "--out", "o", "--to", "original"],
        ["convert", "in", "--out", "o", "--to", "original", "--projector", "p"],
        ["convert", "in", "--out", "o", "--to", "original", "--max-slices", "9"],
        ["convert", "in", "--out", "o", "--to", "original", "--keep-unused"],
    ],
)
def test_bad_use(arguments):
    run(*arguments, code=2)


def test_a_damaged_folder_is_a_failure(tmp_path, converted):
    import shutil

    shutil.copytree(converted[0], tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "image_token_id": 5}))
    result = run("verify", tmp_path / "copy", "--json", code=1)
    assert json.loads(result.stdout)["ok"] is False and "error:" in result.stderr


def test_former_options_work_and_warn(tmp_path, original, tower):
    arguments = ["--vision-tower", tower, "--projector-heads", 2, "--to", "ours", "--keep-dead"]  # former names
    result = run("convert", original, *arguments, "--out", tmp_path / "uhd", "--json")
    assert "is now --to hf\nwarning: --keep-dead is now --keep-unused" in result.stderr
    clip = [entry for entry in json.loads(result.stdout)["ignored"] if "second CLIP" in entry["reason"]]
    assert clip and all(entry["kept"] for entry in clip)


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['llava-uhd']; import llava_uhd.checkpoints.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_hub_id(tmp_path, tower):
    """Convert through huggingface_hub's own cache, as after a download, without network."""
    repository = tmp_path / "hub" / "models--YipengZhang--LLaVA-UHD-v2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    write_original(repository / "snapshots" / "abc123")
    code = "from llava_uhd.checkpoints.sources import resolve; print(resolve('YipengZhang/LLaVA-UHD-v2'))"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str(repository / "snapshots" / "abc123"), done.stderr


def test_remote_code_without_the_package(tmp_path, converted):
    """A converted folder loads where only transformers is installed."""
    code = (
        "import sys\n"
        "sys.modules['llava_uhd'] = None\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__, type(processor).__name__, type(processor.image_processor).__name__)\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(converted[0])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == [
        "LlavaUhdForConditionalGeneration",
        "LlavaUhdProcessor",
        "LlavaUhdImageProcessor",
    ], done.stderr
