"""Loading a model and its processor by name: a built-in one, a folder, or a hub id."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import first_line
from .quantization import quantization_config

if TYPE_CHECKING:
    import torch

    from .confidence import Calibration
    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model.processing_llava_uhd import LlavaUhdProcessor

BUILT_IN = {name: Path(__file__).parent / "assets" / name for name in ("small", "tiny")}
DEFAULT_MODEL = "small"
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Most parameters of a model that `auto` loads in float32 where a CPU is slow in the weights' own dtype.
MAX_WIDENED = 10**9


def built_in(name: str = DEFAULT_MODEL) -> str:
    """Return the folder of a built-in model.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BUILT_IN:
        raise ValueError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN)}")
    return str(BUILT_IN[name])


def resolve(model: str) -> str:
    """Return the folder of a built-in model, a folder, or a hub id that is allowed to exist.

    A hub id that the cache holds becomes the folder in the cache where the hub cannot be reached.

    Raises:
        ValueError: there is no such model.
    """
    if model in BUILT_IN:
        return built_in(model)
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{model} is not a model folder: it holds no config.json")
        return str(path)
    if path.is_file():
        raise ValueError(f"{model} is a file: name the folder that holds config.json and the weights")
    return _resolve_on_hub(model)


@cache  # planner, processor, weights and calibration of one model resolve it in turn
def _resolve_on_hub(model: str) -> str:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    allowed = f"built in: {', '.join(BUILT_IN)}; or a folder with a config.json, or a hub id"
    try:
        cached = try_to_load_from_cache(model, "config.json")
        problem, is_offline = ask_hub(model)
    except HFValidationError as error:
        raise ValueError(f"unknown model {model!r}: there is no such folder ({allowed})") from error
    if problem is None:
        return model
    if is_offline and isinstance(cached, str):
        return str(Path(cached).parent)
    raise ValueError(f"cannot load model {model!r} from the hub ({allowed}): {problem}")


def abilities(model: str) -> str | None:
    """Return the description of a model's abilities: the text of `abilities.txt` in its folder, or None."""
    file = Path(resolve(model)) / "abilities.txt"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def load_calibration(model: str) -> "Calibration | None":
    """Return the confidence calibration of a model: `confidence.json` in its folder, or None.

    Raises:
        ValueError: the file is damaged.
    """
    from .confidence import CONFIDENCE_FILE, read_calibration

    folder = Path(resolve(model))
    if not folder.is_dir():
        from transformers.utils import cached_file

        file = cached_file(model, CONFIDENCE_FILE, _raise_exceptions_for_missing_entries=False)
        if file is None:
            return None
        folder = Path(file).parent
    return read_calibration(folder)


def ask_hub(model: str) -> tuple[str | None, bool]:
    """Ask the hub once whether it has a model: loading asks for every file, with several retries while offline.

    Returns:
        The error message of the hub or the connection, or None; and True if it is the connection's.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        # The HTTP library that this release of the hub's client talks with: imported there, not exported.
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        import httpx  # type: ignore[no-redef]

    try:
        HfApi().model_info(model, timeout=10)
    except HFValidationError:
        raise
    except (httpx.HTTPError, OSError) as error:
        return first_line(error), getattr(error, "response", None) is None
    return None, False


def load_processor(model: str = DEFAULT_MODEL) -> "LlavaUhdProcessor":
    """Load the processor alone, which is enough for token counts and slice plans.

    Raises:
        ValueError: there is no such model, or it is not a LLaVA-UHD.
    """
    return _processor(resolve(model), model)


def _processor(folder: str, model: str) -> "LlavaUhdProcessor":
    """Load the processor of a folder or hub id; errors name the requested model."""
    from .model.processing_llava_uhd import LlavaUhdProcessor
    from .model_folder import REPAIR, check_processor_files, check_template, read_config

    is_local = Path(folder).is_dir()
    if is_local:
        read_config(Path(folder))
        check_processor_files(Path(folder))
    try:
        processor: LlavaUhdProcessor = LlavaUhdProcessor.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"cannot load model {model!r}: {first_line(error)}") from error
    except ImportError:
        raise
    except Exception as error:  # tokenizers and transformers meet damaged files with errors of any kind
        files = "processor_config.json, tokenizer_config.json or tokenizer.json"
        where = f"{folder}: {files}" if is_local else f"{model}: a file of its processor or tokenizer"
        raise ValueError(f"{where} cannot be read ({first_line(error)}): {REPAIR}") from error
    if is_local:
        check_template(processor, Path(folder))
    return processor


def load(
    model: str = DEFAULT_MODEL, device: str | None = None, dtype: str = "auto", quantization: str | None = None
) -> tuple["LlavaUhdForConditionalGeneration", "LlavaUhdProcessor"]:
    """Load a model in evaluation mode, and its processor.

    Args:
        model: a built-in model, a folder written by `save_pretrained` or `llava-uhd convert`, or a hub id.
        device: device such as `cpu` or `cuda:0`, or `auto` to spread the model over all devices (accelerate); None
            for the first accelerator, or else the CPU.
        dtype: one of `DTYPES`; `auto` keeps the weights' own, but for a CPU that only imitates products in it: a model
            of at most `MAX_WIDENED` parameters computes in float32 there, several times faster in twice the memory.
        quantization: quantization of the language model, one of `QUANTIZATIONS`; needs bitsandbytes.

    Raises:
        ValueError: there is no such model, it is not a LLaVA-UHD, or the dtype, device or quantization is unknown.
        ImportError: bitsandbytes is needed and not installed.
    """
    import torch

    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model_folder import (
        REPAIR,
        check_generation_file,
        check_loaded,
        check_processor,
        check_weight_checksums,
        check_weight_files,
        read_config,
    )

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    target = usable_device(device)
    folder = resolve(model)
    processor = _processor(folder, model)
    if Path(folder).is_dir():
        config = read_config(Path(folder))
        check_processor(processor, config, folder)
        check_generation_file(Path(folder), config)
        if getattr(config, "quantization_config", None) is None:  # its files hold packed integers
            check_weight_files(Path(folder), config)
        check_weight_checksums(Path(folder))
    try:
        loaded, info = LlavaUhdForConditionalGeneration.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map="auto" if target == "auto" else ({"": target} if quantization else None),
            quantization_config=None if quantization is None else quantization_config(quantization),
        )
    except OSError as error:
        raise ValueError(f"cannot load model {model!r}: {first_line(error)}") from error
    except (RuntimeError, KeyError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"cannot load model {model!r} ({first_line(error)}): {REPAIR}") from error
    check_loaded(loaded, info["missing_keys"], folder)
    if target != "auto" and quantization is None:
        loaded.to(target)
        if dtype == "auto" and target.type == "cpu" and is_imitated(loaded.dtype):
            widen(loaded)
    return loaded.eval(), processor


def is_imitated(dtype: "torch.dtype") -> bool:
    """Return whether PyTorch has no kernels for products of a half precision on this machine's CPU."""
    import torch

    if dtype not in (torch.bfloat16, torch.float16):
        return False
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    # oneDNN has these kernels; a PyTorch that is built without it has no operator to ask.
    has_kernels = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return has_kernels is None or not has_kernels()


def widen(model: "LlavaUhdForConditionalGeneration") -> None:
    """Turn a model to float32, in place, unless it is so large that its user should decide: then say so."""
    size = model.num_parameters()
    if size <= MAX_WIDENED:
        model.float()
        return
    logging.getLogger(__name__).warning(
        "this CPU has no products in %s: --dtype float32 is several times faster and takes %.0f GB of memory",
        str(model.dtype).removeprefix("torch."),
        4 * size / 1e9,
    )


def usable_device(name: str | None) -> "torch.device | Literal['auto']":
    """Return a device that this PyTorch can put a tensor on.

    Args:
        name: see `load`.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "auto"
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: {first_line(error)}") from error
    if device.type == "meta":
        raise ValueError("device 'meta' holds no values; choose one that computes, such as cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count()
        here = "cpu alone" if accelerator is None else f"cpu and {count} x {accelerator.type}"
        reason = first_line(error).partition(". ")[0]
        raise ValueError(
            f"device {name!r} cannot be used: {reason}; PyTorch {torch.__version__} has {here} here"
        ) from error
    return device
