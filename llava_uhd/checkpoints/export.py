"""Export an HF folder to the layout of the original checkpoints.

    llava-uhd convert llava-uhd-v2-7b --to original --out LLaVA-UHD-v2

A folder that was converted from one original checkpoint is exported to the same files with the same tensors. Any other
folder is exported to one full original checkpoint: language model, vision tower and projector under the original
names.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model_folder import check_settings_checksums, check_weight_checksums, read_config
from .convert import EXTRAS, MANIFEST, RELEASED
from .key_mapping import EMBEDDING, HEAD, Shape, TensorMapping, build_key_mapping, split_tensors
from .packaging import state_shapes
from .report import Report
from .sources import INDICES, SIDE_FILES, read_json, weight_files
from .tensors import TensorInfo, TensorReader
from .variants import to_original_config
from .writing import Planned, new_folder, telling, write_json, write_model, write_safetensors


def convert_to_original(
    folder: Path,
    out: Path,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Export an HF folder to the original layout.

    Args:
        folder: HF folder written by `convert_to_hf` or `save_pretrained`.
        out: folder to write.
        overwrite: replace a folder that exists.
        on_progress: callback that receives bytes done and total bytes.

    Raises:
        ValueError: the folder is not in HF format, its tensors do not match its config, or no original layout fits.
        OSError: the disk is full.
    """
    config = load_config(folder)
    check_weight_checksums(folder)
    check_settings_checksums(folder)
    reader = TensorReader()
    weights = list_weights(folder, reader)
    check_weights(weights, config)
    manifest, extras = _export_files(folder, reader)
    originals = _OriginalWeights(
        build_key_mapping(config, state_shapes(config)), weights, extras, manifest["shapes"], reader
    )
    if config.tie_word_embeddings and HEAD in manifest["shapes"]:
        originals.alias(HEAD, EMBEDDING)
    report = Report(str(out), settings={"layout": config.layout, "levels": config.projector.levels})
    planned = {name: originals.plan(name) for name in originals.names()}
    absent = [name for name in manifest["shapes"] if name not in planned]
    report.used = [{"ours": list(originals.hf_names_of(name)), "released": [name]} for name in planned]
    for name in absent:
        entry = {"name": name, "file": "", "reason": "not kept by the conversion", "kept": False}
        report.ignored.append({**entry, "parameters": torch.Size(manifest["shapes"][name]).numel()})
    report.num_bytes = sum(tensor.num_bytes for tensor in planned.values())
    with new_folder(out, overwrite, report.num_bytes) as partial:
        _write_side_files(folder, partial, config, set(absent))
        if manifest["files"]:
            read = telling(originals, report.num_bytes, on_progress)
            for file, keys in manifest["files"].items():
                _write_file(
                    partial / file, {key: planned[name] for key, name in keys.items() if name in planned}, read
                )
        else:
            write_model(partial, list(planned.values()), originals, on_progress=on_progress)
    return report


def load_config(folder: Path) -> LlavaUhdConfig:
    """Return the config of an HF folder.

    Raises:
        ValueError: it holds no LLaVA-UHD model in HF format.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it holds no config.json")
    if (kind := read_json(folder / "config.json").get("model_type")) != LlavaUhdConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; convert an original checkpoint first: llava-uhd convert"
        )
    return read_config(folder)


def list_weights(folder: Path, reader: TensorReader) -> dict[str, TensorInfo]:
    """Return all tensors of a folder by name, from the file headers."""
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no weights")
    return {info.key: info for file in files for info in reader.list(file)}


def check_weights(weights: dict[str, TensorInfo], config: LlavaUhdConfig) -> None:
    """Check that the tensors match the config.

    Raises:
        ValueError: naming what is missing, unknown or of another shape.
    """
    expected = state_shapes(config)
    if missing := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"missing: {', '.join(missing[:10])}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"unknown: {', '.join(unknown[:10])}")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ValueError(f"wrong shape: {name} is {list(weights[name].shape)}, the config wants {list(shape)}")


class _OriginalWeights:
    """Original tensors by name, read from HF tensors; tensors of the last mapping are cached until all are read."""

    def __init__(
        self,
        key_mapping: list[TensorMapping],
        weights: dict[str, TensorInfo],
        extras: dict[str, TensorInfo],
        shapes: dict[str, Shape],
        reader: TensorReader,
    ) -> None:
        self.key_mapping = {name: mapping for mapping in key_mapping for name in mapping.original_names}
        self.weights, self.extras, self.shapes, self.reader = weights, extras, shapes, reader
        self.last: dict[str, torch.Tensor] = {}

    def alias(self, name: str, hf_name: str) -> None:
        shape = self.weights[hf_name].shape
        self.key_mapping[name] = TensorMapping((hf_name,), (shape,), (name,), (shape,))

    def names(self) -> Iterator[str]:
        yield from self.key_mapping
        yield from self.extras

    def hf_names_of(self, name: str) -> tuple[str, ...]:
        return self.key_mapping[name].hf_names if name in self.key_mapping else ()

    def plan(self, name: str) -> Planned:
        if name in self.extras:
            return Planned(name, self.extras[name].shape, self.extras[name].dtype)
        mapping = self.key_mapping[name]
        canonical = mapping.original_shapes[mapping.original_names.index(name)]
        return Planned(name, tuple(self.shapes.get(name, canonical)), self.weights[mapping.hf_names[0]].dtype)

    def __call__(self, name: str) -> torch.Tensor:
        if name in self.extras:
            return self.reader.read(self.extras[name])
        if name not in self.last:
            mapping = self.key_mapping[name]
            self.last.clear()
            tensors = [self.reader.read(self.weights[hf_name]) for hf_name in mapping.hf_names]
            shapes = [self.plan(original).shape for original in mapping.original_names]
            self.last = dict(zip(mapping.original_names, split_tensors(tensors, shapes), strict=True))
        return self.last.pop(name)


def _export_files(folder: Path, reader: TensorReader) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Return the conversion manifest and the kept tensors; empty for folders that were not converted."""
    if not (folder / RELEASED / MANIFEST).is_file():
        return {"files": {}, "shapes": {}}, {}
    extras = {info.key: info for info in reader.list(folder / RELEASED / EXTRAS)}
    return read_json(folder / RELEASED / MANIFEST), extras


def _write_side_files(folder: Path, partial: Path, config: LlavaUhdConfig, absent: set[str]) -> None:
    """Write config and tokenizer: the original files if kept, otherwise derived from the HF files."""
    origin = folder / RELEASED if (folder / RELEASED / "config.json").is_file() else folder
    for name in SIDE_FILES:
        if (origin / name).is_file() and name not in INDICES:
            copyfile(origin / name, partial / name)
        elif (origin / name).is_file() and origin != folder:
            index = read_json(origin / name)
            index["weight_map"] = {key: file for key, file in index["weight_map"].items() if key not in absent}
            write_json(partial / name, index) if absent else copyfile(origin / name, partial / name)
    if origin == folder:
        write_json(partial / "config.json", to_original_config(config, str(config.dtype).removeprefix("torch.")))


def _write_file(file: Path, tensors: dict[str, Planned], read: Callable[[str], torch.Tensor]) -> None:
    """Return the tensors of one file of the original checkpoint under the file's own names."""
    if file.suffix == ".safetensors":
        named = [Planned(key, tensor.shape, tensor.dtype) for key, tensor in tensors.items()]
        write_safetensors(file, named, lambda key: read(tensors[key].name))
    else:
        # PyTorch's format needs all tensors at once; copy each out of the memory-mapped source file.
        torch.save({key: read(tensor.name).clone() for key, tensor in tensors.items()}, file)
