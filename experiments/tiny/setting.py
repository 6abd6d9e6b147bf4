"""Sizes of the model and phases of its training, read from `plan.yaml`, and the model's configuration."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from llava_uhd.model.configuration_llava_uhd import LlavaUhdConfig

from ..tiny_v1.tokenizer import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, VOCABULARY_SIZE, byte_id
from .locations import location_tokens

PLAN = Path(__file__).parent / "plan.yaml"
CHOICES = {
    "kind": ("tower", "vision", "reader", "frozen", "joint"),
    "families": ("all", "half", "wheel"),
    "named": ("cells", "slots"),
}


@dataclass(frozen=True)
class Setting:
    """Sizes of the model.

    Attributes:
        view_size: side of a view in pixels. `patch_size`: side of a patch.
        cells: rows and columns of the cells of a patch whose characters the tower's first phases name.
        query_grid: a view gives `query_grid`² tokens.
        max_slices: most slices of an image.
        letter_height: height in pixels to which the letters of pages are brought; None for their own size.
        slots: characters that the code of one token holds, half of them in the upper half of its window; `width` is
            a multiple of it.
        width: hidden size of the language model. `vision_width`: of the tower.
        rope_theta: base of the rotary positions. At a distance of a page, channels of a short wavelength say nothing
            about content; with the usual 10,000 these are more than half of a head's.
        context: most tokens of a sequence.
    """

    view_size: int = 224
    patch_size: int = 14
    cells: tuple[int, int] = (2, 5)
    query_grid: int = 16
    max_slices: int = 12
    letter_height: int | None = 11
    slots: int = 6
    width: int = 288
    text_layers: int = 6
    text_heads: int = 6
    key_value_heads: int = 3
    intermediate: int = 512
    vision_width: int = 256
    vision_layers: int = 5
    vision_heads: int = 8
    levels: tuple[int, ...] = (1, 2)
    context: int = 8192
    rope_theta: float = 1e5

    def __post_init__(self) -> None:
        if self.width % self.slots or self.width % self.text_heads or self.slots % 2:
            raise ValueError(
                f"width must be a multiple of slots, which are even, and of text_heads, got {self.width}, "
                f"{self.slots} and {self.text_heads}"
            )


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        name: name of the phase in log and folder. `kind`: `tower`, `vision`, `reader`, `frozen` (the
            language model on drawn pages, with the vision half as it is) or `joint`.
        steps: optimizer steps.
        tokens: size of a step: patches for `tower` and `vision`, positions of the sequences, padding included, for
            the others.
        rate: peak of the language model's learning rate, or of the projector's. `tower_rate`: of the tower's.
        cosine: part of the rate's cosine, from 0 to 1, that the phase covers.
        views: most slices of a page.
        earlier: part of the pages that the first generator draws; see `earlier.py`.
        scribble: part of the other pages that are random characters.
        print: smallest and largest print in pixels as the model sees it.
        families: `all` font families of the machine, those of the `wheel` alone, or of `half` of the pages alone.
        crops: views of a page in `tower`. `named`: what is named there, the character on each of the `cells` of a
            patch alone, or the characters in the `slots` of the windows besides.
        pointing, reading: weights of the losses of looking at the right token and of naming its characters.
        continued: part of the pages about which no question is asked, but beginnings of printed text are to be
            continued: nearly every character of such an answer teaches to look.
        symbols: part of the pages of `frozen` and `joint` that are given as codes, so that the language model keeps
            its skill.
        compared: part of the pages that are short lists and charts, whose rows are compared, counted and put in order.
            `rendered`: the part of these that is drawn; the others are codes, which are cheap to practice with.
            `lists`: lists of numbers without a page after each of them; see `comparisons.py`.
        questions: most questions a page.
        moved: part of the places in answers that are a quarter of a window beside the right one; see `locations.py`.
        doubted: True teaches to decline answers that would be wrong; see `doubt.py`.
        blanks: part of the pages whose blank tokens stay in the sequence. Of three in four tokens a language model
            learns little more than that they are blank; without them the others keep their positions.
    """

    name: str
    kind: str
    steps: int
    tokens: int
    rate: float = 2e-3
    tower_rate: float = 1e-3
    cosine: tuple[float, float] = (0.0, 1.0)
    views: int = 12
    earlier: float = 0.0
    scribble: float = 0.0
    print: tuple[float, float] = (8.5, 26.0)
    families: str = "all"
    crops: int = 16
    named: str = "cells"
    pointing: float = 0.3
    reading: float = 0.5
    continued: float = 0.0
    symbols: float = 0.0
    compared: float = 0.0
    rendered: float = 0.0
    lists: int = 0
    questions: int = 10
    moved: float = 0.0
    doubted: bool = False
    blanks: float = 1.0

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Plan:
    """The model and its phases in order."""

    setting: Setting = field(default_factory=Setting)
    phases: tuple[Phase, ...] = ()


def load_plan(path: Path = PLAN, shorten: int = 1) -> Plan:
    """Read a plan.

    Args:
        path: YAML file with `setting` and `phases`.
        shorten: divides all steps, to try things out.

    Raises:
        ValueError: a name is unknown.
    """
    values = yaml.safe_load(path.read_text())
    phases = [_build(Phase, each, f"{path}, phase {each.get('name')}") for each in values["phases"]]
    shortened = tuple(
        Phase(**{**vars(phase), "steps": max(phase.steps // shorten, 1), "cosine": tuple(phase.cosine)})
        for phase in phases
    )
    setting = dict(values.get("setting", {}))
    if "places" in setting:
        setting["slots"] = setting.pop("places")  # its former name
    return Plan(_build(Setting, setting, f"{path}, setting"), shortened)


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    unknown = set(values) - {each.name for each in fields(kind)}
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def build_config(setting: Setting) -> LlavaUhdConfig:
    """Configuration of the model; the tokens' ids are those of `tiny_v1.tokenizer`."""
    text = {
        "model_type": "llama",
        "hidden_size": setting.width,
        "intermediate_size": setting.intermediate,
        "num_hidden_layers": setting.text_layers,
        "num_attention_heads": setting.text_heads,
        "num_key_value_heads": setting.key_value_heads,
        "max_position_embeddings": setting.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": setting.rope_theta},
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY_SIZE + len(location_tokens(setting.query_grid, setting.max_slices)),
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": setting.vision_width,
        "intermediate_size": 4 * setting.vision_width,
        "num_hidden_layers": setting.vision_layers,
        "num_attention_heads": setting.vision_heads,
        "image_size": setting.view_size,
        "patch_size": setting.patch_size,
        "hidden_act": "gelu",
    }
    projector = {
        "type": "hiwin",
        "levels": list(setting.levels),
        "upsampler": "jbu" if len(setting.levels) > 1 else "none",
        "query_grid": setting.query_grid,
        "num_attention_heads": setting.text_heads,
        "bin_embedding": True,
        "aligned_windows": True,
    }
    return LlavaUhdConfig(
        vision_config=vision,
        text_config=text,
        projector=projector,
        layout="stitched",
        image_token_id=IMAGE_ID,
        slice_separator_id=byte_id(","),
        row_separator_id=byte_id("\n"),
        max_slices=setting.max_slices,
        pad_to_grid=True,
        letter_height=setting.letter_height,
        # No layer is built that is not used.
        vision_feature_layer=-1,
    )
