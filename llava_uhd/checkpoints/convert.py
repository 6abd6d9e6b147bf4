"""Convert an original checkpoint to a folder for `from_pretrained`, one tensor at a time.

    llava-uhd convert path/to/LLaVA-UHD-v2 --vision-tower openai/clip-vit-large-patch14-336 --out llava-uhd-v2-7b

Values are copied unchanged, in their stored dtype unless another one is set.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from ..deprecation import former_names, renamed_fields
from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model_folder import seal_model
from .card import write_card
from .key_mapping import HEAD, PROJECTOR, TOWER, TensorMapping, split_tensors
from .matching import match, plan
from .packaging import IMAGE_TOKEN, write_package
from .report import Report
from .sources import SIDE_FILES, Parts, Source, gather, resolve
from .tensors import TensorReader, all_finite
from .tokenizers import load_tokenizer
from .variants import Overrides, infer_projector, most_used_dtype, to_hf_config, vision_config_of
from .writing import SHARD_BYTES, Planned, new_folder, write_json, write_model, write_safetensors

# Files beside the converted weights that only the export reads.
RELEASED = "released"  # folder name in all conversions, earlier ones included
EXTRAS, MANIFEST, REPORT = "extras.safetensors", "manifest.json", "report.json"

__getattr__ = former_names(__name__, {"convert_to_ours": "convert_to_hf"})


@renamed_fields(keep_dead="keep_unused")
@dataclass(frozen=True)
class Options:
    """Conversion options.

    Attributes:
        overrides: model settings that replace those of the source.
        tokenizer: folder or hub id of a tokenizer, used if no part has one.
        dtype: dtype of the written floating-point weights; None keeps the stored dtype.
        allow_missing: patterns (`*` matches anything) of original names that may be missing.
        ignore: patterns of original names that may be unexpected.
        keep_unused: keep the unused second CLIP, too, so that the export restores every tensor.
        overwrite: replace an existing folder.
        license: model license for the model card.
        shard_bytes: approximate size of a written file in bytes.
    """

    overrides: Overrides = Overrides()
    tokenizer: str | None = None
    dtype: torch.dtype | None = None
    allow_missing: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    keep_unused: bool = False
    overwrite: bool = False
    license: str | None = None
    shard_bytes: int = SHARD_BYTES


def convert_to_hf(
    parts: Parts,
    out: Path,
    options: Options | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Convert an original checkpoint to HF format.

    Args:
        parts: locations of the source's parts.
        out: folder to write.
        options: see `Options`.
        on_progress: callback that receives bytes done and total bytes.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape or not finite, a file is damaged, a setting is
            ambiguous or occurs in no original checkpoint; the message names it.
        OSError: a disk is full, a hub cannot be reached.
    """
    options = options or Options()
    reader = TensorReader()
    source = gather(parts, reader)
    report = Report(str(out))
    original_config = _original_config(source, report)
    config, tokenizer = _config_and_tokenizer(source, original_config, options)
    matching = match(
        source,
        config,
        report,
        allow_missing=options.allow_missing,
        ignore=options.ignore,
        keep_unused=options.keep_unused,
    )
    if config.tie_word_embeddings and HEAD in source.tensors:
        _check_tied(source, reader)
    planned, mapping_of = plan(matching.key_mapping, source, options.dtype)
    config.dtype = most_used_dtype((tensor.dtype, tensor.num_bytes) for tensor in planned)
    report.num_bytes = sum(tensor.num_bytes for tensor in planned)
    report.settings = _settings(config, source)
    num_kept_bytes = sum(source.tensors[name].num_bytes for name in matching.kept)

    weights = _HfWeights(mapping_of, source, reader, options.dtype)
    with new_folder(out, options.overwrite, report.num_bytes + num_kept_bytes) as folder:
        write_package(folder, config, tokenizer, original_config, list(source.folders.values()))
        _write_export_files(folder / RELEASED, source, reader, matching.kept)
        write_model(folder, planned, weights, options.shard_bytes, on_progress)
        write_card(folder, config, original_config, options.license, report)
        write_json(folder / RELEASED / REPORT, {**report.as_dict(), "out": out.name})
        seal_model(folder)
    return report


class _HfWeights:
    """HF tensors by name, read from the source; tensors of the last mapping are cached until all are read."""

    def __init__(
        self, mapping_of: dict[str, TensorMapping], source: Source, reader: TensorReader, dtype: torch.dtype | None
    ) -> None:
        self.mapping_of, self.source, self.reader, self.dtype = mapping_of, source, reader, dtype
        self.last: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self.last:
            mapping = self.mapping_of[name]
            self.last.clear()
            tensors = split_tensors([self.read(name) for name in mapping.original_names], mapping.hf_shapes)
            self.last = dict(zip(mapping.hf_names, tensors, strict=True))
        tensor = self.last.pop(name)
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def read(self, name: str) -> torch.Tensor:
        info = self.source.tensors[name]
        tensor = self.reader.read(info)
        if not all_finite(tensor):
            raise ValueError(f"{info.file.name}: {info.key} holds NaN or infinity")
        # The stored dtypes of one HF tensor's sources may differ only if a target dtype is set.
        return tensor if self.dtype is None else tensor.to(self.dtype)


def _original_config(source: Source, report: Report) -> dict[str, Any]:
    """Return the original config, or the language model's config plus values inferred from projector tensors."""
    if not source.config:
        raise ValueError(f"no config.json in {', '.join(str(folder) for folder in source.folders.values())}")
    if "mm_projector_type" in source.config:
        return source.config
    shapes = {name: info.shape for name, info in source.tensors.items() if name.startswith(PROJECTOR)}
    if not shapes:
        raise ValueError("neither a config with mm_projector_type nor a projector: name its file with --projector")
    found = infer_projector({name.removeprefix(PROJECTOR): shape for name, shape in shapes.items()})
    report.assumed += [f"{key} {value}, from the projector's tensors" for key, value in found.items()]
    return source.config | found


def _config_and_tokenizer(
    source: Source, original_config: dict[str, Any], options: Options
) -> tuple[LlavaUhdConfig, PreTrainedTokenizerBase]:
    """Return the HF config, with its image token added to the tokenizer.

    The image token id may exceed the vocabulary: the logits keep their trained width.
    """
    projector = [info for name, info in source.tensors.items() if name.startswith(PROJECTOR)]
    if not projector:
        raise ValueError("no projector among the tensors: name its file with --projector")
    projector_dtype = most_used_dtype((info.dtype, info.num_bytes) for info in projector)
    vision_config = vision_config_of(original_config, source.tower_config)
    config = to_hf_config(original_config, vision_config, projector_dtype, options.overrides)
    folders = [resolve(options.tokenizer)] if options.tokenizer else []
    folders += [source.folders[part] for part in ("source", "language_model", "projector") if part in source.folders]
    tokenizer = load_tokenizer(folders, config.text_config)
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the language model only {config.text_config.vocab_size}"
        )
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True)], special_tokens=True)
    config.image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    return config, tokenizer


def _check_tied(source: Source, reader: TensorReader) -> None:
    head, embedding = source.tensors[HEAD], source.tensors["model.embed_tokens.weight"]
    if head.shape != embedding.shape or not torch.equal(reader.read(head), reader.read(embedding)):
        raise ValueError(f"{head.key} differs from {embedding.key}, but the config ties them (tie_word_embeddings)")


def _settings(config: LlavaUhdConfig, source: Source) -> dict[str, Any]:
    tower_file = next((info.file for name, info in source.tensors.items() if name.startswith(TOWER)), None)
    fine_tuned = tower_file is not None and tower_file.parent == source.folders.get("source")
    return {
        "projector": config.projector.type,
        "levels": config.projector.levels,
        "window_corners": config.projector.box_dtype,
        "query_grid": config.projector.query_grid,
        "layout": config.layout,
        "max_slices": config.max_slices,
        "language_model": config.text_config.model_type,
        "vision_tower": "of the checkpoint" if fine_tuned else "given separately",
        "dtype": str(config.dtype).removeprefix("torch."),
        "image_token_id": config.image_token_id,
    }


def _write_export_files(folder: Path, source: Source, reader: TensorReader, kept: list[str]) -> None:
    """Write export metadata: small unused tensors, original files, shapes and file positions."""
    folder.mkdir()
    extras = [Planned(name, source.tensors[name].shape, source.tensors[name].dtype) for name in kept]
    extras.sort(key=lambda tensor: -tensor.dtype.itemsize)
    write_safetensors(folder / EXTRAS, extras, lambda name: reader.read(source.tensors[name]))
    for part in ("source", "language_model"):
        for name in SIDE_FILES:
            file = source.folders[part] / name if part in source.folders else None
            if file is not None and file.is_file() and not (folder / name).exists():
                shutil.copyfile(file, folder / name)
    files: dict[str, dict[str, str]] = {file.name: {} for file in source.files}
    for name, info in source.tensors.items():
        if info.file in source.files:
            files[info.file.name][info.key] = name
    shapes = {name: list(info.shape) for name, info in source.tensors.items()}
    write_json(folder / MANIFEST, {"files": files, "shapes": shapes})
