"""Measure everything that matters on an accelerator, in less than eight minutes and without a network.

    python benchmarks/accelerator.py --out results
    python benchmarks/accelerator.py --out results --profile
    python benchmarks/accelerator.py --out results --device cpu --small
    python benchmarks/accelerator.py --count

Each measurement runs in a process of its own with a time limit: one that fails or hangs loses its own rows alone. Rows
are appended to `results.jsonl` as they come; `table.md` is written anew after each and goes as it is into
`benchmarks/README.md`; `logs/` has the output of every process. `--small` is a dry run at toy size. `--count` prints
what each part of a request costs on paper; nothing is measured.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

ONE_LINE = "Measure projector, vision path, generation, serving and training on an accelerator."


def main() -> None:
    """Run the measurements and print the table."""
    parser = argparse.ArgumentParser(description=ONE_LINE)
    parser.add_argument("--out", type=Path, help="folder of results.jsonl, table.md and logs")
    parser.add_argument("--device", default="cuda:0", help="device to measure (default: cuda:0)")
    parser.add_argument("--small", action="store_true", help="toy sizes, for a dry run on any device")
    parser.add_argument("--profile", action="store_true", help="add the ten dearest kernels of each row")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of measurements to run (default: all)")
    parser.add_argument("--budget", type=float, help="seconds of the whole command (default: 470; 285 with --small)")
    parser.add_argument("--limit-factor", type=float, help="factor of every time limit (default: 1; 3 with --small)")
    parser.add_argument("--count", action="store_true", help="print the calculated table of floors instead")
    options = parser.parse_args()
    if options.count == (options.out is not None):
        parser.error("give either --out DIR or --count")

    if options.count:
        from accelerator_rows.counting import Rates, count, table

        from llava_uhd.benchmark.sizes import Sizes

        print(table(count(Sizes(), (1008, 672)), Rates()))
        return

    from accelerator_rows.plan import BUDGET, SMALL_BUDGET, device_of, plan
    from accelerator_rows.runner import Runner
    from accelerator_rows.setting import Setting
    from accelerator_rows.table import markdown

    measurements = plan()
    names = [measurement.name for measurement in measurements]
    if unknown := set(options.only or []).difference(names):
        parser.error(f"unknown measurement {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    started = time.monotonic()
    setting = Setting(device_of(options.device), options.small, options.profile)
    budget = options.budget or (SMALL_BUDGET if options.small else BUDGET)
    runner = Runner(options.out, setting, budget, options.limit_factor or (3.0 if options.small else 1.0))
    rows = []
    command = shlex.join(["python", "benchmarks/accelerator.py", *sys.argv[1:]])
    for measurement in measurements:
        if options.only and measurement.name not in options.only:
            continue
        rows += runner.run(measurement)
        text = markdown(rows, command, time.monotonic() - started, options.small)
        (options.out / "table.md").write_text(text)
        print(f"{time.monotonic() - started:5.0f} s  {measurement.name}: {rows[-1]['status']}", file=sys.stderr)
    print(text)
    failed = [row for row in rows if row["status"].startswith("failed")]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
