"""Checks of a model folder: every file exists, is complete and matches the others.

Files and tensor headers are checked before memory is taken for a model, values after it was read. Every mistake is one
line that names the file, what is wrong with it and what to do.
"""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .confidence import CHECKSUMS, CONFIDENCE_FILE
from .errors import first_line
from .files import differences, seal_folder
from .model.configuration_llava_uhd import LlavaUhdConfig

if TYPE_CHECKING:
    import torch

    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from .model.processing_llava_uhd import LlavaUhdProcessor

logger = logging.getLogger(__name__)

WEIGHTS = (".safetensors", ".bin")
REPAIR = "copy the folder anew, or convert or train the model again"
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TEMPLATE_FILE, GENERATION_FILE = "chat_template.jinja", "generation_config.json"


def read_config(folder: Path) -> LlavaUhdConfig:
    """Return the config of a model folder.

    Raises:
        ValueError: it is damaged, or that of another kind of model.
    """
    file = folder / "config.json"
    kind = _read_json(file).get("model_type")
    if kind != LlavaUhdConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind!r}, not a {LlavaUhdConfig.model_type}")
    try:
        config: LlavaUhdConfig = LlavaUhdConfig.from_pretrained(folder)
        return config
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def seal_model(folder: Path) -> None:
    """Write sizes and checksums of the files of a complete model folder into it."""
    seal_folder(folder, CHECKSUMS)


def check_weight_checksums(folder: Path) -> None:
    """Compare the weights, and what a conversion kept, with their checksums; a folder without any is taken as it is.

    Raises:
        ValueError: a file of weights, or the list of checksums, is not as it was written.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    for name, said in differences(folder, CHECKSUMS, is_checked=lambda name: name.endswith(WEIGHTS) or "/" in name):
        raise ValueError(
            f"{folder}: {said}{'' if name == CHECKSUMS else f', according to {CHECKSUMS}'}: {REPAIR}; if you changed "
            f"the file yourself, remove {CHECKSUMS}"
        )


def check_settings_checksums(folder: Path) -> None:
    """Warn of files of config, processor and tokenizer that are not as they were written: people edit them.

    Raises:
        ValueError: one of them is missing.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    read = {*JSON_FILES, TEMPLATE_FILE, CONFIDENCE_FILE}
    for name, said in differences(folder, CHECKSUMS, is_checked=lambda name: name in read):
        if name in read - {CONFIDENCE_FILE} and not (folder / name).is_file():
            raise ValueError(f"{folder}: {said}, according to {CHECKSUMS}: {REPAIR}")
        if name != CHECKSUMS:  # a damaged list is refused with the weights
            logger.warning("%s: %s, according to %s: if you did not change it, %s", folder, said, CHECKSUMS, REPAIR)


def check_processor_files(folder: Path) -> None:
    """Check that the files of config, processor and tokenizer can be read.

    Raises:
        ValueError: naming the file that cannot.
    """
    check_settings_checksums(folder)
    for name in JSON_FILES:
        if (folder / name).exists():
            _read_json(folder / name)
    for name in ("processor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: {REPAIR}")
    template = folder / TEMPLATE_FILE
    if template.is_file():
        try:
            text = template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{template} is not UTF-8 text ({error.reason}): {REPAIR}") from error
        if "messages" not in text:
            what = "renders no messages" if text.strip() else "is empty"
            raise ValueError(f"{template} {what}: {REPAIR}")


def check_weight_files(folder: Path, config: LlavaUhdConfig) -> None:
    """Check the headers of the weights against the config.

    Raises:
        ValueError: there are none, a file is cut short or missing, or a tensor has another shape or type.
    """
    from .checkpoints.packaging import state_shapes
    from .checkpoints.sources import weight_files
    from .checkpoints.tensors import TensorReader

    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no model.safetensors: {REPAIR}")
    expected = state_shapes(config)
    reader = TensorReader()
    for file in files:
        for info in reader.list(file):
            shape = expected.get(info.key, info.shape)
            if info.shape != shape:
                raise ValueError(
                    f"{file}: {info.key} is {list(info.shape)}, but config.json wants {list(shape)}: {REPAIR}"
                )
            if info.key in expected and not info.dtype.is_floating_point:
                raise ValueError(f"{file}: {info.key} has the type {info.dtype}, not a floating one: {REPAIR}")


def check_template(processor: "LlavaUhdProcessor", folder: Path) -> None:
    """Check that the chat template, where there is one, renders a question.

    Raises:
        ValueError: it does not; names its file.
    """
    if processor.chat_template is None:
        return
    try:
        processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "?"}]}])
    except Exception as error:  # Jinja, and the functions that a template calls, raise errors of any kind
        raise ValueError(
            f"{folder / TEMPLATE_FILE} cannot render a question ({first_line(error)}): {REPAIR}"
        ) from error


def check_generation_file(folder: Path, config: LlavaUhdConfig) -> None:
    """Check that the tokens that begin, end and pad a text are of the vocabulary.

    Raises:
        ValueError: the file is missing, or a token is none.
    """
    file, vocab_size = folder / GENERATION_FILE, config.text_config.vocab_size
    if not file.is_file():
        raise ValueError(f"{folder} holds no {GENERATION_FILE}, which says where an answer ends: {REPAIR}")
    values = _read_json(file)
    for name in TOKEN_IDS:
        value = values.get(name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and (type(token) is not int or not 0 <= token < vocab_size):
                raise ValueError(f"{file}: {name} must be a token from 0 to {vocab_size - 1}, got {token!r}")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{file}: {name} must be finite, got {value!r}")


def check_processor(processor: "LlavaUhdProcessor", config: LlavaUhdConfig, folder: str) -> None:
    """Check that a processor is that of a model.

    Raises:
        ValueError: naming the setting that differs.
    """
    is_mlp, images = config.projector.type == "mlp", processor.image_processor
    pairs = {
        "image_token_id": (processor.image_token_id, config.image_token_id),
        "layout": (processor.layout, config.layout),
        "slice_separator_id": (processor.slice_separator_id, config.slice_separator_id),
        "row_separator_id": (processor.row_separator_id, config.row_separator_id),
        "query_grid": (processor.query_grid, None if is_mlp else config.projector.query_grid),
        "unshuffle_factor": (processor.unshuffle_factor, config.projector.unshuffle_factor if is_mlp else None),
        "input_level": (processor.input_level, config.projector.input_level if is_mlp else 1),
        "slice_grid": (images.slice_grid, config.slice_grid),
        "pad_to_square": (images.pad_to_square, config.pad_to_square),
        "pad_to_grid": (images.pad_to_grid, config.pad_to_grid),
        "letter_height": (images.letter_height, config.letter_height),
        "view_size": (images.view_size, config.vision_config.image_size),
        "patch_size": (images.patch_size, config.vision_config.patch_size),
    }
    for name, (of_processor, of_config) in pairs.items():
        if of_processor != of_config:
            raise ValueError(
                f"{folder}: {name} is {of_config!r} in config.json and {of_processor!r} in the files of processor and "
                f"tokenizer: {REPAIR}"
            )


def check_loaded(
    model: "LlavaUhdForConditionalGeneration", missing: "set[str] | list[str]", folder: str, all_values: bool = False
) -> None:
    """Check that every weight was in the files, and that small tensors and the projector are finite.

    Args:
        model: loaded model.
        missing: names of weights that no file holds, from transformers' loading info.
        folder: name of the model for error messages.
        all_values: check every weight, not only small tensors and the projector.

    Raises:
        ValueError: a weight is missing, NaN or infinite.
    """
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"the weights of {folder} lack {', '.join(names[:3])}{more}: {REPAIR}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        looked_at = all_values or tensor.ndim <= 1 or "multi_modal_projector" in name
        if looked_at and tensor.is_floating_point() and not tensor.is_meta and not _is_finite(tensor):
            raise ValueError(f"the weights of {folder}: {name} holds NaN or infinity: {REPAIR}")


def _is_finite(tensor: "torch.Tensor") -> bool:
    return bool(tensor.isfinite().all())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = "is empty" if file.stat().st_size == 0 else f"is not valid JSON ({error})"
        raise ValueError(f"{file} {what}: {REPAIR}") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object but {type(content).__name__}: {REPAIR}")
    return content
