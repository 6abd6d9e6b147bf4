"""Loading a model and its processor by name: the built-in `tiny`, a folder, or a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model.processing_llava_uhd import LlavaUhdProcessor

BUILT_IN = {"tiny": Path(__file__).parent / "assets" / "tiny"}
DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve(model: str) -> str:
    """The folder of a built-in model; any other name as it is.

    Raises:
        ValueError: the name looks like a folder, and there is none with a config in it.
    """
    if model in BUILT_IN:
        return str(BUILT_IN[model])
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{model} is not a model folder: it holds no config.json")
    if not path.is_dir() and (path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1):
        raise ValueError(f"unknown model {model!r}: no such folder")
    return model


def load_processor(model: str = "tiny") -> "LlavaUhdProcessor":
    """The processor alone, enough for what needs no weights: token counts, slices.

    Raises:
        ValueError: there is no such model, or it is not a LLaVA-UHD.
    """
    from .registration import LlavaUhdProcessor

    try:
        return LlavaUhdProcessor.from_pretrained(resolve(model))
    except OSError as error:
        raise _unknown(model, error) from error


def load(
    model: str = "tiny", device: str | None = None, dtype: str = "auto"
) -> tuple["LlavaUhdForConditionalGeneration", "LlavaUhdProcessor"]:
    """A model in evaluation mode, and its processor.

    Args:
        model: `tiny`, a folder written by `save_pretrained` or `llava-uhd convert`, or a hub id.
        device: such as `cpu` or `cuda:0`, or `auto` to spread the model over what there is (accelerate). None takes
            the first accelerator, or else the CPU.
        dtype: one of `DTYPES`; `auto` keeps the weights' own.

    Raises:
        ValueError: there is no such model, it is not a LLaVA-UHD, or the dtype or device is unknown.
    """
    import torch

    from .registration import LlavaUhdForConditionalGeneration

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    processor = load_processor(model)
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = str(accelerator) if accelerator is not None else "cpu"
    try:
        target = device if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    try:
        loaded = LlavaUhdForConditionalGeneration.from_pretrained(
            resolve(model),
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map="auto" if target == "auto" else None,
        )
    except OSError as error:
        raise _unknown(model, error) from error
    if target != "auto":
        loaded.to(target)
    return loaded.eval(), processor


def _unknown(model: str, error: OSError) -> ValueError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    known = f"built in: {', '.join(BUILT_IN)}; or a folder, or a hub id"
    return ValueError(f"cannot load model {model!r} ({known}): {reason}")
