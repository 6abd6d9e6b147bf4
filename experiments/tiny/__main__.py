"""Trains the built-in model `small` from random weights to its folder.

    python -m experiments.tiny --out runs/tiny                # until done; resumes what is in the folder
    python -m experiments.tiny --out runs/tiny --minutes 8    # a piece; the same command resumes
    python -m experiments.tiny --plan-only                    # operations and hours of the plan

`xargs apt-get install -y < experiments/tiny/fonts.txt` gives the fonts of the training documents.
"""

import argparse
from pathlib import Path

import torch

from ..common.trainer import Stop
from .calculation import describe_plan
from .folder import save_folder
from .setting import PLAN, load_plan
from .trainer import Options, export, train


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tiny", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of checkpoint, log and the finished model")
    parser.add_argument("--plan", type=Path, default=PLAN, help="YAML file of the model and its phases")
    parser.add_argument("--plan-only", action="store_true", help="print operations, tokens and hours, and stop")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after so long (default: run to the end)")
    parser.add_argument("--phases", nargs="+", default=[], help="run these phases alone")
    parser.add_argument("--begin", type=Path, nargs="+", default=[], help="checkpoints of other runs to begin with")
    parser.add_argument("--export", type=Path, help="write the network of the finished phases in bfloat16, and stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pages (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of the training process (default: PyTorch's choice)")
    parser.add_argument("--device", help="cpu or cuda (default: the accelerator if there is one)")
    parser.add_argument("--compile", action="store_true", help="compile the language model")
    parser.add_argument("--shorten", type=int, default=1, help="divide all steps by this, to try things out")
    options = parser.parse_args(arguments)
    plan = load_plan(options.plan, options.shorten)
    if options.plan_only:
        print(describe_plan(plan))
        return
    if options.out is None:
        parser.error("--out is needed")
    unknown = set(options.phases) - {phase.name for phase in plan.phases}
    if unknown:
        parser.error(f"unknown phases {sorted(unknown)}; known are {[phase.name for phase in plan.phases]}")
    if options.export:
        export(options.out, options.export)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    stop = Stop(options.minutes)
    stop.listen()
    done = train(
        plan,
        options.out,
        Options(
            seed=options.seed,
            device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            stop=stop,
            workers=options.workers,
            compiled=options.compile,
            only=tuple(options.phases),
            begin=tuple(options.begin),
        ),
    )
    if done and not options.phases:
        save_folder(options.out, plan.setting)
        print(f"finished: {options.out / 'model'}")
    else:
        print("stopped with a checkpoint; the same command resumes" if not done else "these phases are finished")


if __name__ == "__main__":
    main()
