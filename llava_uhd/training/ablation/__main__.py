"""Runs the papers' ablation in miniature: every variant with every seed.

    python -m llava_uhd.training.ablation --out runs/ablation

The folder gets a line in `runs.jsonl` for each finished run, `table.md` and `runs.png`. Stopped at any moment, the
same command goes on with the runs that are missing; encoded pages and up-samplers are made once.
"""

import argparse
import json
from dataclasses import asdict
from math import ceil
from pathlib import Path

from transformers import PreTrainedModel

from ...loading import load
from ..assembly import UPSAMPLER_FILE
from ..recipe import UpsamplerRecipe
from ..upsampler.training import train_upsampler
from .pages import Pages, encode_pages, load_pages, save_pages, write_slices
from .reading import Run, read
from .report import table, write_report
from .variants import VARIANTS

STAGE0_PICTURES, STAGE0_HELD_OUT, STAGE0_BATCH = 640, 16, 8


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava_uhd.training.ablation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of pages, up-samplers, runs and the report")
    parser.add_argument("--model", default="tiny", help="whose vision tower reads: tiny, or a folder like it")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of every run")
    parser.add_argument("--batch", type=int, default=8, help="pages of a step")
    parser.add_argument("--pages", type=int, default=640, help="to train on")
    parser.add_argument("--held-out", type=int, default=60, help="pages to measure on")
    parser.add_argument("--upsampler-steps", type=int, default=100, help="of stage 0")
    options = parser.parse_args(arguments)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    if message := _differs(options, out / "settings.json"):
        parser.error(message)
    train, held_out = (
        _pages(options.model, part, count, out / f"{part}.pt")
        for part, count in (("train", options.pages), ("held-out", options.held_out))
    )
    runs = _finished(out / "runs.jsonl")
    for seed in options.seeds:
        for name in options.variants:
            if any((run.variant, run.seed) == (name, seed) for run in runs):
                continue
            variant = VARIANTS[name]
            upsampler = _stage0(options, variant.stage0) if variant.stage0 else None
            run = read(name, variant, seed, options.steps, options.batch, train, held_out, upsampler)
            runs.append(run)
            line = json.dumps(asdict(run))
            with (out / "runs.jsonl").open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
    write_report(runs, out)
    print(table(runs))


def _differs(options: argparse.Namespace, file: Path) -> str | None:
    """Keeps what makes runs comparable with the folder; says what is not as it was there."""
    kept = ("model", "steps", "batch", "pages", "held_out", "upsampler_steps")
    now = {name: getattr(options, name) for name in kept}
    if not file.is_file():
        file.write_text(json.dumps(now) + "\n")
    before = json.loads(file.read_text())
    told = [
        f"--{name.replace('_', '-')} was {before[name]} and is {now[name]}"
        for name in kept
        if before[name] != now[name]
    ]
    return f"{file.parent} holds other runs ({'; '.join(told)}): name another --out" if told else None


def _finished(file: Path) -> list[Run]:
    """The runs of a folder; a line that a kill cut short is taken away."""
    if not file.is_file():
        return []
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    file.write_text("".join(whole))
    return [Run(**json.loads(line)) for line in whole]


def _tower(model: str) -> PreTrainedModel:
    return load(model, "cpu", "float32")[0].model.vision_tower


def _pages(model: str, part: str, count: int, file: Path) -> Pages:
    if not file.is_file():
        print(f"encoding {count} pages: {part}", flush=True)
        save_pages(encode_pages(_tower(model), part, count), file)
    return load_pages(file)


def _stage0(options: argparse.Namespace, highest: int) -> str:
    """Folder of the up-sampler to a level, trained by the real stage 0 on slices of pages."""
    out: Path = options.out / f"upsampler-{highest}x"
    if not (out / UPSAMPLER_FILE).is_file():
        pictures = options.out / "slices"
        if not pictures.is_dir():
            unfinished = options.out / "slices.unfinished"
            write_slices(unfinished, "slices", STAGE0_PICTURES + STAGE0_HELD_OUT)
            unfinished.rename(pictures)
        steps_of_epoch = STAGE0_PICTURES // STAGE0_BATCH
        recipe = UpsamplerRecipe(
            stage="upsampler",
            out=str(out),
            vision_tower=options.model,
            images=str(pictures),
            highest=highest,  # type: ignore[arg-type]
            held_out=STAGE0_HELD_OUT,
            image_size=112,
            resample="bicubic",
            normalization="clip",
            batch=STAGE0_BATCH,
            epochs=ceil(options.upsampler_steps / steps_of_epoch),
            max_steps=options.upsampler_steps,
            max_pad=10,
            save_every=50,
            pictures=0,
            workers=0,
        )
        print(json.dumps(train_upsampler(recipe).as_dict()), flush=True)
    return str(out)


if __name__ == "__main__":
    main()
