"""Match source tensors to HF tensors by name and shape, before any values are read."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..model.configuration_llava_uhd import LlavaUhdConfig
from .key_mapping import (
    HEAD,
    PROJECTOR,
    TOWER,
    TensorMapping,
    UnusedTensor,
    build_key_mapping,
    same_shape,
    unused_tensors,
)
from .packaging import state_shapes
from .report import Report
from .sources import Source
from .tensors import TensorInfo
from .writing import Planned

MOST_NAMED = 10  # maximum number of tensors listed in an error
# Usual location of a missing tensor.
PARTS = ((TOWER, "--vision-tower"), (PROJECTOR + "upsampler", "--upsampler"), (PROJECTOR, "--projector"))


@dataclass(frozen=True)
class Matching:
    """Result of matching.

    Attributes:
        key_mapping: key mapping of the tensors that the source has.
        kept: original names of unused tensors to keep for the export.
    """

    key_mapping: list[TensorMapping]
    kept: list[str]


def match(
    source: Source,
    config: LlavaUhdConfig,
    report: Report,
    *,
    allow_missing: Sequence[str] = (),
    ignore: Sequence[str] = (),
    keep_unused: bool = False,
) -> Matching:
    """Match a source with a model and record every tensor in the report.

    Args:
        source: tensors and configs of the source.
        config: HF model config.
        report: report that receives the lists of used, derived, ignored and missing tensors.
        allow_missing: patterns of original names that may be missing.
        ignore: patterns of original names that may be unexpected.
        keep_unused: True keeps large unused tensors, too.

    Raises:
        ValueError: naming the tensors that are missing, unknown or of another shape.
    """
    key_mapping = build_key_mapping(config, state_shapes(config))
    missing = _missing(source, key_mapping, allow_missing)
    _check_shapes(source, key_mapping)
    present = [mapping for mapping in key_mapping if not missing.intersection(mapping.original_names)]
    report.missing = sorted(missing)
    for mapping in present:
        infos = [source.tensors[name] for name in mapping.original_names]
        entry = {"ours": list(mapping.hf_names), "released": [info.key for info in infos]}
        entry["files"] = sorted({info.file.name for info in infos})
        (report.used if len(mapping.hf_names) == len(mapping.original_names) == 1 else report.derived).append(entry)

    unused = unused_tensors(config)
    # Original tensors of an HF tensor whose other sources are missing.
    unused += [
        UnusedTensor(re.escape(name), "part of a tensor of which the rest is missing")
        for mapping in key_mapping
        for name in mapping.original_names
        if mapping not in present
    ]
    unused += [
        UnusedTensor(re.escape(name), "unknown, ignored as asked") for name in source.tensors if _matches(name, ignore)
    ]
    mapped = {name for mapping in present for name in mapping.original_names}
    kept, unknown = [], []
    for name in sorted(source.tensors.keys() - mapped):
        info = source.tensors[name]
        found = next((entry for entry in unused if re.fullmatch(entry.pattern, name)), None)
        if found is None:
            unknown.append(info.key)
            continue
        is_kept = found.kept or (keep_unused and name != HEAD)
        kept += [name] if is_kept else []
        report.ignored.append(_ignored(info, found.reason, is_kept))
    if unknown:
        raise ValueError(f"unknown: {_listed(unknown)}; leave it out with --ignore")
    report.ignored += [_ignored(left.info, left.reason, False) for left in source.left_out]
    return Matching(present, kept)


def plan(
    key_mapping: Sequence[TensorMapping], source: Source, dtype: torch.dtype | None
) -> tuple[list[Planned], dict[str, TensorMapping]]:
    """Order HF tensors by their position in the source, so that each source file is read once.

    Args:
        key_mapping: key mapping of the tensors to convert.
        source: source that the tensors are read from.
        dtype: dtype of all written tensors; None keeps each stored dtype.

    Returns:
        The planned tensors, and the mapping entry of each HF name.

    Raises:
        ValueError: the sources of one HF tensor are stored in different dtypes.
    """
    place = {name: index for index, name in enumerate(source.tensors)}
    planned, mapping_of = [], {}
    for mapping in sorted(key_mapping, key=lambda mapping: min(place[name] for name in mapping.original_names)):
        stored, *others = {source.tensors[name].dtype for name in mapping.original_names}
        if others and dtype is None:
            types = ", ".join(map(str, [stored, *others]))
            raise ValueError(
                f"{', '.join(mapping.original_names)} are stored in different types ({types}): choose a --dtype"
            )
        for name, shape in zip(mapping.hf_names, mapping.hf_shapes, strict=True):
            planned.append(Planned(name, shape, dtype or stored))
            mapping_of[name] = mapping
    return planned, mapping_of


def _missing(source: Source, key_mapping: Sequence[TensorMapping], allowed: Sequence[str]) -> set[str]:
    missing = {name for mapping in key_mapping for name in mapping.original_names} - source.tensors.keys()
    if lost := sorted(name for name in missing if not _matches(name, allowed)):
        starts = [option for prefix, option in PARTS for name in lost if name.startswith(prefix)]
        part = starts[0] if starts else "--language-model"
        raise ValueError(f"missing: {_listed(lost)}; give the part it is in with {part}, or allow it: --allow-missing")
    return missing


def _check_shapes(source: Source, key_mapping: Sequence[TensorMapping]) -> None:
    wrong = [
        f"{info.key} in {info.file.name} is {list(info.shape)}, the config wants {list(shape)}"
        for mapping in key_mapping
        for name, shape in zip(mapping.original_names, mapping.original_shapes, strict=True)
        if (info := source.tensors.get(name)) and not same_shape(info.shape, shape)
    ]
    if wrong:
        raise ValueError(f"wrong shape: {'; '.join(wrong[:MOST_NAMED])}")


def _ignored(info: TensorInfo, reason: str, kept: bool) -> dict[str, Any]:
    parameters = torch.Size(info.shape).numel()
    return {"name": info.key, "file": info.file.name, "reason": reason, "kept": kept, "parameters": parameters}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
