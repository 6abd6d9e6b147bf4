"""Trains the built-in model from scratch.

    python -m experiments.tiny_v1 --out runs/tiny --seed 0

Tower and decoder first learn to read and to answer, standing in for CLIP and Vicuna; then come stages 0, 1 and 2 as
published (see `published`). Stages run in this order, each reading what those before it wrote into the folder, so that
a run can be taken up at any of them, `--stages align instruct finish`, and one that was killed resumes within its
stage. The decoder's first phases and the tower do not need each other and may run side by side, in folders of their
own; so do `decoder-long` and `projector-long`.
"""

import argparse
from pathlib import Path

import torch

STAGES = (
    "decoder-small",
    "decoder-medium",
    "decoder-large",
    "decoder-sharp",
    "decoder-fine",
    "tower",
    "projector",
    "projector-fine",
    "adapt",
    "join",
    "join-long",
    "bootstrap",
    "documents",
    "upsampler",
    "decoder-long",
    "projector-long",
    "save",
    "align",
    "instruct",
    "instruct-long",
    "instruct-last",
    "finish",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tiny_v1", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, log and the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", help="cpu or cuda; the accelerator if there is one")
    parser.add_argument("--shorten", type=int, default=1, help="divide all steps by this, to try things out")
    options = parser.parse_args(arguments)
    from ..common.trainer import append_log
    from . import decoder, folder, join, published, vision

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out, seed, shorten = options.out, options.seed, options.shorten
    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage not in options.stages:
            continue
        if stage == "tower":
            vision.train_tower(out, seed, device, shorten)
        elif stage in vision.PROJECTOR_PHASES:
            vision.train_projector(out, seed, device, stage, shorten)
        elif stage in join.PARTS:
            join.train_join(out, seed, device, stage, shorten)
        elif stage == "bootstrap":
            folder.save_folder(join.assemble_saved(out), out / "bootstrap")
        elif stage == "documents":
            published.write_data(out, seed, shorten)
        elif stage in published.STEPS:
            published.train_published(out, seed, stage, shorten)
        elif stage == "save":
            folder.save_folder(join.assemble_saved(out), out / "model")
        elif stage == "finish":
            folder.save_folder(published.tuned(out), out / "tiny")
        else:
            decoder.train_decoder(out, seed, device, stage.removeprefix("decoder-"), shorten)
        if (out / stage / "log.jsonl").is_file():
            append_log(out / stage, stage, out / "log.jsonl")


if __name__ == "__main__":
    main()
