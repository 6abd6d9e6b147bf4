"""Model factory of a recipe: a complete checkpoint, or pretrained backbones and an up-sampler."""

import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig

from ..loading import load_processor, resolve
from ..model.assembly import TOWERS, from_parts, initialize
from ..model.chat_templates import CHAT_TEMPLATES
from ..model.configuration_llava_uhd import LlavaUhdConfig, LlavaUhdProjectorConfig
from ..model.modeling_llava_uhd import PROJECTORS, LlavaUhdForConditionalGeneration, token_grid
from ..model.processing_llava_uhd import LlavaUhdProcessor
from ..model.pyramid import JBUPyramid
from ..model_folder import check_loaded, check_weight_checksums
from ..quantization import quantization_config
from .architectures import LANGUAGE_MODELS, VISION_TOWERS
from .recipe import ModelConfig, ModelRecipe, TuningRecipe, start_config

UPSAMPLER_FILE = "upsampler.safetensors"
CHECKSUM = "crc32"  # in the metadata of the up-sampler's file; none in those of earlier versions


def vision_config_of(name: str) -> dict[str, Any]:
    """Return a tower's config: one of `architectures`, or that of a folder or hub id of a tower or of a LLaVA-UHD."""
    if name in VISION_TOWERS and not Path(name).is_dir():
        return dict(VISION_TOWERS[name])
    config = AutoConfig.from_pretrained(resolve(name))
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        raise ValueError(f"{name} has no CLIP or SigLIP vision tower, but a {config.model_type}")
    return config.to_dict()


def text_config_of(name: str) -> dict[str, Any]:
    """Return a language model's config: one of `architectures`, or that of a folder or hub id."""
    if name in LANGUAGE_MODELS and not Path(name).is_dir():
        return dict(LANGUAGE_MODELS[name])
    return AutoConfig.from_pretrained(resolve(name)).to_dict()


def planned_config(model: ModelRecipe) -> LlavaUhdConfig:
    """Return the config of a recipe's model, without weights."""
    if model.start is not None:
        config = start_config(model.start)
        if has_new_projector(model):
            config.projector = LlavaUhdProjectorConfig(**asdict(model.config.projector))
            config.validate_values()
        return config
    assert model.language_model is not None and model.vision_tower is not None
    text = text_config_of(model.language_model)
    largest = max(model.config.slice_separator_id, model.config.row_separator_id)
    if largest >= text["vocab_size"]:
        raise ValueError(
            f"model: a separator's id is {largest}, but {model.language_model} has {text['vocab_size']} tokens: "
            "name slice_separator_id and row_separator_id"
        )
    return LlavaUhdConfig(
        architectures=["LlavaUhdForConditionalGeneration"],
        vision_config=vision_config_of(model.vision_tower),
        text_config=text,
        **_config_values(model),
        image_token_id=text["vocab_size"],
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )


def has_new_projector(model: ModelRecipe) -> bool:
    """Return True if the projector of `start` is replaced by one with another config."""
    return model.start is not None and "projector" in model.renew and model.config.projector != ModelConfig().projector


def _config_values(model: ModelRecipe) -> dict[str, Any]:
    """Return the values of the model's own config that a recipe gives."""
    return asdict(model.config)


def build_model(recipe: TuningRecipe) -> tuple[LlavaUhdForConditionalGeneration, LlavaUhdProcessor]:
    """Return the initial model of a run in float32, and its processor.

    Raises:
        ValueError: a part is missing, or does not fit the others.
    """
    torch.manual_seed(recipe.seed)
    if recipe.model.start is not None:
        model, processor = _read(recipe.model, None if recipe.lora is None else recipe.lora.quantize)
    else:
        model, processor = _put_together(recipe.model)
    if recipe.model.template is not None:
        processor.chat_template = CHAT_TEMPLATES[recipe.model.template]
    if has_new_projector(recipe.model):
        processor = _replace_projector(model, processor, planned_config(recipe.model))
    for part in recipe.model.renew:
        _reinitialize(model, part)
    if recipe.model.upsampler is not None:
        load_upsampler(model, recipe.model.upsampler)
    return model, processor


def _read(recipe: ModelRecipe, quantization: str | None) -> tuple[LlavaUhdForConditionalGeneration, LlavaUhdProcessor]:
    assert recipe.start is not None
    processor = load_processor(recipe.start)
    options: dict[str, Any] = {}
    if quantization not in (None, "none"):
        options["quantization_config"] = quantization_config("4bit", double_quantization=True)
    check_weight_checksums(Path(resolve(recipe.start)))
    model, info = LlavaUhdForConditionalGeneration.from_pretrained(
        resolve(recipe.start), dtype=torch.float32, output_loading_info=True, **options
    )
    check_loaded(model, info["missing_keys"], recipe.start)
    return model, processor


def _put_together(recipe: ModelRecipe) -> tuple[LlavaUhdForConditionalGeneration, LlavaUhdProcessor]:
    assert recipe.language_model is not None and recipe.vision_tower is not None
    planned_config(recipe)  # validate the recipe before loading any weights
    return from_parts(
        recipe.vision_tower,
        recipe.language_model,
        **_config_values(recipe),
        chat_template=recipe.template,
        dtype=torch.float32,
    )


def _replace_projector(
    model: LlavaUhdForConditionalGeneration, processor: LlavaUhdProcessor, config: LlavaUhdConfig
) -> LlavaUhdProcessor:
    """Give the model a projector of another config, keep up-sampler weights that fit; return the processor for it."""
    before = getattr(model.model.multi_modal_projector, "upsampler", None)
    model.config.projector = config.projector
    sizes = config.vision_config.hidden_size, config.text_config.hidden_size
    projector = PROJECTORS[config.projector.type](config.projector, *sizes)
    upsampler = getattr(projector, "upsampler", None)
    if before is not None and upsampler is not None:
        shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (before, upsampler)]
        if shapes[0] == shapes[1]:
            upsampler.load_state_dict(before.state_dict())
    model.model.multi_modal_projector = projector
    model.model.token_grid = token_grid(config)
    images = processor.image_processor
    replaced = LlavaUhdProcessor.from_config(
        model.config,
        processor.tokenizer,
        processor.chat_template,
        images.image_mean,
        images.image_std,
        processor.image_token,
    )
    replaced.image_processor = images
    return replaced


def _reinitialize(model: LlavaUhdForConditionalGeneration, part: str) -> None:
    projector = model.model.multi_modal_projector
    upsampler = getattr(projector, "upsampler", None)
    if part == "upsampler":
        if upsampler is None:
            raise ValueError(f"model.renew: a projector of type {model.config.projector.type} has no up-sampler")
        initialize(model, upsampler)
        return
    kept = {} if upsampler is None else {name: value.clone() for name, value in upsampler.state_dict().items()}
    initialize(model, projector)
    if upsampler is not None:
        upsampler.load_state_dict(kept)


def weights_checksum(weights: dict[str, torch.Tensor]) -> str:
    """Return the CRC-32 of names and values of tensors on the CPU, in eight hexadecimal digits."""
    crc = 0
    for name in sorted(weights):
        content = weights[name].contiguous().flatten().view(torch.uint8).numpy()
        crc = zlib.crc32(content.data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def read_upsampler(source: str) -> dict[str, torch.Tensor]:
    """Return the weights of stage 0 with the names of `JBUPyramid`.

    Args:
        source: folder of a run, its `upsampler.safetensors`, or the published `clip-large-jbu.ckpt`.

    Raises:
        ValueError: there is none.
    """
    path = Path(source).expanduser()
    path = path / UPSAMPLER_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no up-sampler {path}: stage 0 writes one, or name clip-large-jbu.ckpt")
    if path.suffix == ".safetensors":
        advice = "copy it anew, or run stage 0 again"
        try:
            with safe_open(path, "pt") as file:
                expected = (file.metadata() or {}).get(CHECKSUM)
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}): {advice}") from error
        if expected is not None and expected != weights_checksum(weights):
            raise ValueError(f"{path} is damaged (its tensors do not agree with their checksum {expected}): {advice}")
        return weights
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    return {key.removeprefix("upsampler."): value for key, value in state.items() if key.startswith("upsampler.")}


def load_upsampler(model: LlavaUhdForConditionalGeneration, source: str) -> None:
    """Load the weights of stage 0 into a model.

    Raises:
        ValueError: they do not fit its pyramid.
    """
    pyramid = getattr(model.model.multi_modal_projector, "upsampler", None)
    if not isinstance(pyramid, JBUPyramid):
        projector = model.config.projector
        raise ValueError(
            f"model.upsampler is {source}, but the projector has no JBU up-sampler: its type is {projector.type}, "
            f"its upsampler {projector.upsampler}"
        )
    weights = read_upsampler(source)
    expected = {key: tuple(value.shape) for key, value in pyramid.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if expected != found:
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ValueError(
            f"the up-sampler {source} has {len(found)} tensors and the model wants {len(expected)}; "
            f"{len(differing)} differ, {differing[0]} first: {found.get(differing[0])} and "
            f"{expected.get(differing[0])}; stage 0 with model.highest={pyramid.highest} fits"
        )
    pyramid.load_state_dict(weights)
