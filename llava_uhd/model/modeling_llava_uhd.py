"""LLaVA-UHD for transformers: packed views in, image tokens scattered into the text, any causal language model behind.

Shapes: B samples, I images, V views of all images, T image tokens of all images, E hidden size of the language model,
N views of one shape, H W their grid of patches, p patch side in pixels.
"""

import os
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_llava_uhd import AUTO_MAP, LlavaUhdConfig
from .custom_pyramid import CustomPyramid
from .hiwin import HiWinProjector
from .labels import ignore_images
from .layout import TokenGrid
from .perceiver import PerceiverResampler
from .projector import Projector, SpatiallyConstrainedResampler, UnshuffleMLP
from .view_groups import GroupedViews, group_views
from .vision_tower import adapt_tower, encode_pixels, patches_to_pixels

PROJECTORS: dict[str, type[Projector]] = {
    "hiwin": HiWinProjector,
    "resampler": SpatiallyConstrainedResampler,
    "perceiver": PerceiverResampler,
    "mlp": UnshuffleMLP,
}
# Inputs that the image processor makes of images; only the first step of a generation needs them.
IMAGE_INPUTS = ("pixel_values", "view_shapes", "num_views", "grids")
# Devices that the host does not wait for.
ASYNC_DEVICES = ("cuda", "meta")
# Name of the KV cache in model outputs and forward arguments: `cache` since transformers 5.24.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def token_grid(config: LlavaUhdConfig) -> TokenGrid:
    """Return the grid of tokens that the config's projector makes of a view."""
    if config.projector.type == "mlp":
        return TokenGrid(None, config.projector.unshuffle_factor, config.projector.input_level)
    return TokenGrid(query_grid=config.projector.query_grid)


def _check_count(is_image: torch.Tensor, num_features: int) -> None:
    """Check that a (B, length) mask has as many image tokens as there are features, on CUDA without waiting for it."""
    if is_image.device.type in ASYNC_DEVICES:
        torch._assert_async(is_image.sum() == num_features, f"the prompt has not {num_features} image tokens")
    elif (num_tokens := int(is_image.sum())) != num_features:
        raise _mismatch(num_tokens, num_features)


def _place(embeds: torch.Tensor, is_image: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
    """Put (T, E) features at the image tokens of (B, length, E) embeddings, in order."""
    return embeds.masked_scatter(is_image[..., None], image_features.to(embeds.device, embeds.dtype))


def _mismatch(num_tokens: int, num_features: int) -> ValueError:
    return ValueError(f"the prompt has {num_tokens} image tokens, but the images have {num_features} features")


def _one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of one argument: give one of them")
    return past_key_values if cache is None else cache


@dataclass
class LlavaUhdModelOutputWithPast(BaseModelOutputWithPast):  # type: ignore[misc]  # not followed, see pyproject.toml
    """Outputs of the base class, and `image_hidden_states`, the (T, E) image tokens, where images were given."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class LlavaUhdCausalLMOutputWithPast(CausalLMOutputWithPast):  # type: ignore[misc]  # likewise
    """Outputs of the base class, and `image_hidden_states`, the (T, E) image tokens, where images were given."""

    image_hidden_states: torch.Tensor | None = None


class LlavaUhdPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # not followed, see pyproject.toml
    """Base class: configuration, capabilities and the initialization of new weights."""

    config_class = LlavaUhdConfig
    config: LlavaUhdConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _no_split_modules = [
        "HiWinProjector",
        "SpatiallyConstrainedResampler",
        "PerceiverResampler",
        "JointBilateralUpsampler",
        "CustomPyramid",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projector | CustomPyramid):
            module.reset_parameters()

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Refuse vLLM's Transformers backend, which asks this before it loads a model.

        The backend tokenizes an image's separators itself and cuts the shapes of several images in the wrong places:
        it would answer, and wrongly.

        Raises:
            ValueError: always, naming the plug-in that serves the model exactly.
        """
        raise ValueError(
            "LLaVA-UHD is not served by vLLM's Transformers backend, whose answers would differ: "
            "pip install 'llava-uhd[vllm]' and leave --model-impl at auto"
        )

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set what is trained: all weights but the projector's fixed positions."""
        super().requires_grad_(requires_grad)
        for module in self.modules():
            if isinstance(module, Projector):
                module.requires_grad_(requires_grad)
        return self

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as the base class does, with the code beside the weights named in the config (trust_remote_code)."""
        if self._auto_class is not None:
            self.config.auto_map = dict(AUTO_MAP)
        checksums = os.path.join(save_directory, "checksums.json")
        if os.path.isfile(checksums):
            os.unlink(checksums)  # those of the weights that are replaced
        super().save_pretrained(save_directory, **kwargs)


class LlavaUhdModel(LlavaUhdPreTrainedModel):
    """Vision tower, projector and language model, without the head."""

    def __init__(self, config: LlavaUhdConfig):
        super().__init__(config)
        self.vision_tower = adapt_tower(AutoModel.from_config(config.vision_config), config.vision_feature_layer)
        self.multi_modal_projector = PROJECTORS[config.projector.type](
            config.projector, config.vision_config.hidden_size, config.text_config.hidden_size
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.token_grid = token_grid(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the language model."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the language model."""
        self.language_model.set_input_embeddings(value)

    def encode(self, patches: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode views of one shape: patches (N, H·W, 3·p·p) to features (N, C, H, W) and pixels (N, 3, H·p, W·p)."""
        pixels = patches_to_pixels(patches, shape, self.config.vision_config.patch_size)
        features = encode_pixels(self.vision_tower, pixels, self.config.vision_feature_layer)
        return features, pixels.to(features.device, features.dtype)

    def project_views(self, patches: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Compute the image tokens of views of one shape: patches (N, H·W, 3·p·p) to (N, tokens, E)."""
        tokens: torch.Tensor = self.multi_modal_projector(*self.encode(patches, shape))
        return tokens

    def group_views(
        self,
        num_patches: int,
        view_shapes: torch.Tensor,
        num_views: torch.Tensor,
        grids: torch.Tensor,
        device: torch.device | None = None,
    ) -> GroupedViews:
        """Group packed views by shape; see `view_groups.group_views`."""
        return group_views(num_patches, view_shapes, num_views, grids, self.token_grid, self.config.layout, device)

    @can_return_tuple  # type: ignore[untyped-decorator]  # not followed, see pyproject.toml
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        view_shapes: torch.Tensor,
        num_views: torch.Tensor,
        grids: torch.Tensor,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Compute the image tokens of every image, in the order in which they enter the sequence.

        Args:
            pixel_values: (patches of all views, 3·p·p), image after image, in each the slices, then the overview.
            view_shapes: (V, 2), rows and columns of patches of each view.
            num_views: (I,), views of each image.
            grids: (I, 2), columns and rows of slices of each image, zeros where it was not sliced. All three belong on
                the host, as tensors, arrays or lists: on a device they are read back, which waits for it.

        Returns:
            `pooler_output`: a list with one (tokens, E) tensor per image. With `return_dict=False` a tuple of it.

        Raises:
            ValueError: the patches do not add up to the view shapes, or the views to the images.
        """
        views = self.group_views(len(pixel_values), view_shapes, num_views, grids, pixel_values.device)
        tokens = self.image_tokens(pixel_values, views)
        return BaseModelOutputWithPooling(pooler_output=list(torch.split(tokens, views.tokens_per_image)))

    def image_tokens(self, pixel_values: torch.Tensor, views: GroupedViews) -> torch.Tensor:
        """Compute the image tokens of grouped views: (patches of all views, 3·p·p) to (T, E).

        All that depends on shapes is in `views`, so that this part compiles as one graph (`fullgraph=True`) and waits
        for no device.
        """
        if not views.groups:
            return pixel_values.new_zeros(0, self.config.text_config.hidden_size, dtype=self.dtype)
        encoded = [
            self.encode(pixel_values[group.patch_indices.to(pixel_values.device)], group.shape)
            for group in views.groups
        ]
        projected = self.multi_modal_projector(
            [features for features, _ in encoded], [pixels for _, pixels in encoded]
        )
        tokens = torch.cat([group.flatten(0, 1) for group in projected])
        return tokens[views.order.to(tokens.device)]

    @can_return_tuple  # type: ignore[untyped-decorator]  # not followed, see pyproject.toml
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        view_shapes: torch.Tensor | None = None,
        num_views: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> LlavaUhdModelOutputWithPast:
        """Compute the hidden states of the language model.

        Args:
            input_ids: (B, length), `image_token_id` wherever an image token belongs.
            inputs_embeds: (B, length, E) in place of `input_ids`. Where images are given too, they replace the
                embeddings of `image_token_id`; otherwise image tokens are in it already.
            pixel_values: patches of all views, with `view_shapes`, `num_views` and `grids` as in `get_image_features`;
                images in the order of their tokens over the whole batch.
            image_features: (T, E) image tokens in place of pixels, as returned by `get_image_features` before.
            cache: name of `past_key_values` since transformers 5.24; either works with every version.

        Raises:
            ValueError: the image tokens in the prompt are not as many as the features.
        """
        cache = _one_cache(past_key_values, cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if pixel_values is not None and image_features is not None:
            raise ValueError("pixel_values and image_features exclude each other")
        if pixel_values is not None:
            if view_shapes is None or num_views is None or grids is None:
                raise ValueError(f"pixel_values come with {', '.join(IMAGE_INPUTS[1:])}, of which some are missing")
            encoded = self.get_image_features(pixel_values, view_shapes, num_views, grids, return_dict=True)
            of_images = encoded.pooler_output
            image_features = torch.cat(of_images) if of_images else None
        if input_ids is not None:
            # Tokens after the prompt are the model's own: to look for images there would cost a wait at every step.
            is_prompt = cache is None or cache.get_seq_length() == 0
            if is_prompt or image_features is not None:
                inputs_embeds = self.embed_tokens(input_ids, image_features)
            else:
                inputs_embeds = self.get_input_embeddings()(input_ids)
        elif inputs_embeds is not None and image_features is not None:
            is_image = self.find_image_tokens(inputs_embeds)
            _check_count(is_image, len(image_features))
            inputs_embeds = _place(inputs_embeds, is_image, image_features)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: cache},
            return_dict=True,
            **kwargs,
        )
        return LlavaUhdModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )

    def embed_tokens(self, input_ids: torch.Tensor, image_features: torch.Tensor | None) -> torch.Tensor:
        """Embed (B, length) token ids and put the (T, E) features at the image tokens, in order; (B, length, E).

        On CUDA the number of image tokens is compared on the device, without waiting for it: a difference ends the
        process with an assertion. `generate` compares before.
        """
        is_image = torch.eq(input_ids, self.config.image_token_id)
        _check_count(is_image, 0 if image_features is None else len(image_features))
        # The image token may lie outside the vocabulary: any token does where a feature will be.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        return embeds if image_features is None else _place(embeds, is_image, image_features)

    def find_image_tokens(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Return where in (B, length, E) embeddings the embedding of the image token is; (B, length), bool.

        Raises:
            ValueError: the image token lies outside the vocabulary and has no embedding.
        """
        token, embeddings = self.config.image_token_id, self.get_input_embeddings()
        if token >= (size := self.config.text_config.vocab_size):
            raise ValueError(
                f"images beside inputs_embeds need an embedding of the image token, but its id is {token} and the "
                f"vocabulary has {size} tokens: call resize_token_embeddings({token + 1}) first"
            )
        placeholder = embeddings(torch.tensor(token, device=inputs_embeds.device))
        return torch.eq(inputs_embeds, placeholder.to(inputs_embeds.device, inputs_embeds.dtype)).all(dim=-1)


class LlavaUhdForConditionalGeneration(LlavaUhdPreTrainedModel, GenerationMixin):  # type: ignore[misc]  # likewise
    """The model with its language modeling head: `generate`, and a loss where labels are given."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LlavaUhdConfig):
        super().__init__(config)
        self.model = LlavaUhdModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_parts(
        cls, vision_tower: Any, language_model: Any, tokenizer: Any = None, **options: Any
    ) -> tuple["LlavaUhdForConditionalGeneration", Any]:
        """Build a model with a new projector from pretrained backbones; return it and its processor.

        See `assembly.from_parts`.
        """
        from .assembly import from_parts

        return from_parts(vision_tower, language_model, tokenizer, **options)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the language model."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the language model."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language modeling head."""
        return self.lm_head

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `LlavaUhdModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple  # type: ignore[untyped-decorator]  # not followed, see pyproject.toml
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values: torch.Tensor | None = None,
        view_shapes: torch.Tensor | None = None,
        num_views: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> LlavaUhdCausalLMOutputWithPast:
        """Compute logits, and the mean next-token loss where labels are given.

        See `LlavaUhdModel.forward` for the other arguments.

        Args:
            labels: (B, length) token ids; positions with label -100 are ignored, and so are the positions of images:
                `labels=input_ids.clone()` gives the loss of the text alone.
            logits_to_keep: number of last positions to compute logits for, 0 for all; or the positions themselves.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: _one_cache(past_key_values, cache)},
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            view_shapes=view_shapes,
            num_views=num_views,
            grids=grids,
            image_features=image_features,
            return_dict=True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            counts = None
            if pixel_values is not None and view_shapes is not None and num_views is not None and grids is not None:
                counts = self.model.group_views(len(pixel_values), view_shapes, num_views, grids).tokens_per_image
            if input_ids is None and inputs_embeds is not None and counts is not None:
                is_image = self.model.find_image_tokens(inputs_embeds).to(labels.device)
                input_ids = labels.masked_fill(is_image, self.config.image_token_id)
            asked = labels
            labels = ignore_images(
                labels,
                input_ids,
                self.config.image_token_id,
                self.config.slice_separator_id,
                self.config.row_separator_id,
                counts,
            )
            if kwargs.get("num_items_in_batch") is not None:
                # A trainer has counted the labels that were given.
                kept = labels[:, 1:].ne(-100).sum() / asked[:, 1:].ne(-100).sum().clamp(min=1)
                kwargs["num_items_in_batch"] = kept * torch.as_tensor(kwargs["num_items_in_batch"], device=kept.device)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlavaUhdCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare the inputs of a decoding step; images go with the step that reads the prompt."""
        images = {name: kwargs.pop(name, None) for name in (*IMAGE_INPUTS, "image_features")}
        cache = _one_cache(past_key_values, cache)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            **{CACHE_NAME: cache},
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        # With a cache the images are in it after the prompt; without one every step reads the whole prompt. A step
        # of embeddings has the images in them already.
        reads_prompt = is_first_iteration or cache is None or cache.get_seq_length() == 0
        if reads_prompt or not kwargs.get("use_cache", True):
            if inputs.get("input_ids") is not None:
                inputs.update(images)
                if is_first_iteration and (cache is None or cache.get_seq_length() == 0):
                    self._check_image_tokens(inputs["input_ids"], images)
            elif images["image_features"] is not None or images["pixel_values"] is not None:
                inputs.update(images)  # in place of the embeddings of image tokens
        return inputs

    def _check_image_tokens(self, input_ids: torch.Tensor, images: dict[str, Any]) -> None:
        """Compare the number of image tokens in a prompt with that of the features, which waits for the device once.

        Raises:
            ValueError: they differ.
        """
        num_features = 0
        if images["image_features"] is not None:
            num_features = len(images["image_features"])
        elif all(images[name] is not None for name in IMAGE_INPUTS):
            shapes = (images[name] for name in IMAGE_INPUTS[1:])
            num_features = sum(self.model.group_views(len(images["pixel_values"]), *shapes).tokens_per_image)
        if (num_tokens := int(torch.eq(input_ids, self.config.image_token_id).sum())) != num_features:
            raise _mismatch(num_tokens, num_features)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeat every sample for its beams. Images are packed, not one row a sample: encoded once, then repeated."""
        images = {name: model_kwargs.pop(name, None) for name in IMAGE_INPUTS}
        features = model_kwargs.pop("image_features", None)
        if expand_size > 1 and images["pixel_values"] is not None and len(images["pixel_values"]):
            features, images = torch.cat(self.get_image_features(**images, return_dict=True).pooler_output), {}
        if expand_size > 1 and features is not None:
            embeds = model_kwargs.get("inputs_embeds")
            if embeds is not None:
                is_image = self.model.find_image_tokens(embeds)
            else:
                assert input_ids is not None
                is_image = torch.eq(input_ids, self.config.image_token_id)
            tokens_per_sample = is_image.sum(dim=1).tolist()
            if sum(tokens_per_sample) != len(features):
                raise _mismatch(sum(tokens_per_sample), len(features))
            features = torch.cat(
                [sample.repeat(expand_size, 1) for sample in torch.split(features, tokens_per_sample)]
            )
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images, "image_features": features}


__all__ = ["LlavaUhdForConditionalGeneration", "LlavaUhdModel", "LlavaUhdPreTrainedModel"]
