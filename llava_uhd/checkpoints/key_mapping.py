"""Key mapping between original checkpoints and HF format; one list serves both directions.

A mapping entry states that some HF tensors hold the same values, in the same order, as some original tensors. Most
entries are one to one; but the original attention fuses its three input projections into one tensor, splits the
queries into four tensors where the HF format has one, and a few shapes have axes of length one. To convert in either
direction, concatenate the flattened values of one side and split them for the other.

E hidden size of the language model, G query grid.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.configuration_llava_uhd import LlavaUhdProjectorConfig

if TYPE_CHECKING:
    from ..model.configuration_llava_uhd import LlavaUhdConfig

Shape = tuple[int, ...]

PROJECTOR = "model.mm_projector."
TOWER = "model.vision_tower.vision_tower.vision_model."
UPSAMPLER = PROJECTOR + "upsampler.upsampler."
HF_PROJECTOR = "model.multi_modal_projector."
HF_TOWER = "model.vision_tower."
HF_LANGUAGE_MODEL = "model.language_model."
EMBEDDING, HEAD = HF_LANGUAGE_MODEL + "embed_tokens.weight", "lm_head.weight"

# HF name in the projector: original name. Names that are not listed are equal.
RENAMED = {"positions": "pos_embed", "join.weight": "cat_proj.weight", "join.bias": "cat_proj.bias"}
# Options of the projector that no original checkpoint has.
RESEARCH_OPTIONS = ("bin_embedding", "aligned_windows", "bin_grid", "input_level")


@dataclass(frozen=True)
class TensorMapping:
    """HF tensors with shapes, and the original tensors that hold the same values in the same order."""

    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    original_names: tuple[str, ...]
    original_shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class UnusedTensor:
    """Original tensors that no forward pass reads.

    Attributes:
        pattern: regular expression that matches the full tensor names.
        reason: explanation for the report.
        kept: True stores these tensors beside the converted weights for the export.
    """

    pattern: str
    reason: str
    kept: bool = True


def build_key_mapping(config: "LlavaUhdConfig", shapes: dict[str, Shape]) -> list[TensorMapping]:
    """Return the key mapping of a model.

    Args:
        config: model config.
        shapes: HF names and shapes of the state dict. A tied head is listed as the embedding only.

    Raises:
        ValueError: no original checkpoint has this projector or up-sampler.
    """
    projector = config.projector
    upsampled = projector.type == "hiwin" and projector.levels != [1]
    if projector.type == "mlp" or (upsampled and projector.upsampler != "jbu"):
        raise ValueError(
            f"the original layout has no projector of type {projector.type!r} with up-sampler {projector.upsampler!r}"
        )
    defaults = LlavaUhdProjectorConfig()
    options = [(name, getattr(projector, name), getattr(defaults, name)) for name in RESEARCH_OPTIONS]
    options += [(name, getattr(config, name), None) for name in ("slice_grid", "letter_height")]
    options += [(name, getattr(config, name), False) for name in ("pad_to_square", "pad_to_grid")]
    if changed := [f"{name} {value!r}" for name, value, off in options if value != off]:
        raise ValueError(f"the original layout has no model with {', '.join(changed)}")
    if projector.type == "perceiver" or config.layout == "unseparated":
        raise ValueError(f"the original layout has no {projector.type!r} with layout {config.layout!r}")
    return [_mapping(names, shapes, projector.type) for names in _groups(shapes)]


def _groups(shapes: dict[str, Shape]) -> Iterator[tuple[str, ...]]:
    """Yield HF names, grouped by the original tensor that contains them."""
    for name in shapes:
        head, separator, kind = name.partition("attention.q_proj.")
        if not name.startswith(HF_PROJECTOR):
            yield (name,)
        elif separator:
            yield tuple(f"{head}attention.{letter}_proj.{kind}" for letter in "qkv")
        elif not re.search(r"attention\.[kv]_proj", name):
            yield (name,)


def _mapping(hf_names: tuple[str, ...], shapes: dict[str, Shape], projector: str) -> TensorMapping:
    first = shapes[hf_names[0]]
    originals = original_names(hf_names[0], projector)
    if len(hf_names) > 1:
        original_shape = (sum(shapes[name][0] for name in hf_names), *first[1:])
    elif len(originals) > 1 or re.search(r"\.query$", originals[0]):
        original_shape = first[1:]
    elif originals[0].endswith("_embedding") and originals[0].startswith(PROJECTOR):
        original_shape = (1, 1, *first)
    elif re.search(r"\.(range_temp|sigma_spatial)$", originals[0]):
        original_shape = ()
    else:
        original_shape = first
    return TensorMapping(
        hf_names, tuple(shapes[name] for name in hf_names), originals, (original_shape,) * len(originals)
    )


def original_names(hf_name: str, projector: str) -> tuple[str, ...]:
    """Return the original names of an HF tensor, or of the fused tensor that contains it."""
    if hf_name == HEAD:
        return (hf_name,)
    if hf_name.startswith(HF_TOWER):
        return (TOWER + hf_name.removeprefix(HF_TOWER),)
    if hf_name.startswith(HF_LANGUAGE_MODEL):
        return ("model." + hf_name.removeprefix(HF_LANGUAGE_MODEL),)
    name = hf_name.removeprefix(HF_PROJECTOR)
    if name == "queries":
        return tuple(f"{PROJECTOR}query_{i}" for i in (1, 2, 3, 4)) if projector == "hiwin" else (PROJECTOR + "query",)
    if match := re.fullmatch(r"projections\.(\dx)\.(linear\.(\w+)|embedding)", name):
        level, _, kind = match.groups()
        return (f"{PROJECTOR}features_{level}_projector.{kind}" if kind else f"{PROJECTOR}feature_{level}_embedding",)
    if match := re.fullmatch(r"attention\.[qkv]_proj\.(\w+)", name):
        return (f"{PROJECTOR}attn.in_proj_{match.group(1)}",)
    if name.startswith("upsampler."):
        return (UPSAMPLER + name.removeprefix("upsampler."),)
    return (PROJECTOR + RENAMED.get(name, re.sub("^attention", "attn", name)),)


def unused_tensors(config: "LlavaUhdConfig") -> list[UnusedTensor]:
    """Return the unused tensors that an original checkpoint of this model may hold."""
    projector, absent = re.escape(PROJECTOR), "1248"
    for level in config.projector.levels:
        absent = absent.replace(str(level), "")
    unused = [
        UnusedTensor(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "a table that is computed"),
        UnusedTensor(re.escape(TOWER) + r"embeddings\.position_ids", "a table that is computed"),
        UnusedTensor(r"model\.image_newline", "of LLaVA-NeXT's layout, which no LLaVA-UHD layout uses"),
    ]
    if config.tie_word_embeddings:
        unused.append(UnusedTensor(re.escape(HEAD), "tied to the embedding, which holds the same numbers", kept=False))
    if config.projector.type == "hiwin":
        clip = "a second CLIP inside the up-sampler that is never run"
        unused += [
            UnusedTensor(projector + r"upsampler\.model\.0\..*", clip, kept=False),
            UnusedTensor(projector + r"upsampler\.model\.1\..*", "the norm behind that second CLIP, never run"),
            UnusedTensor(projector + r"(query|kv_proj\.weight)", "the single-map path of the projector, never run"),
        ]
        if absent:
            unused.append(
                UnusedTensor(
                    projector + rf"(feature_[{absent}]x_embedding|features_[{absent}]x_projector\.(weight|bias))",
                    f"of a level that is not among the model's {config.projector.levels}",
                )
            )
    return unused


def same_shape(actual: Sequence[int], expected: Sequence[int]) -> bool:
    """Return whether shapes are equal, ignoring axes of length one."""
    return [side for side in actual if side != 1] == [side for side in expected if side != 1]


def split_tensors(tensors: Sequence[torch.Tensor], shapes: Sequence[Shape]) -> list[torch.Tensor]:
    """Concatenate tensor values and split them into other shapes. A single tensor is not copied."""
    if len(tensors) == len(shapes) == 1:
        return [tensors[0].reshape(shapes[0])]
    numbers = torch.cat([tensor.flatten() for tensor in tensors])
    parts = torch.split(numbers, [torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
