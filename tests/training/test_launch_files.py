"""`llava-uhd train init`: the scripts are valid shell, and what they launch runs on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from llava_uhd.training.launch_files import write_launch_files
from llava_uhd.training.recipe import load_recipe


@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("name", ["vicuna-7b-instruct", "qwen2-7b-align"])
def test_scripts_are_shell_and_the_recipe_loads(tmp_path, name, nodes):
    folder = tmp_path / "my run"
    micro = "optimization.micro_batch=2"
    files = write_launch_files(folder, name, [micro, "data.train.0.path=mine.json"], nodes, 8)
    assert {file.name for file in files} == {
        "recipe.yaml",
        "fsdp2.yaml",
        "torchrun.sbatch",
        "fsdp2.sbatch",
        "eval.sbatch",
    }
    for script in folder.glob("*.sbatch"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        text = script.read_text()
        assert f"#SBATCH --nodes={1 if script.name == 'eval.sbatch' else nodes}\n" in text and "cd '" in text
        assert "{" not in text.replace("${", "")
    recipe = load_recipe(str(folder / "recipe.yaml"))
    assert recipe.out == "run" and recipe.data.train[0].path == "mine.json"
    sharding = yaml.safe_load((folder / "fsdp2.yaml").read_text())
    assert sharding["num_processes"] == 8 * nodes and sharding["num_machines"] == nodes
    layer = sharding["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    assert layer == ("Qwen2DecoderLayer" if "qwen2" in name else "LlamaDecoderLayer")
    with pytest.raises(ValueError, match="has recipe.yaml, .* already"):
        write_launch_files(folder, name, [micro], nodes, 8)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not divide among 21 devices"):
        write_launch_files(tmp_path, "vicuna-7b-align", [], 3, 7)
    with pytest.raises(ValueError, match="stage 0"):
        write_launch_files(tmp_path, "clip-l-upsampler", [], 1, 8)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torchrun.sbatch", "fsdp2.sbatch"])
def test_the_launched_command_runs_on_two_ranks(recipe_values, tmp_path, script):
    """Run with `srun` and `scontrol` of one node in place of Slurm's, and ranks on the CPU in place of GPUs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", 'exec "$@"'), ("scontrol", "echo localhost")):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    recipe_values["schedule"]["max_steps"] = 2
    recipe_values["model"]["template"] = None
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_values))
    folder = tmp_path / "launched"
    write_launch_files(folder, str(tmp_path / "mine.yaml"), [], 1, 2)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "LLAVA_UHD_ACCELERATE_OPTIONS": "--cpu",
    }
    done = subprocess.run(["bash", str(folder / script)], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_file(folder / "run" / "model" / "model.safetensors")
