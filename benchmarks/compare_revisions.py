"""Speed and memory of `llava-uhd bench` in two revisions, in processes that alternate.

    python benchmarks/compare_revisions.py --before cd161ef
    python benchmarks/compare_revisions.py --before cd161ef --rows vision --processes 10 --sizes full

A process per revision and round builds each row's model and calls the fused path alone; the reference formulation,
which both revisions have, is left out. The figure of a revision is the least CPU time and the median peak of its
processes, which other work on the machine disturbs less than means; the ratio is after over before. The revision
before is unpacked by `git archive`; the one after is this checkout, or `--after`.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
QUARTER = {"hidden": 1024, "vision_hidden": 256, "vision_heads": 4, "vision_intermediate": 1024}
SIZES: dict[str, dict[str, int]] = {"quarter": QUARTER, "full": {}}
ROWS = ("projector", "vision", "train-step")

# Runs in either revision: only names that both have are used.
CODE = """
import json, sys, time
import torch
from llava_uhd.benchmark.compare import Setting, hiwin_of, random_views
from llava_uhd.benchmark.inputs import image_features, prepare
from llava_uhd.benchmark.measure import measure
from llava_uhd.benchmark.sizes import Sizes, build

row, sizes, runs = sys.argv[1], Sizes(**json.loads(sys.argv[2])), int(sys.argv[3])
torch.set_num_threads(int(sys.argv[4]))
device, dtype = torch.device("cpu"), torch.float32
model = build(sizes, device, dtype)
projector = hiwin_of(model)
if row == "vision":
    images = prepare(sizes, model, [(3 * sizes.view_size, 2 * sizes.view_size)], 7, device, dtype)
    @torch.no_grad()
    def run():
        return image_features(model, images)
else:
    features, pixels = random_views(sizes, 1 if row == "projector" else 2, Setting(device, dtype, 1, 1.0))
    if row == "projector":
        @torch.no_grad()
        def run():
            return projector(features, pixels)
    else:
        projector.train().upsampler.requires_grad_(False)
        projector.positions.requires_grad_(False)
        def run():
            projector.zero_grad(set_to_none=True)
            tokens = projector(features, pixels)
            tokens.sum().backward()
            return tokens
seconds = []
def timed():
    start = time.process_time()
    result = run()
    seconds.append(time.process_time() - start)
    return result
run()
peaks = [measure(timed, device).peak_bytes for _ in range(runs)]
print(json.dumps({"seconds": min(seconds), "peak": sorted(peaks)[len(peaks) // 2]}))
"""


def unpack(revision: str, folder: Path) -> Path:
    """Unpack a revision of this repository into a folder.

    Raises:
        ValueError: git knows no such revision.
    """
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise ValueError(f"no revision {revision}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def run(checkout: Path, row: str, sizes: dict[str, int], runs: int, threads: int) -> dict[str, float]:
    """Measure a row in a process of its own that imports the package from a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", CODE, row, json.dumps(sizes), str(runs), str(threads)]
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{row} in {checkout} failed:\n{result.stderr}")
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def table(measured: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return the Markdown table: CPU seconds and peaks of each row, before and after, and their ratios."""
    lines = [
        "| row | CPU s before | after | ratio | peak MiB before | after | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, revisions in measured.items():
        times = [min(one["seconds"] for one in revisions[name]) for name in ("before", "after")]
        peaks = [median(one["peak"] for one in revisions[name]) / 2**20 for name in ("before", "after")]
        lines.append(
            f"| {row} | {times[0]:.3g} | {times[1]:.3g} | {times[1] / times[0]:.3f} "
            f"| {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[1] / peaks[0]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Alternate the revisions until the rounds or the minutes are over, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="revision to compare with, such as cd161ef")
    parser.add_argument("--after", help="revision that is compared (default: this checkout as it is)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows (default: all)")
    parser.add_argument("--sizes", choices=SIZES, default="quarter", help="width of the model (default: quarter)")
    parser.add_argument("--processes", type=int, default=6, help="processes of each revision and row (default: 6)")
    parser.add_argument("--runs", type=int, default=3, help="measured calls of a process, after one (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--minutes", type=float, default=5.5, help="begin no further round after these (default: 5.5)")
    options = parser.parse_args()
    started, rounds = time.monotonic(), 0
    measured: dict[str, Any] = {row: {"before": [], "after": []} for row in options.rows}
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"before": unpack(options.before, Path(folder, "before")), "after": ROOT}
        if options.after:
            checkouts["after"] = unpack(options.after, Path(folder, "after"))
        while rounds < options.processes:
            longest = (time.monotonic() - started) / max(rounds, 1)
            if rounds and time.monotonic() - started + longest > 60 * options.minutes:
                break
            order = ("before", "after") if rounds % 2 == 0 else ("after", "before")
            for row in options.rows:
                for name in order:
                    one = run(checkouts[name], row, SIZES[options.sizes], options.runs, options.threads)
                    measured[row][name].append(one)
            rounds += 1
            print(f"round {rounds} after {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(table(measured))
    print(f"\n{rounds} processes of {options.runs} calls each, sizes {options.sizes}, {options.threads} thread(s).")


if __name__ == "__main__":
    main()
