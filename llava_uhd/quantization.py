"""Quantization of the language model with bitsandbytes, for loading and for training.

Only the linear layers of the language model are quantized. The vision tower, the projector and the language-model head
keep their dtype: they are a small part of the weights, partly trained, and decide the accuracy on small print.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

QUANTIZATIONS = ("8bit", "4bit")
# Full names: transformers compares a module's path from its start.
UNQUANTIZED_MODULES = ("model.vision_tower", "model.multi_modal_projector", "lm_head")


def quantization_config(name: str, double_quantization: bool = False) -> "BitsAndBytesConfig":
    """Return the option of `from_pretrained` that keeps the language model in 8 or 4 bits.

    Args:
        name: one of `QUANTIZATIONS`; 4 bits are NF4, multiplied in bfloat16.
        double_quantization: quantize the scales of 4-bit blocks as well, as QLoRA does.

    Raises:
        ValueError: the name is unknown.
        ImportError: bitsandbytes is not installed.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {name!r}: choose one of {', '.join(QUANTIZATIONS)}")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError("quantization needs bitsandbytes: pip install 'llava-uhd[quantize]'") from error
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=name == "8bit",
        load_in_4bit=name == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(UNQUANTIZED_MODULES),
    )
