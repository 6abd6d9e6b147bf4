"""Match source tensors to HF tensors by name and shape, before any values are read."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..model.configuration_llava_uhd import LlavaUhdConfig
from .links import HEAD, PROJECTOR, TOWER, Dead, Link, dead_tensors, link_names, same_shape
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
        links: key mapping of the tensors that the source has.
        kept: original names of unused tensors to keep for the export.
    """

    links: list[Link]
    kept: list[str]


def match(
    source: Source,
    config: LlavaUhdConfig,
    report: Report,
    *,
    allow_missing: Sequence[str] = (),
    ignore: Sequence[str] = (),
    keep_dead: bool = False,
) -> Matching:
    """Match a source with a model and record every tensor in the report.

    Args:
        source: tensors and configs of the source.
        config: HF model config.
        report: report that receives the lists of used, derived, ignored and missing tensors.
        allow_missing: patterns of original names that may be missing.
        ignore: patterns of original names that may be unexpected.
        keep_dead: True keeps large unused tensors, too.

    Raises:
        ValueError: naming the tensors that are missing, unknown or of another shape.
    """
    links = link_names(config, state_shapes(config))
    missing = _missing(source, links, allow_missing)
    _check_shapes(source, links)
    present = [link for link in links if not missing.intersection(link.released)]
    report.missing = sorted(missing)
    for link in present:
        infos = [source.tensors[name] for name in link.released]
        entry = {"ours": list(link.ours), "released": [info.key for info in infos]}
        entry["files"] = sorted({info.file.name for info in infos})
        (report.used if len(link.ours) == len(link.released) == 1 else report.derived).append(entry)

    dead = dead_tensors(config)
    # Of a tensor of ours that is not whole, the parts that are there stand alone.
    dead += [
        Dead(re.escape(name), "part of a tensor of which the rest is missing")
        for link in links
        for name in link.released
        if link not in present
    ]
    dead += [Dead(re.escape(name), "unknown, ignored as asked") for name in source.tensors if _matches(name, ignore)]
    linked = {name for link in present for name in link.released}
    kept, unknown = [], []
    for name in sorted(source.tensors.keys() - linked):
        info = source.tensors[name]
        found = next((entry for entry in dead if re.fullmatch(entry.pattern, name)), None)
        if found is None:
            unknown.append(info.key)
            continue
        keep = found.keep or (keep_dead and name != HEAD)
        kept += [name] if keep else []
        report.ignored.append(_ignored(info, found.reason, keep))
    if unknown:
        raise ValueError(f"unknown: {_listed(unknown)}; leave it out with --ignore")
    report.ignored += [_ignored(left.info, left.reason, False) for left in source.left_out]
    return Matching(present, kept)


def plan(links: Sequence[Link], source: Source, dtype: torch.dtype | None) -> tuple[list[Planned], dict[str, Link]]:
    """Order HF tensors by their position in the source, so that each source file is read once.

    Args:
        links: key mapping of the tensors to convert.
        source: source that the tensors are read from.
        dtype: dtype of all written tensors; None keeps each stored dtype.

    Returns:
        The planned tensors, and the mapping entry of each HF name.

    Raises:
        ValueError: the sources of one HF tensor are stored in different dtypes.
    """
    place = {name: index for index, name in enumerate(source.tensors)}
    planned, link_of = [], {}
    for link in sorted(links, key=lambda link: min(place[name] for name in link.released)):
        stored, *others = {source.tensors[name].dtype for name in link.released}
        if others and dtype is None:
            types = ", ".join(map(str, [stored, *others]))
            raise ValueError(f"{', '.join(link.released)} are stored in different types ({types}): choose a --dtype")
        for name, shape in zip(link.ours, link.our_shapes, strict=True):
            planned.append(Planned(name, shape, dtype or stored))
            link_of[name] = link
    return planned, link_of


def _missing(source: Source, links: Sequence[Link], allowed: Sequence[str]) -> set[str]:
    missing = {name for link in links for name in link.released} - source.tensors.keys()
    if lost := sorted(name for name in missing if not _matches(name, allowed)):
        starts = [option for prefix, option in PARTS for name in lost if name.startswith(prefix)]
        part = starts[0] if starts else "--language-model"
        raise ValueError(f"missing: {_listed(lost)}; give the part it is in with {part}, or allow it: --allow-missing")
    return missing


def _check_shapes(source: Source, links: Sequence[Link]) -> None:
    wrong = [
        f"{info.key} in {info.file.name} is {list(info.shape)}, the config wants {list(shape)}"
        for link in links
        for name, shape in zip(link.released, link.released_shapes, strict=True)
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
