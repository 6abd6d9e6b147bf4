"""Loading a model and its processor by name: the built-in `tiny`, a folder, or a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

from .quantization import quantization_config

if TYPE_CHECKING:
    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model.processing_llava_uhd import LlavaUhdProcessor

BUILT_IN = {"tiny": Path(__file__).parent / "assets" / "tiny"}
DTYPES = ("auto", "float32", "bfloat16", "float16")


def built_in(name: str = "tiny") -> str:
    """The folder of a model that comes with the package.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BUILT_IN:
        raise ValueError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN)}")
    return str(BUILT_IN[name])


def resolve(model: str) -> str:
    """The folder of a built-in model, or the folder or hub id that was named, once it is known to exist.

    Raises:
        ValueError: there is no such model.
    """
    if model in BUILT_IN:
        return built_in(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{model} is not a model folder: it holds no config.json")
        return str(path)
    _check_hub(model)
    return model


def _check_hub(model: str) -> None:
    """One question to the hub, unless its cache has the model: what loads files would ask for each many times."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        from huggingface_hub.utils import httpx  # the HTTP library that this release of the hub's client talks with
    except ImportError:
        import httpx  # type: ignore[no-redef]

    known = f"built in: {', '.join(BUILT_IN)}; or a folder with a config.json, or a hub id"
    try:
        if try_to_load_from_cache(model, "config.json") is None:
            HfApi().model_info(model, timeout=10)
    except HFValidationError as error:
        raise ValueError(f"unknown model {model!r}: there is no such folder ({known})") from error
    except (httpx.HTTPError, OSError, OfflineModeIsEnabled) as error:
        raise ValueError(f"cannot load model {model!r} from the hub ({known}): {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_processor(model: str = "tiny") -> "LlavaUhdProcessor":
    """The processor alone, enough for what needs no weights: token counts, slices.

    Raises:
        ValueError: there is no such model, or it is not a LLaVA-UHD.
    """
    from .model.processing_llava_uhd import LlavaUhdProcessor

    try:
        return LlavaUhdProcessor.from_pretrained(resolve(model))
    except OSError as error:
        raise ValueError(f"cannot load model {model!r}: {first_line(error)}") from error


def load(
    model: str = "tiny", device: str | None = None, dtype: str = "auto", quantization: str | None = None
) -> tuple["LlavaUhdForConditionalGeneration", "LlavaUhdProcessor"]:
    """A model in evaluation mode, and its processor.

    Args:
        model: `tiny`, a folder written by `save_pretrained` or `llava-uhd convert`, or a hub id.
        device: such as `cpu` or `cuda:0`, or `auto` to spread the model over what there is (accelerate). None takes
            the first accelerator, or else the CPU.
        dtype: one of `DTYPES`; `auto` keeps the weights' own.
        quantization: of the language model, one of `QUANTIZATIONS`; needs bitsandbytes.

    Raises:
        ValueError: there is no such model, it is not a LLaVA-UHD, or the dtype, device or quantization is unknown.
        ImportError: bitsandbytes is needed and not installed.
    """
    import torch

    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    processor = load_processor(model)
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = str(accelerator) if accelerator is not None else "cpu"
    try:
        target = device if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {first_line(error)}") from error
    try:
        loaded = LlavaUhdForConditionalGeneration.from_pretrained(
            resolve(model),
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map="auto" if target == "auto" else ({"": target} if quantization else None),
            quantization_config=None if quantization is None else quantization_config(quantization),
        )
    except OSError as error:
        raise ValueError(f"cannot load model {model!r}: {first_line(error)}") from error
    if target != "auto" and quantization is None:
        loaded.to(target)
    return loaded.eval(), processor
