"""Sources of a conversion: one original checkpoint folder, or parts that were distributed separately.

Every tensor is named as in a full original checkpoint. If two parts hold the same tensor, the part trained last has
precedence: the full checkpoint, then `mm_projector.bin`, then the pretrained language model, vision tower and up-
sampler. A fine-tuned vision tower in the full checkpoint is therefore used, whereas the reference loader replaces it
by the pretrained one by default.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .key_mapping import PROJECTOR, TOWER, UPSAMPLER
from .tensors import TensorInfo, TensorReader

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
PROJECTOR_FILE = "mm_projector.bin"
# Files that describe how to read the weights; kept unchanged for the export.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    *INDICES,
)
HUB_FILES = ("*.safetensors", "*.bin", "*.ckpt", *SIDE_FILES)


@dataclass(frozen=True)
class Parts:
    """Folders, files or hub ids (`name`, `name@revision`); at least one must be given.

    Attributes:
        source: a full original checkpoint, or the folder of a `mm_projector.bin`.
        projector: `mm_projector.bin`, or its folder.
        language_model: language model, such as Vicuna.
        vision_tower: CLIP. If the source has a fine-tuned tower, only the config of this one is used.
        upsampler: the pretrained JBU (`clip-large-jbu.ckpt`).
    """

    source: str | None = None
    projector: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    upsampler: str | None = None


@dataclass
class LeftOut:
    """Unused tensor, with the reason."""

    name: str
    reason: str
    info: TensorInfo


@dataclass
class Source:
    """Tensors and configs found in all parts.

    Attributes:
        tensors: tensors by their name in a full original checkpoint.
        left_out: unused tensors of parts other than the projector.
        config: original config, merged from the parts that have one.
        tower_config: vision tower config, if one is given.
        folders: folders of the parts, for tokenizers and other side files.
        files: weight files of the source if it is the only part; the export writes the same files.
    """

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    tower_config: dict[str, Any] | None = None
    folders: dict[str, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def resolve(name: str) -> Path:
    """Return a folder or file, downloading it first if it is a hub id.

    Raises:
        ValueError: there is no such path, and it cannot be a hub id.
        OSError: the hub cannot be reached, or has no such repository.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    repository, _, revision = name.partition("@")
    if path.is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or repository.startswith("."):
        raise ValueError(f"there is no folder or file {name}")
    from huggingface_hub import snapshot_download

    from ..loading import ask_hub

    problem, is_offline = ask_hub(repository)
    if problem is not None and not is_offline:
        raise OSError(f"cannot download {name}: {problem}")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(HUB_FILES),
                local_files_only=is_offline,  # use the local cache, without retries
            )
        )
    except OSError as error:
        raise OSError(f"cannot download {name}: {problem or error}") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder, preferring safetensors over PyTorch files.

    Raises:
        ValueError: an index names files that are not there, or lie elsewhere.
    """
    for index_name, single in zip(INDICES, SINGLE_FILES, strict=True):
        if (index := folder / index_name).is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
            if strange := [name for name in names if Path(name).name != name]:
                raise ValueError(f"{index} names {strange[0]!r}, which is not a file beside it")
            if lost := [name for name in names if not (folder / name).is_file()]:
                raise ValueError(f"{index} names {', '.join(lost)}, which are not there")
            return [folder / name for name in names]
        if (folder / single).is_file():
            return [folder / single]
    return []


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content


def gather(parts: Parts, reader: TensorReader) -> Source:
    """Find and name all tensors of all parts, reading only headers.

    Raises:
        ValueError: a part holds no weights, or files are damaged.
    """
    source, files = Source(), {}
    locations = {part: name for part, name in vars(parts).items() if name is not None}
    if not locations:
        raise ValueError("nothing to convert: name an original checkpoint folder or its parts")
    for part, name in locations.items():
        path = resolve(name)
        source.folders[part] = path if path.is_dir() else path.parent
        files[part] = _files_of(part, path)
        for file in files[part]:
            for info in reader.list(file):
                _add(source, part, info)
    projector_files = [source.folders["source"] / PROJECTOR_FILE] if "source" in locations else []
    if projector_files and projector_files[0].is_file() and not any(n.startswith(PROJECTOR) for n in source.tensors):
        files["source"] += projector_files
        for info in reader.list(projector_files[0]):
            _add(source, "projector", info)
    for part in ("language_model", "projector", "source"):
        if part in source.folders and (config := source.folders[part] / "config.json").is_file():
            source.config |= read_json(config)
    if "vision_tower" in source.folders and (config := source.folders["vision_tower"] / "config.json").is_file():
        source.tower_config = read_json(config)
    of_one = set(locations) <= {"source", "vision_tower"}
    if of_one and all(info.file in files["source"] for info in source.tensors.values()):
        source.files = files["source"]
    return source


def _files_of(part: str, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if part == "projector":
        files = [path / PROJECTOR_FILE] if (path / PROJECTOR_FILE).is_file() else []
    elif part == "upsampler":
        files = sorted(path.glob("*.ckpt"))
    else:
        files = weight_files(path)
    # A source may hold only the projector, and a vision tower's folder only the config.
    if not files and part not in ("source", "vision_tower"):
        raise ValueError(f"{path} holds no weights of a {part.replace('_', ' ')}")
    return files


def _add(source: Source, part: str, info: TensorInfo) -> None:
    name, reason = full_name(part, info.key)
    if name in source.tensors:
        reason = f"{source.tensors[name].file.name} has it, trained later"
    if reason:
        source.left_out.append(LeftOut(info.key, reason, info))
    else:
        source.tensors[name] = info


def full_name(part: str, key: str) -> tuple[str, str]:
    """Return a tensor's name in a full original checkpoint, and the reason if it is unused."""
    if part == "projector":
        return PROJECTOR + re.sub(r"^(model\.)?mm_projector\.", "", key), ""
    if part == "vision_tower":
        if re.match(r"(text_model|text_projection|visual_projection|logit_scale)", key):
            return key, "CLIP's text half, or its joint space"
        return TOWER + key.removeprefix("vision_model."), ""
    if part == "upsampler":
        if key.startswith("upsampler."):
            return UPSAMPLER + key.removeprefix("upsampler."), ""
        if re.match(r"(model|validation_model)\.", key):
            return key, "the CLIP that the up-sampler was trained on"
        if re.match(r"(downsampler|scale_net|linear_|crf|tv|avg)", key):
            return key, "needed in the up-sampler's training only"
    # Unchanged: a name without a mapping is reported as unexpected.
    return key, ""
