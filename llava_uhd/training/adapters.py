"""LoRA by PEFT: adapters on the linear layers that a regular expression names, in the language model alone."""

from typing import Any

from .recipe import LoraRecipe


def add_adapters(model: Any, recipe: LoraRecipe) -> Any:
    """The model with adapters, its own weights frozen.

    Raises:
        ValueError: the expression names no layer, or one outside of the language model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=recipe.targets
    )
    adapted = get_peft_model(model, config)
    outside = [name for name, _ in adapted.named_parameters() if "lora_" in name and ".language_model." not in name]
    if outside:
        raise ValueError(f"lora.targets {recipe.targets!r} reaches beyond the language model: {outside[0]}")
    return adapted


def four_bits() -> Any:
    """The option of `from_pretrained` that keeps a frozen language model in four bits (NF4).

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError("lora.quantize: nf4 needs the package bitsandbytes and an accelerator") from error
    import torch
    from transformers import BitsAndBytesConfig

    # Only the language model: the others are small, and partly trained.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )
