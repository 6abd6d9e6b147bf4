"""Build a model from pretrained backbones: a CLIP or SigLIP tower, any causal language model, its tokenizer.

    model, processor = LlavaUhdForConditionalGeneration.from_parts(
        vision_tower="google/siglip-so400m-patch14-384", language_model="Qwen/Qwen3-0.6B"
    )

The projector between them is new and is to be trained. Everything else follows from the parts: the image token and the
separators from the tokenizer, the normalization of images from the tower, the end of an answer and the chat template
from the language model.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionModel,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from .chat_templates import CHAT_TEMPLATES, flattened
from .configuration_llava_uhd import HEAD_SIZE, LlavaUhdConfig, LlavaUhdProjectorConfig
from .layout import LayoutName
from .modeling_llava_uhd import LlavaUhdForConditionalGeneration
from .processing_llava_uhd import LlavaUhdProcessor
from .vision_tower import adapt_tower

TOWERS: dict[str, type[PreTrainedModel]] = {
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
SEPARATORS = {"slice_separator_id": ",", "row_separator_id": "\n"}
HEAD_SIZES = (HEAD_SIZE, 96, 80, 64, 48, 32, 16, 8, 4)
PROBE_LENGTH = 8  # tokens by which the put-together language model is compared with the given one


def from_parts(
    vision_tower: PreTrainedModel | str,
    language_model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    *,
    projector: LlavaUhdProjectorConfig | dict[str, Any] | None = None,
    layout: LayoutName = "stitched",
    max_slices: int = 7,
    slice_grid: Sequence[int] | None = None,
    pad_to_square: bool = False,
    pad_to_grid: bool = False,
    letter_height: int | None = None,
    vision_feature_layer: int = -2,
    chat_template: str | None = None,
    image_token: str = "<image>",
    slice_separator_id: int | None = None,
    row_separator_id: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[LlavaUhdForConditionalGeneration, LlavaUhdProcessor]:
    """Return a model with a new projector, and its processor.

    Args:
        vision_tower: CLIP or SigLIP vision model (or the whole CLIP or SigLIP), or its folder or hub id.
        language_model: causal language model of transformers, or its folder or hub id. The parts are used, not copied.
        tokenizer: tokenizer of the language model, or its folder or hub id; None if the language model is a name.
        projector: settings of the projector, see `LlavaUhdProjectorConfig`.
        layout: order of an image's tokens, `stitched`, `sequential` or `unseparated`.
        max_slices: most slices per image.
        slice_grid: (columns, rows) that every image is cut into; None to choose them by the image.
        pad_to_square: whether to pad images to squares before slicing.
        pad_to_grid: whether to pad images so that every slice is a square; see `plan_slices`.
        letter_height: height in pixels to which the letters of images are brought; None for their own resolution.
        vision_feature_layer: hidden state of the tower that is used.
        chat_template: a name of `CHAT_TEMPLATES` or Jinja; None for the tokenizer's own, with images in it.
        image_token: placeholder of an image in a prompt.
        slice_separator_id: ordinary token after a slice; None for the tokenizer's comma.
        row_separator_id: ordinary token after a row; None for the tokenizer's newline.
        image_mean: mean of each channel that the tower was trained with; None for that of its kind.
        image_std: deviation of each channel, likewise.
        dtype: type of all weights; None for the language model's own.

    Raises:
        ValueError: a part is of another kind, or the parts do not fit one another.
    """
    if tokenizer is None and isinstance(language_model, str):
        tokenizer = language_model
    if tokenizer is None:
        raise ValueError("a language model that is given as an object comes with its tokenizer: name tokenizer")
    if isinstance(tokenizer, str):
        tokenizer = import_module("llava_uhd.checkpoints.tokenizers").read_tokenizer(tokenizer)
    assert not isinstance(tokenizer, str) and tokenizer is not None
    text_config = (
        AutoConfig.from_pretrained(language_model) if isinstance(language_model, str) else language_model.config
    )
    if not isinstance(vision_tower, str):
        vision_tower = _tower_of(vision_tower)
    vision_config = _vision_config(vision_tower)
    ids = {"slice_separator_id": slice_separator_id, "row_separator_id": row_separator_id}
    separators = {
        name: separator_id(tokenizer, SEPARATORS[name], name) if token_id is None else token_id
        for name, token_id in ids.items()
    }
    tokenizer.add_tokens([image_token], special_tokens=True)
    tokenizer.padding_side = "left"  # what is generated stands to the right of every prompt of a batch
    config = LlavaUhdConfig(
        architectures=["LlavaUhdForConditionalGeneration"],
        vision_config=vision_config,
        text_config=text_config,
        projector=_projector_config(projector, text_config.hidden_size),
        layout=layout,
        max_slices=max_slices,
        slice_grid=slice_grid,
        pad_to_square=pad_to_square,
        pad_to_grid=pad_to_grid,
        letter_height=letter_height,
        vision_feature_layer=vision_feature_layer,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token),
        tie_word_embeddings=bool(text_config.tie_word_embeddings),
        slice_separator_id=separators["slice_separator_id"],
        row_separator_id=separators["row_separator_id"],
    )
    template = chat_template
    if template is None and tokenizer.chat_template is not None:
        template = flattened(tokenizer.chat_template, image_token)
    processor = LlavaUhdProcessor.from_config(config, tokenizer, template, image_mean, image_std, image_token)
    model = _model(config, vision_tower, language_model, dtype)
    model.generation_config = _generation_config(model, tokenizer, chat_template)
    return model, processor


def separator_id(tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> int:
    """Return the token of a separator's text in the middle of other text.

    Raises:
        ValueError: the tokenizer has no token of its own for it.
    """
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a" + text, add_special_tokens=False)["input_ids"]
    if len(ids) != len(before) + 1 or tokenizer.decode(ids[-1:]) != text:
        raise ValueError(f"the tokenizer has no token of its own for {text!r}: name {name}")
    return int(ids[-1])


def initialize(model: PreTrainedModel, part: nn.Module) -> None:
    """Fill a part with random weights by the model's rules; children first, since a parent's rules overrule theirs."""
    for parameter in part.parameters():
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    for child in reversed(list(part.modules())):
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()
        model._init_weights(child)


def _tower_of(model: PreTrainedModel) -> PreTrainedModel:
    """The vision tower itself, of a tower or of a whole CLIP or SigLIP."""
    for candidate in (model, getattr(model, "vision_model", None)):
        if isinstance(candidate, tuple(TOWERS.values())):
            return candidate
    towers = " or ".join(cls.__name__ for cls in TOWERS.values())
    raise ValueError(f"vision_tower must be a {towers}, got {type(model).__name__}")


def _vision_config(tower: PreTrainedModel | str) -> Any:
    config = AutoConfig.from_pretrained(tower) if isinstance(tower, str) else tower.config
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        raise ValueError(f"{tower} has no CLIP or SigLIP vision tower, but a {config.model_type}")
    return config


def _projector_config(
    projector: LlavaUhdProjectorConfig | dict[str, Any] | None, hidden_size: int
) -> LlavaUhdProjectorConfig:
    """The projector's config, with a number of heads that divides the language model's hidden size."""
    if isinstance(projector, LlavaUhdProjectorConfig):
        return projector
    settings = dict(projector or {})
    if settings.get("num_attention_heads") is None and settings.get("type", "hiwin") != "mlp":
        size = next((size for size in HEAD_SIZES if hidden_size % size == 0), None)
        if size != HEAD_SIZE and size is not None:
            settings["num_attention_heads"] = hidden_size // size
    return LlavaUhdProjectorConfig(**settings)


def _model(
    config: LlavaUhdConfig,
    vision_tower: PreTrainedModel | str,
    language_model: PreTrainedModel | str,
    dtype: torch.dtype | None,
) -> LlavaUhdForConditionalGeneration:
    try:
        with torch.device("meta"):
            model = LlavaUhdForConditionalGeneration(config)
    except AttributeError as error:
        kind = config.text_config.model_type
        raise ValueError(
            f"a language model of type {kind!r} ties its head to another layer than embed_tokens"
        ) from error
    # Read one after another, each taking the place of its counterpart without memory.
    if isinstance(language_model, str):
        language_model = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype or "auto")
    dtype = dtype or language_model.dtype
    head = language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(f"the head of {type(language_model).__name__} must be a linear layer without a bias")
    model.model.language_model, model.lm_head = language_model.base_model, head
    if isinstance(vision_tower, str):
        vision_tower = TOWERS[config.vision_config.model_type].from_pretrained(vision_tower, dtype=dtype)
    model.model.vision_tower = adapt_tower(vision_tower, config.vision_feature_layer)
    projector = model.model.multi_modal_projector
    projector.to_empty(device=head.weight.device)
    initialize(model, projector)
    model.to(dtype)
    config.dtype = dtype
    model.generation_config = language_model.generation_config
    _check_language_model(model, language_model)
    return model


@torch.no_grad()
def _check_language_model(model: LlavaUhdForConditionalGeneration, language_model: PreTrainedModel) -> None:
    """Check that nothing of the language model is left outside its layers and its head, such as a scale of logits."""
    vocab_size = model.config.text_config.vocab_size
    ids = torch.arange(PROBE_LENGTH, device=model.lm_head.weight.device)[None] % vocab_size
    states = [(part, part.training) for part in (model, language_model)]
    for part, _ in states:
        part.eval()
    expected = language_model(input_ids=ids).logits
    logits = model.lm_head(model.model.language_model(input_ids=ids).last_hidden_state)
    for part, was_training in states:
        part.train(was_training)
    if logits.shape != expected.shape or not torch.equal(logits, expected):
        raise ValueError(
            f"{type(language_model).__name__} changes its logits after the head, which this model does not: "
            "it would answer otherwise than the language model does"
        )


def _generation_config(
    model: LlavaUhdForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> GenerationConfig:
    """Greedy decoding to the tokens that end an answer, by the template and by the language model."""
    ends: list[int] = []
    if chat_template == "qwen" or chat_template == CHAT_TEMPLATES["qwen"]:
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        if end is None or end == tokenizer.unk_token_id:
            raise ValueError("the chat template qwen ends answers with <|im_end|>, which the tokenizer does not have")
        ends.append(end)
    if chat_template != "qwen":
        for end in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
            ends += end if isinstance(end, list) else [] if end is None else [end]
    unique = list(dict.fromkeys(ends))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=unique[0] if len(unique) == 1 else unique or None,
        pad_token_id=tokenizer.pad_token_id,
    )
