"""Released weights to a folder for `from_pretrained`, one tensor at a time.

    llava-uhd convert path/to/LLaVA-UHD-v2 --vision-tower openai/clip-vit-large-patch14-336 --out llava-uhd-v2-7b

Nothing is computed: the numbers are those of the source, in the type they are stored in unless another is asked for.
All names and shapes are settled from the files' headers before the first number is read.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from ..model.configuration_llava_uhd import LlavaUhdConfig
from .card import write_card
from .links import EMBEDDING, HEAD, OUR_PROJECTOR, PROJECTOR, TOWER, Dead, Link, cut, dead_tensors, link_names, same_shape
from .packaging import IMAGE_TOKEN, state_shapes, write_package
from .report import Report
from .sources import SIDE_FILES, Parts, Source, gather, read_json, resolve
from .tensors import TensorInfo, TensorReader
from .tokenizers import load_tokenizer
from .variants import LANGUAGE_MODELS, Overrides, most_used_dtype, to_our_config, vision_config_of
from .writing import SHARD_BYTES, Planned, new_folder, write_json, write_model, write_safetensors

# Beside the converted weights: what only the way back needs.
RELEASED = "released"
EXTRAS, MANIFEST, REPORT = "extras.safetensors", "manifest.json", "report.json"
MOST_NAMED = 10  # tensors that an error lists


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        overrides: of the model's settings.
        tokenizer: folder or hub id of a tokenizer, where no part has one.
        dtype: of the written floating-point weights; None keeps what is stored.
        allow_missing: patterns (`*` for anything) of released names that may be missing.
        ignore: patterns of released names that may be unknown.
        keep_dead: keep the second CLIP, too, so that the way back gives every tensor.
        overwrite: replace a folder that exists.
        license: of the model, for its card.
        shard_bytes: size of a written file, about.
    """

    overrides: Overrides = Overrides()
    tokenizer: str | None = None
    dtype: torch.dtype | None = None
    allow_missing: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    keep_dead: bool = False
    overwrite: bool = False
    license: str | None = None
    shard_bytes: int = SHARD_BYTES


def convert_to_ours(
    parts: Parts,
    out: Path,
    options: Options | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Convert released weights.

    Args:
        parts: where they are.
        out: folder to write.
        options: see `Options`.
        on_progress: told bytes done and bytes in all.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape or not finite, a file is damaged, a setting is
            open or was never released; always naming which.
        OSError: a disk is full, a hub cannot be reached.
    """
    options = options or Options()
    reader = TensorReader()
    source = gather(parts, reader)
    report = Report(str(out))
    released = _released_config(source, report)
    projector_dtype = most_used_dtype(
        [(i.dtype, i.num_bytes) for n, i in source.tensors.items() if n.startswith(PROJECTOR)] or [(torch.float32, 0)]
    )
    config = to_our_config(released, vision_config_of(released, source.tower_config), projector_dtype, options.overrides)
    folders = [resolve(options.tokenizer)] if options.tokenizer else []
    folders += [source.folders[part] for part in ("source", "language_model", "projector") if part in source.folders]
    tokenizer = load_tokenizer(folders, config.text_config)
    config.image_token_id = _image_token_id(tokenizer, config)

    links, missing = _check_names(source, config, options, report)
    present = [link for link in links if not missing.intersection(link.released)]
    kept = _check_dead(source, config, present, options, report)
    if config.tie_word_embeddings and HEAD in source.tensors:
        _check_tied(source, reader)
    stored = most_used_dtype((source.tensors[n].dtype, source.tensors[n].num_bytes) for l in present for n in l.released)
    config.dtype = options.dtype or stored

    planned, link_of = _plan(present, source, options.dtype)
    report.num_bytes = sum(tensor.num_bytes for tensor in planned)
    report.missing = sorted(missing)
    report.settings = _settings(config, source, released)
    kept_bytes = sum(source.tensors[name].num_bytes for name in kept)
    done = 0

    def tell(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, report.num_bytes)

    with new_folder(out, options.overwrite, report.num_bytes + kept_bytes) as folder:
        write_package(folder, config, tokenizer, _chat_template(config), _generation(source, released, tokenizer))
        _write_way_back(folder / RELEASED, source, reader, kept)
        write_model(folder, planned, _Weights(link_of, source, reader, options.dtype), options.shard_bytes, tell)
        write_card(folder, config, released, options.license, report)
        write_json(folder / RELEASED / REPORT, {**report.as_dict(), "out": out.name})
    return report


class _Weights:
    """Our tensors by name, read from the source; the last link's stay at hand, for its next tensor."""

    def __init__(
        self, link_of: dict[str, Link], source: Source, reader: TensorReader, dtype: torch.dtype | None
    ) -> None:
        self.link_of, self.source, self.reader, self.dtype = link_of, source, reader, dtype
        self.last: tuple[Link, list[torch.Tensor]] | None = None

    def __call__(self, name: str) -> torch.Tensor:
        link = self.link_of[name]
        if self.last is None or self.last[0] is not link:
            self.last = None
            self.last = link, cut([self.read(released) for released in link.released], link.our_shapes)
        tensor = self.last[1][link.ours.index(name)]
        if len(link.ours) == 1:
            self.last = None
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def read(self, released: str) -> torch.Tensor:
        info = self.source.tensors[released]
        tensor = self.reader.read(info)
        # The sum of finite numbers may overflow, so each is looked at; row by row, to hold one small mask at a time.
        if not all(bool(row.isfinite().all()) for row in tensor.reshape(-1).split(1 << 24)):
            raise ValueError(f"{info.file.name}: {info.key} holds NaN or infinity")
        return tensor


def _released_config(source: Source, report: Report) -> dict[str, Any]:
    """The released config, or what the projector's tensors tell of it."""
    if not source.config:
        raise ValueError(f"no config.json in {', '.join(str(folder) for folder in source.folders.values())}")
    if "mm_projector_type" in source.config:
        return source.config
    names = {name.removeprefix(PROJECTOR) for name in source.tensors if name.startswith(PROJECTOR)}
    if not names:
        raise ValueError("neither a config with mm_projector_type nor a projector: name its file with --projector")
    grid = round(source.tensors[PROJECTOR + "pos_embed"].shape[0] ** 0.5) if "pos_embed" in names else 12
    if "query_1" not in names:
        found: dict[str, Any] = {"mm_projector_type": {12: "adapt_spatial_resampler_v1", 8: "uhd_v1_query64"}.get(grid)}
    else:
        suffix = "" if grid == 12 else f"_v2_{grid**2}"
        stacks = {stack: any(f"upsampler.{stack}." in name for name in names) for stack in ("up2", "up3")}
        mask = 15 if stacks["up3"] else 7 if stacks["up2"] else 3
        found = {"mm_projector_type": f"adapt_spatial_resampler{suffix}", "feature_scale_mask": mask}
    report.assumed += [f"{key} {value}, from the projector's tensors" for key, value in found.items()]
    return source.config | found


def _image_token_id(tokenizer: PreTrainedTokenizerBase, config: LlavaUhdConfig) -> int:
    """Id of the image token, which may lie beyond the vocabulary: the logits keep the width they were trained with."""
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the language model only {config.text_config.vocab_size}"
        )
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def _check_names(
    source: Source, config: LlavaUhdConfig, options: Options, report: Report
) -> tuple[list[Link], set[str]]:
    """All links, and the released names that are missing by permission."""
    links = link_names(config, state_shapes(config))
    expected = {name for link in links for name in link.released}
    missing = expected - source.tensors.keys()
    if lost := sorted(name for name in missing if not _matches(name, options.allow_missing)):
        raise ValueError(f"missing: {_listed(lost)}{_hint(lost)}; or allow it with --allow-missing")
    wrong = [
        f"{info.key} in {info.file.name} is {list(info.shape)}, the config wants {list(shape)}"
        for link in links
        for name, shape in zip(link.released, link.released_shapes, strict=True)
        if (info := source.tensors.get(name)) and not same_shape(info.shape, shape)
    ]
    if wrong:
        raise ValueError(f"wrong shape: {'; '.join(wrong[:MOST_NAMED])}")
    return links, missing


def _check_dead(
    source: Source, config: LlavaUhdConfig, links: Sequence[Link], options: Options, report: Report
) -> list[str]:
    """Reports every tensor; gives the names of those to be kept for the way back."""
    for link in links:
        entry = {"ours": list(link.ours), "released": [source.tensors[name].key for name in link.released]}
        entry["files"] = sorted({source.tensors[name].file.name for name in link.released})
        (report.used if len(link.ours) == len(link.released) == 1 else report.derived).append(entry)
    linked = {name for link in links for name in link.released}
    dead, kept, unknown = dead_tensors(config), [], []
    for name in source.tensors.keys() - linked:
        info = source.tensors[name]
        found = next((entry for entry in dead if _fullmatch(entry, name)), None)
        if found is None and _matches(name, options.ignore):
            found = Dead(name, "unknown, ignored as asked")
        if found is None and any(name in link.released for link in link_names(config, state_shapes(config))):
            found = Dead(name, "part of a tensor of which the rest is missing")
        if found is None:
            unknown.append(info.key)
            continue
        keep = found.keep or (options.keep_dead and name != HEAD)
        kept += [name] if keep else []
        report.ignored.append(_ignored(info, found.reason, keep))
    if unknown:
        raise ValueError(f"unknown: {_listed(sorted(unknown))}; leave it out with --ignore")
    report.ignored.sort(key=lambda entry: entry["name"])
    report.ignored += [_ignored(left.info, left.reason, False) for left in source.left_out]
    return sorted(kept)


def _ignored(info: TensorInfo, reason: str, kept: bool) -> dict[str, Any]:
    parameters = torch.Size(info.shape).numel()
    return {"name": info.key, "file": info.file.name, "reason": reason, "kept": kept, "parameters": parameters}


def _fullmatch(dead: Dead, name: str) -> bool:
    import re

    return re.fullmatch(dead.pattern, name) is not None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _hint(names: Sequence[str]) -> str:
    for prefix, option in ((TOWER, "--vision-tower"), (PROJECTOR + "upsampler", "--upsampler"), (PROJECTOR, "--projector")):
        if any(name.startswith(prefix) for name in names):
            return f"; give the part it is in with {option}"
    return "; give the part it is in with --language-model"


def _check_tied(source: Source, reader: TensorReader) -> None:
    head, embedding = source.tensors[HEAD], source.tensors["model.embed_tokens.weight"]
    if head.shape != embedding.shape or not torch.equal(reader.read(head), reader.read(embedding)):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}, but the config ties them (tie_word_embeddings)")


def _plan(
    links: Sequence[Link], source: Source, dtype: torch.dtype | None
) -> tuple[list[Planned], dict[str, Link]]:
    """Our tensors in the order in which the source holds them, so that each of its files is gone through once."""
    place = {name: index for index, name in enumerate(source.tensors)}
    planned, link_of = [], {}
    for link in sorted(links, key=lambda link: min(place[name] for name in link.released)):
        stored = {source.tensors[name].dtype for name in link.released}
        if len(stored) > 1:
            raise ValueError(f"{', '.join(link.released)} are stored in different types: {', '.join(map(str, stored))}")
        for name, shape in zip(link.ours, link.our_shapes, strict=True):
            planned.append(Planned(name, shape, dtype or stored.copy().pop()))
            link_of[name] = link
    return planned, link_of


def _write_way_back(folder: Path, source: Source, reader: TensorReader, kept: list[str]) -> None:
    """Writes what our folder has no place for: small unused tensors, original files, shapes and places."""
    folder.mkdir()
    infos = [source.tensors[name] for name in kept]
    extras = [Planned(name, info.shape, info.dtype) for name, info in zip(kept, infos, strict=True)]
    extras.sort(key=lambda tensor: -tensor.dtype.itemsize)
    write_safetensors(folder / EXTRAS, extras, lambda name: reader.read(source.tensors[name]))
    for part in ("source", "language_model"):
        for name in SIDE_FILES:
            file = source.folders[part] / name if part in source.folders else None
            if file is not None and file.is_file() and not (folder / name).exists():
                shutil.copyfile(file, folder / name)
    files = {file.name: [i.key for i in source.tensors.values() if i.file == file] for file in source.files}
    names = {info.key: name for name, info in source.tensors.items()}
    write_json(
        folder / MANIFEST,
        {
            "files": {file: {key: names[key] for key in keys} for file, keys in files.items()},
            "shapes": {name: list(info.shape) for name, info in source.tensors.items()},
        },
    )


def _settings(config: LlavaUhdConfig, source: Source, released: dict[str, Any]) -> dict[str, Any]:
    tower = next((i.file for name, i in source.tensors.items() if name.startswith(TOWER)), None)
    tower_of = next((p for p, f in source.folders.items() if tower is not None and tower.parent == f), None)
    return {
        "projector": config.projector.type,
        "levels": config.projector.levels,
        "window_corners": config.projector.box_dtype,
        "query_grid": config.projector.query_grid,
        "layout": config.layout,
        "max_slices": config.max_slices,
        "language_model": config.text_config.model_type,
        "vision_tower": "of the checkpoint" if tower_of == "source" else "given separately",
        "dtype": str(config.dtype).removeprefix("torch."),
        "image_token_id": config.image_token_id,
    }


def _chat_template(config: LlavaUhdConfig) -> str:
    return "qwen" if config.text_config.model_type == "qwen2" else "vicuna"


def _generation(source: Source, released: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Greedy decoding, as published; the ends of an answer are those of the source and of its conversations."""
    ends: list[int] = []
    for part in ("source", "language_model"):
        if part in source.folders and (file := source.folders[part] / "generation_config.json").is_file():
            end = read_json(file).get("eos_token_id")
            ends += end if isinstance(end, list) else [] if end is None else [end]
    ends += [released["eos_token_id"]] if isinstance(released.get("eos_token_id"), int) else []
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    if LANGUAGE_MODELS.get(released.get("model_type", ""), released.get("model_type")) == "qwen2":
        ends += [i for i in [tokenizer.convert_tokens_to_ids("<|im_end|>")] if i is not None]
    ends = list(dict.fromkeys(ends))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.unk_token_id
    return {
        "do_sample": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
        "pad_token_id": pad if pad is not None else (ends[0] if ends else None),
    }
