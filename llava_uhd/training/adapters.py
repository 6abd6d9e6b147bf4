"""LoRA with PEFT: adapters on linear layers of the language model selected by a regular expression."""

from typing import Any

from .recipe import LoraRecipe


def add_adapters(model: Any, recipe: LoraRecipe) -> Any:
    """Return the model with adapters and frozen base weights.

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
