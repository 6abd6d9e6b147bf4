"""Modes of `vllm serve` beyond its defaults: ranks, LoRA adapters of the language model, limits of images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from llava_uhd.loading import load

ADAPTER = "adapter"  # name under which requests ask for it


@dataclass(frozen=True)
class Mode:
    """Options of `vllm serve` that are compared on one of the random models.

    Attributes:
        options: options of the command.
        environment: environment variables of the server.
        lora: answers are those of a LoRA adapter, which requests name.
        max_slices: most slices of an image, which the options name; None for the model's own.
    """

    options: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    lora: bool = False
    max_slices: int | None = None


# vLLM binds each rank to a NUMA node of its own unless told not to.
UNBOUND = (("VLLM_CPU_OMP_THREADS_BIND", "nobind"),)
MODES = {
    "tensor parallel, 2 ranks": Mode(("--tensor-parallel-size", "2"), UNBOUND),
    # On a CPU, vLLM 0.32 allocates what a rank receives in a warm-up, which `--enforce-eager` skips. Mode 1 warms up
    # and, on a CPU, compiles nothing.
    "pipeline parallel, 2 ranks": Mode(
        ("--pipeline-parallel-size", "2", "--compilation-config", '{"mode": 1}'), UNBOUND
    ),
    "data parallel, 2 replicas": Mode(("--data-parallel-size", "2"), UNBOUND),
    "LoRA adapter": Mode(("--enable-lora", "--max-lora-rank", "8"), lora=True),
    "more slices, two images at most": Mode(
        ("--mm-processor-kwargs", '{"max_slices": 9}', "--limit-mm-per-prompt", '{"image": 2}'), max_slices=9
    ),
}


def lora_adapter(model_folder: str, folder: Path) -> tuple[Path, Path]:
    """Write a random LoRA adapter of a model's language model, and the model with the adapter merged into it.

    Args:
        model_folder: folder of the model.
        folder: folder to write into.

    Returns:
        Folders of the adapter and of the merged model.
    """
    model, processor = load(model_folder, device="cpu", dtype="float32")
    torch.manual_seed(1)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
        init_lora_weights=False,  # both factors random: an adapter that starts at zero would change nothing
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapter, merged = folder / "lora", folder / "merged"
    adapted.save_pretrained(adapter)
    adapted.merge_and_unload().save_pretrained(merged)
    processor.save_pretrained(merged)
    return adapter, merged
