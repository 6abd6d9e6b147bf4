"""Kill a training run at its file operations, resume it, and compare the weights with those of an unbroken run.

    python benchmarks/kill_training.py --every 7

Each kill ends a process of its own, without cleaning up, at an opening for writing, a renaming, a removal or a new
folder. The run is one of 3 steps of the built-in model on 8 generated images, with a checkpoint each step.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "finetune_own_data"))
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def count_operations(out: Path, kill_at: int, report: Path) -> None:
    """Count this process's file operations below a folder; end it at one of them."""
    done = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal done
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in EVENTS) or str(out) not in str(arguments[0]):
            return
        done += 1
        if done == kill_at:
            os._exit(137)
        if not kill_at and arguments[0] != str(report):
            report.write_text(str(done))

    sys.addaudithook(hook)


def run(recipe: dict, kill_at: int = 0, report: Path | None = None) -> int:
    """Train in a process of its own; returns its exit status."""
    from llava_uhd.training.recipe import build_recipe
    from llava_uhd.training.tuning import train_stage

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    if report is not None:
        count_operations(Path(recipe["out"]), kill_at, report)
    try:
        train_stage(build_recipe(recipe))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="kill at each N-th operation only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from make_data import write

    started, wrong = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, train=8, test=1)
        recipe = {
            "stage": "instruct",
            "out": str(folder / "whole"),
            "model": {"start": "tiny"},
            "data": {
                "train": [{"path": str(folder / "train.jsonl"), "images": str(folder / "images")}],
                "template": "tiny",
                "workers": 0,
            },
            "optimization": {
                "learning_rates": {"projector": 1e-3},
                "global_batch": 4,
                "micro_batch": 4,
                "max_steps": 3,
                "epochs": 2,
                "precision": "fp32",
                "checkpoint_activations": False,
            },
            "watch": {"save_every": 1, "log_every": 1},
        }
        report = folder / "operations"
        assert run(recipe, 0, report) == 0
        operations, expected = int(report.read_text()), load_file(folder / "whole" / "model" / "model.safetensors")
        kills = range(1, operations + 1, options.every)
        for number in kills:
            recipe["out"] = str(folder / f"killed-{number}")
            assert run(recipe, number, report) == 137, number
            if (folder / f"killed-{number}" / "model").exists():
                continue  # it was whole already
            status = run(recipe)
            file = folder / f"killed-{number}" / "model" / "model.safetensors"
            found = load_file(file) if file.is_file() else {}
            if status or found.keys() != expected.keys() or any(not torch.equal(found[n], expected[n]) for n in found):
                wrong.append(number)
    seconds = time.perf_counter() - started
    print(f"{len(kills)} kills at {operations} file operations, {len(wrong)} resumed wrongly {wrong}, {seconds:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
