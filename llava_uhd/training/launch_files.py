"""`llava-uhd train init`: a folder with a recipe and the files that launch it on one or many nodes."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..files import write_text
from .recipe import TuningRecipe, load_recipe, recipe_text

TEMPLATES = Path(__file__).parent / "launch"
# Layers that FSDP2 shards, by `model_type` of the language model.
LAYERS = {"llama": "LlamaDecoderLayer", "qwen2": "Qwen2DecoderLayer", "qwen3": "Qwen3DecoderLayer"}
CPUS_PER_GPU = 8


def write_launch_files(
    folder: Path, name: str, overrides: Sequence[str], nodes: int, gpus: int, overwrite: bool = False
) -> list[Path]:
    """Write `recipe.yaml`, `fsdp2.yaml`, `torchrun.sbatch`, `fsdp2.sbatch` and `eval.sbatch`.

    Args:
        folder: folder to write; the run's own folder is `run` in it, unless the overrides name another.
        name: recipe name or path.
        overrides: recipe overrides, `key=value`.
        nodes: number of nodes.
        gpus: number of GPUs per node.
        overwrite: True replaces existing files.

    Raises:
        ValueError: the recipe is wrong, is of stage 0, does not divide among the devices, or a file exists.
    """
    from .plan import accumulation_of, config_of

    recipe = load_recipe(name, overrides)
    if not isinstance(recipe, TuningRecipe):
        raise ValueError(f"{name} is a recipe of stage 0, which one node trains: llava-uhd train run {name}")
    accumulation_of(recipe, nodes * gpus)
    if not any(override.startswith("out=") for override in overrides):
        recipe = replace(recipe, out="run")
    folder = folder.expanduser().absolute()
    layer = LAYERS.get(config_of(recipe).text_config.model_type)
    sharding = (TEMPLATES / "fsdp2.yaml").read_text(encoding="utf-8")
    settings = "".join(line for line in sharding.splitlines(keepends=True) if not line.startswith("#"))
    settings = settings.replace("num_machines: 1", f"num_machines: {nodes}")
    settings = settings.replace("num_processes: 8", f"num_processes: {nodes * gpus}")
    settings = settings.replace("mixed_precision: bf16", f"mixed_precision: {_precision(recipe)}")
    contents = {"recipe.yaml": recipe_text(recipe)}
    if layer is not None:
        contents["fsdp2.yaml"] = settings.replace("LlamaDecoderLayer", layer)
    for template in ("torchrun.sbatch", "fsdp2.sbatch", "eval.sbatch"):
        if template == "fsdp2.sbatch" and layer is None:
            continue
        contents[template] = (
            (TEMPLATES / template)
            .read_text(encoding="utf-8")
            .format(
                name=template,
                job=Path(name).stem.replace(" ", "-"),
                nodes=nodes,
                gpus=gpus,
                cpus=gpus * CPUS_PER_GPU,
                folder=shlex.quote(str(folder)),
                model=shlex.quote(str(Path(recipe.out) / "model")),
            )
        )
    existing = [file for file in contents if (folder / file).exists()]
    if existing and not overwrite:
        raise ValueError(f"{folder} has {', '.join(existing)} already: give --overwrite to replace")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in contents.items():
        write_text(folder / file, text)
    return [folder / file for file in contents]


def _precision(recipe: TuningRecipe) -> str:
    return "bf16" if recipe.optimization.precision == "bf16" else "'no'"  # YAML parses a bare `no` as false
