"""The published stages 0 to 2, by the recipes and the code of every other model.

Tower and decoder stand in for CLIP and Vicuna, which bring reading and answering along. Stage 0 gives the up-sampler;
before stage 1 the projector learns to read with it (`projector-long`), since the few steps of stage 1 would not teach
it that. Stage 2 has three parts, each on new documents and from the weights of the one before it: `instruct-long` goes
on as the first, `instruct-last` does so on tables and charts above all, where most of the mistakes were.
"""

from pathlib import Path

import torch

from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.training.data.synthetic import write_documents
from llava_uhd.training.recipe import UpsamplerRecipe, load_recipe
from llava_uhd.training.tuning import train_stage
from llava_uhd.training.upsampler.training import train_upsampler

DOCUMENTS, MORE_DOCUMENTS, LAST_DOCUMENTS, HELD_OUT = 3200, 16_000, 20_000, 100
LAST_KINDS = ("receipt", "form", *3 * ("table",), *3 * ("chart",))
# One and a half epochs of the recipe's batches in the first part of stage 2, 1.8 and 2.1 in the others, parts of one
# before.
STEPS = {"upsampler": 150, "align": 60, "instruct": 300, "instruct-long": 1800, "instruct-last": 2600}


def _data(train: str, name: str, images: str) -> tuple[str, ...]:
    return (
        f"data.train.0.path={{out}}/{train}/train/{name}.jsonl",
        f"data.train.0.images={{out}}/{train}/train/{images}",
        f"data.held_out.0.path={{out}}/documents/held-out/{name}.jsonl",
        f"data.held_out.0.images={{out}}/documents/held-out/{images}",
    )


def _further_part(before: str, documents: str) -> tuple[str, ...]:
    return (
        f"model.start={{out}}/{before}/model",
        "checkpoints.save_every=100",
        "optimization.precision=bf16",
        *_data(documents, "questions", "images"),
    )


# What differs from the recipes. Rates are lower than there, since everything has learned already; but not in the later
# parts of stage 2, which are long enough to come back from them.
OVERRIDES = {
    "upsampler": ("model.vision_tower={out}/bootstrap", "data.images={out}/documents/train/images"),
    "align": (
        "model.start={out}/model",
        "model.renew=[]",
        "model.upsampler={out}/upsampler",
        "optimization.learning_rates={{projector: 2e-5, positions: 2e-5}}",
        *_data("documents", "captions", "overviews"),
    ),
    "instruct": (
        "model.start={out}/align/model",
        "checkpoints.save_every=25",
        "optimization.learning_rates="
        "{{language_model: 3e-4, projector: 3e-4, vision_tower: 3e-4, upsampler_fixup: 3e-4}}",
        *_data("documents", "questions", "images"),
    ),
    "instruct-long": _further_part("instruct", "more-documents"),
    "instruct-last": _further_part("instruct-long", "last-documents"),
}


def write_data(out: Path, seed: int, shorten: int = 1) -> None:
    """Write `llava-uhd data synthetic` into `documents`, and more training data into two further folders."""
    write_documents(out / "documents/train", max(DOCUMENTS // shorten, 96), seed)
    write_documents(out / "documents/held-out", max(HELD_OUT // shorten, 2), seed + 1)
    write_documents(out / "more-documents/train", max(MORE_DOCUMENTS // shorten, 96), seed + 3)
    write_documents(out / "last-documents/train", max(LAST_DOCUMENTS // shorten, 96), seed + 4, kinds=LAST_KINDS)


def train_published(out: Path, seed: int, stage: str, shorten: int = 1) -> None:
    """A stage: reads `model`, `documents` and the stages before, writes a folder of its name."""
    folder = out / stage
    overrides = [f"out={folder}", f"seed={seed}", f"schedule.max_steps={max(STEPS[stage] // shorten, 1)}"]
    overrides += [text.format(out=out) for text in OVERRIDES[stage]]
    recipe = load_recipe(f"tiny-{stage.split('-')[0]}", overrides)
    if isinstance(recipe, UpsamplerRecipe):
        train_upsampler(recipe)
    else:
        train_stage(recipe)


def tuned(out: Path) -> LlavaUhdForConditionalGeneration:
    """The model that the last stage left."""
    return LlavaUhdForConditionalGeneration.from_pretrained(out / "instruct-last/model", dtype=torch.float32)
