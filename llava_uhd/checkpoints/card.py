"""Model card: the README.md of a checkpoint folder, with license and base models."""

from pathlib import Path
from typing import Any

from ..model.configuration_llava_uhd import LlavaUhdConfig
from .report import Report

# Substring of a language model's name: its license on the hub. LLaVA-UHD weights inherit this license.
LICENSES = {"vicuna": "llama2", "llama-2": "llama2", "qwen2": "apache-2.0"}
UNKNOWN = "other"
CLIP = "openai/clip-vit-large-patch14-336"

CARD = """\
---
license: {license}
library_name: transformers
pipeline_tag: image-text-to-text
{base_models}tags:
- llava-uhd
---

# {title}

LLaVA-UHD answers questions about images at their own resolution and aspect ratio. {origin}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
messages = [{{"role": "user", "content": [
    {{"type": "image", "image": "image.png"}}, {{"type": "text", "text": "What is written there?"}}
]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]))
```

| setting | value |
|---|---|
{settings}

Weights: {num_bytes:,} bytes.{report}

Papers: LLaVA-UHD v2 (arXiv 2412.13871), LLaVA-UHD (arXiv 2403.11703).
"""


CONVERTED = """\
These are the original weights
in HF format; the values are unchanged."""
TRAINED = "This model was trained\nwith the `llava-uhd` package."
REPORTED = " Key mapping and unused tensors: `released/report.json`."


def trained_card(config: LlavaUhdConfig, name: str, num_bytes: int, license: str) -> str:
    """Return the card of a model that was trained here.

    Args:
        config: config of the model.
        name: title of the card.
        num_bytes: size of the weights.
        license: license of the weights, as the hub names it.
    """
    settings = {
        "projector": config.projector.type,
        "levels": config.projector.levels,
        "query_grid": config.projector.query_grid,
        "layout": config.layout,
        "max_slices": config.max_slices,
        "language_model": config.text_config.model_type,
        "vision_tower": config.vision_config.model_type,
    }
    return CARD.format(
        license=license,
        base_models="",
        title=name,
        name=name,
        origin=TRAINED,
        settings=_table(settings),
        num_bytes=num_bytes,
        report="",
    )


def _table(settings: dict[str, Any]) -> str:
    return "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in settings.items())


def write_card(
    folder: Path, config: LlavaUhdConfig, original_config: dict[str, Any], license: str | None, report: Report
) -> None:
    """Write README.md.

    Args:
        folder: folder to write into.
        config: model config.
        original_config: config of the original checkpoint, which may name the language model.
        license: license identifier of the hub; None infers it from the language model's name, if possible.
        report: conversion report.
    """
    name = Path(report.out).name
    language_model = hub_name(str(original_config.get("_name_or_path", "")))
    base_models = [language_model] if language_model else []
    if config.vision_config.hidden_size == 1024 and config.vision_config.patch_size == 14:
        base_models.append(CLIP)
    (folder / "README.md").write_text(
        CARD.format(
            license=license or license_of(str(original_config.get("_name_or_path", ""))),
            base_models="base_model:\n" + "".join(f"- {base}\n" for base in base_models) if base_models else "",
            title=name,
            name=name,
            origin=CONVERTED,
            settings=_table(report.settings),
            num_bytes=report.num_bytes,
            report=REPORTED,
        ),
        encoding="utf-8",
    )


def license_of(language_model: str) -> str:
    """Return the license of weights built on a language model, `other` if its name matches no entry."""
    matches = (license for part, license in LICENSES.items() if part in language_model.lower())
    return next(matches, UNKNOWN)


def hub_name(name_or_path: str) -> str | None:
    """Return the value if it looks like a hub id: original configs often hold a private path instead."""
    is_id = name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~"))
    return name_or_path if is_id else None


def card_metadata(folder: Path) -> dict[str, str]:
    """Return the plain `key: value` lines of a card's YAML header."""
    lines = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1].splitlines()
    pairs = (line.partition(": ") for line in lines)
    return {key: value for key, separator, value in pairs if separator}
