"""Verify a model folder: names, shapes, values, tokens, one forward pass, a fingerprint per module.

A fingerprint is a hash over names, dtypes, shapes and bytes of a module's tensors, sorted by name. It does not depend
on sharding, so copies can be compared.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from ..model.processing_llava_uhd import LlavaUhdProcessor
from .export import check_weights, list_weights, load_config
from .packaging import AUTO_CLASSES
from .tensors import TensorInfo, TensorReader, all_finite

# The first match is the tensor's module.
MODULES = (
    "model.vision_tower",
    "model.multi_modal_projector.upsampler",
    "model.multi_modal_projector",
    "model.language_model",
    "lm_head",
)
QUESTION = "What is shown?"
FINGERPRINT_DIGITS = 16


@dataclass
class Verification:
    """Verification result; `problems` is empty for a valid folder.

    Attributes:
        problems: error messages, each with its location.
        fingerprints: hash of the weights by module.
        parameters: number of parameters by module.
        dtypes: dtypes of the weights.
        forward: number of image tokens of the test image, and the model's next token after it.
    """

    problems: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    dtypes: list[str] = field(default_factory=list)
    forward: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"ok": not self.problems, **asdict(self)}


def verify_checkpoint(folder: Path) -> Verification:
    """Check an HF folder.

    Raises:
        ValueError: it is not in HF format, a file is damaged, or names or shapes are not those of its config.
    """
    config = load_config(folder)
    reader = TensorReader()
    weights = list_weights(folder, reader)
    check_weights(weights, config)
    found = Verification(dtypes=sorted({str(info.dtype).removeprefix("torch.") for info in weights.values()}))
    _fingerprint(weights, reader, found)
    _check_tokens(folder, config, found)
    if not found.problems:
        _run(folder, found)
    return found


def module_of(name: str) -> str:
    """Return the fingerprinted module that a tensor belongs to."""
    return next(module for module in MODULES if name.startswith(module + "."))


def _fingerprint(weights: dict[str, TensorInfo], reader: TensorReader, found: Verification) -> None:
    """Hash every tensor and check for NaN and infinity."""
    hashes = {module: hashlib.sha256() for module in MODULES}
    for name in sorted(weights):
        tensor, module = reader.read(weights[name]).contiguous(), module_of(name)
        hashes[module].update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashes[module].update(tensor.flatten().view(torch.uint8).numpy().data)
        found.parameters[module] = found.parameters.get(module, 0) + tensor.numel()
        if not all_finite(tensor):
            found.problems.append(f"{name} holds NaN or infinity")
    found.fingerprints = {
        module: hashes[module].hexdigest()[:FINGERPRINT_DIGITS] for module in MODULES if module in found.parameters
    }


def _check_tokens(folder: Path, config: LlavaUhdConfig, found: Verification) -> None:
    """Check tokenizer and special token ids against the config."""
    processor = LlavaUhdProcessor.from_pretrained(folder)
    tokenizer, vocab_size = processor.tokenizer, config.text_config.vocab_size
    if processor.image_token_id != config.image_token_id:
        found.problems.append(
            f"the tokenizer's id of {processor.image_token} is {processor.image_token_id}, "
            f"the config says {config.image_token_id}"
        )
    for name in ("slice_separator_id", "row_separator_id"):
        if (expected := getattr(config, name)) >= vocab_size or getattr(processor, name) != expected:
            found.problems.append(
                f"{name} is {expected} in the config and {getattr(processor, name)} in the processor, "
                f"of a vocabulary of {vocab_size}"
            )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (token := getattr(tokenizer, name)) is not None and token >= vocab_size:
            found.problems.append(f"the tokenizer's {name} is {token}, beyond the vocabulary of {vocab_size}")
    if (layout := processor.layout) != config.layout:
        found.problems.append(f"the layout is {config.layout!r} in the config and {layout!r} in the processor")
    if config.auto_map is not None and (strange := config.auto_map.keys() ^ AUTO_CLASSES.keys()):
        found.problems.append(f"auto_map should name {', '.join(AUTO_CLASSES)}; differing: {', '.join(strange)}")


def _run(folder: Path, found: Verification) -> None:
    """Load the model with `from_pretrained` and run it once on a generated image."""
    model, info = LlavaUhdForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    found.problems += [f"loading: {kind} {', '.join(map(str, keys))}" for kind, keys in info.items() if keys]
    processor = LlavaUhdProcessor.from_pretrained(folder)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=test_picture(), text=prompt, return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**inputs, logits_to_keep=1).logits[0, -1].float()
    if not bool(logits.isfinite().all()):
        found.problems.append("the forward pass gives logits that are NaN or infinite")
    if model.config.tie_word_embeddings and model.lm_head.weight is not model.get_input_embeddings().weight:
        found.problems.append("the config ties the head to the embedding, but the model has two")
    tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    found.forward = {
        "image_tokens": tokens,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "next_token_id": int(logits.argmax()),
        "next_token_logit": round(float(logits.max()), 3),
    }


def test_picture() -> Image.Image:
    """Return a deterministic image of two slices."""
    width, height = 500, 240
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, red.rotate(180)))
