"""Trains the built-in model from scratch.

    python -m llava_uhd.training.tiny --out runs/tiny --seed 0

Stages run in this order, each reading what those before it wrote into the folder, so that a run can be taken up at
any of them: `--stages projector join save`. The decoder and the tower do not need each other and may run side by side.

The published stages go on from the saved model, `--stages documents upsampler align instruct`: see `published`. They
are not part of the shipped weights, which they did not make better (docs/training.md).
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
    "save",
)
PUBLISHED = ("documents", "upsampler", "align", "instruct")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava_uhd.training.tiny", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, log and the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES + PUBLISHED, default=list(STAGES))
    parser.add_argument("--device", help="cpu or cuda; the accelerator if there is one")
    parser.add_argument("--shorten", type=int, default=1, help="divide all steps by this, to try things out")
    options = parser.parse_args(arguments)
    from . import decoder, folder, join, published, vision

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out, seed, shorten = options.out, options.seed, options.shorten
    out.mkdir(parents=True, exist_ok=True)
    for phase in decoder.PHASES:
        if f"decoder-{phase}" in options.stages:
            decoder.train_decoder(out, seed, device, phase, shorten)
    if "tower" in options.stages:
        vision.train_tower(out, seed, device, shorten)
    for name in vision.PROJECTOR_PHASES:
        if name in options.stages:
            vision.train_projector(out, seed, device, name, shorten)
    for part in join.PARTS:
        if part in options.stages:
            join.train_join(out, seed, device, part, shorten)
    if "save" in options.stages:
        folder.save_folder(torch.load(out / "joined.pt", weights_only=True, map_location="cpu"), out / "model")
    if "documents" in options.stages:
        published.write_data(out, seed, shorten)
    for stage in published.STEPS:
        if stage in options.stages:
            published.train_published(out, seed, stage, shorten)


if __name__ == "__main__":
    main()
