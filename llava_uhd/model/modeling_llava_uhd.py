"""LLaVA-UHD for transformers: packed views in, image tokens into the text, any causal language model behind.

Shapes: B samples, I images, V views of all images, T image tokens of all images, E channels of the language model.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

from .attention import sincos_position_embedding
from .configuration_llava_uhd import LlavaUhdConfig
from .hiwin import HiWinProjector, LevelProjection
from .layout import TokenGrid
from .packing import unpack
from .pyramid import JointBilateralUpsampler
from .resampler import SpatiallyConstrainedResampler, UnshuffleMLP
from .vision_tower import encode_views, patches_to_pixels

PROJECTORS = {"hiwin": HiWinProjector, "resampler": SpatiallyConstrainedResampler, "mlp": UnshuffleMLP}
# What the image processor makes of images; only the first step of a generation needs it.
IMAGE_INPUTS = ("pixel_values", "view_shapes", "num_views", "grids")


def token_grid(config: LlavaUhdConfig) -> TokenGrid:
    """How many tokens the config's projector makes of a view."""
    if config.projector.type == "mlp":
        return TokenGrid(query_grid=None, unshuffle_factor=config.projector.unshuffle_factor)
    return TokenGrid(query_grid=config.projector.query_grid)


def _mismatch(num_tokens: int, num_features: int) -> ValueError:
    return ValueError(f"the prompt has {num_tokens} image tokens, but the images have {num_features} features")


@dataclass
class LlavaUhdModelOutputWithPast(BaseModelOutputWithPast):
    """Attributes beyond the base: `image_hidden_states`, the (T, E) image tokens, where images were given."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class LlavaUhdCausalLMOutputWithPast(ModelOutput):
    """`logits` (B, length, vocabulary), `loss` where labels were given, and what the language model returns."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class LlavaUhdPreTrainedModel(PreTrainedModel):
    config_class = LlavaUhdConfig
    config: LlavaUhdConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _no_split_modules = ["HiWinProjector", "SpatiallyConstrainedResampler", "JointBilateralUpsampler"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the published code: truncated normal, fixed sine-cosine positions, a level's embedding from zero."""
        super()._init_weights(module)
        if isinstance(module, HiWinProjector | SpatiallyConstrainedResampler):
            channels = module.proj.shape[0]
            initialization.trunc_normal_(module.queries, std=0.02)
            initialization.normal_(module.proj, std=channels**-0.5)
            initialization.copy_(module.positions, sincos_position_embedding(channels, module.query_grid))
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    initialization.trunc_normal_(layer.weight, std=0.02)
                    if layer.bias is not None:
                        initialization.zeros_(layer.bias)
        elif isinstance(module, LevelProjection):
            initialization.zeros_(module.embedding)
        elif isinstance(module, JointBilateralUpsampler):
            initialization.zeros_(module.range_temp)
            initialization.ones_(module.sigma_spatial)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As the base class, and says which class of the code beside the weights is which (trust_remote_code)."""
        if self._auto_class is not None:
            self.config.auto_map = {
                "AutoConfig": "configuration_llava_uhd.LlavaUhdConfig",
                "AutoModel": "modeling_llava_uhd.LlavaUhdModel",
                "AutoModelForImageTextToText": "modeling_llava_uhd.LlavaUhdForConditionalGeneration",
            }
        super().save_pretrained(save_directory, **kwargs)


class LlavaUhdModel(LlavaUhdPreTrainedModel):
    """Vision tower, projector and language model, without the head."""

    def __init__(self, config: LlavaUhdConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = PROJECTORS[config.projector.type](
            config.projector, config.vision_config.hidden_size, config.text_config.hidden_size
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.token_grid = token_grid(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_group(self, patches: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the projector takes of views of one shape: patches (N, H·W, 3·p·p) to features and pixels."""
        features = encode_views(self.vision_tower, patches, shape, self.config.vision_feature_layer)
        pixels = patches_to_pixels(patches, shape, self.config.vision_config.patch_size)
        return features, pixels.to(features.device, features.dtype)

    def project_views(self, patches: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The tokens of views of one shape: patches (N, H·W, 3·p·p) to (N, tokens, E)."""
        return self.multi_modal_projector(*self.encode_group(patches, shape))

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        view_shapes: torch.Tensor,
        num_views: torch.Tensor,
        grids: torch.Tensor,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """The tokens of every image, in the order in which they enter the sequence.

        Args:
            pixel_values: (patches of all views, 3·p·p), image after image, in each the slices, then the overview.
            view_shapes: (V, 2), rows and columns of patches of each view.
            num_views: (I,), views of each image.
            grids: (I, 2), columns and rows of slices of each image, zeros where it was not cut.

        Returns:
            `pooler_output`: a list with one (tokens, E) tensor per image.

        Raises:
            ValueError: the patches do not add up to the view shapes, or the views to the images.
        """
        packing = unpack(len(pixel_values), view_shapes, num_views, grids, self.token_grid, self.config.layout)
        encoded = [
            self.encode_group(pixel_values[group.rows.to(pixel_values.device)], group.shape)
            for group in packing.groups
        ]
        if isinstance(self.multi_modal_projector, HiWinProjector):
            of_groups = self.multi_modal_projector([f for f, _ in encoded], [p for _, p in encoded])
        else:
            of_groups = [self.multi_modal_projector(*of_group) for of_group in encoded]
        tokens = torch.cat([of_group.flatten(0, 1) for of_group in of_groups])
        in_order = tokens[packing.order.to(tokens.device)]
        return BaseModelOutputWithPooling(pooler_output=list(in_order.split(packing.tokens_of_image)))

    @can_return_tuple
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
        **kwargs: Any,
    ) -> LlavaUhdModelOutputWithPast:
        """The language model's hidden states.

        Args:
            input_ids: (B, length), `image_token_id` wherever an image token belongs.
            inputs_embeds: (B, length, E) in place of `input_ids`, image tokens already in it.
            pixel_values: with `view_shapes`, `num_views` and `grids` as in `get_image_features`, images in the order
                of their tokens over the whole batch.
            image_features: (T, E) image tokens in place of pixels, as `get_image_features` gave them before.

        Raises:
            ValueError: the image tokens in the prompt are not as many as the features.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if pixel_values is not None and image_features is not None:
            raise ValueError("pixel_values and image_features exclude each other")
        if pixel_values is not None:
            if view_shapes is None or num_views is None or grids is None:
                raise ValueError(f"pixel_values come with {', '.join(IMAGE_INPUTS[1:])}, of which some are missing")
            image_features = torch.cat(
                self.get_image_features(pixel_values, view_shapes, num_views, grids).pooler_output
            )
        if input_ids is not None:
            # Tokens after the prompt are the model's own: to look for images there would cost a wait at every step.
            is_prompt = past_key_values is None or past_key_values.get_seq_length() == 0
            if is_prompt or image_features is not None:
                inputs_embeds = self.embed_tokens(input_ids, image_features)
            else:
                inputs_embeds = self.get_input_embeddings()(input_ids)
        elif image_features is not None:
            raise ValueError("images go with input_ids: where inputs_embeds are given, they must be in them already")
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return LlavaUhdModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )

    def embed_tokens(self, input_ids: torch.Tensor, image_features: torch.Tensor | None) -> torch.Tensor:
        """(B, length) and (T, E) to (B, length, E): the features take the places of the image tokens, in order."""
        is_image = torch.eq(input_ids, self.config.image_token_id)
        num_features = 0 if image_features is None else len(image_features)
        if (num_tokens := int(is_image.sum())) != num_features:
            raise _mismatch(num_tokens, num_features)
        # The image token may lie outside the vocabulary: any token serves where a feature will stand.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if image_features is None:
            return embeds
        return embeds.masked_scatter(is_image[..., None], image_features.to(embeds.device, embeds.dtype))


class LlavaUhdForConditionalGeneration(LlavaUhdPreTrainedModel, GenerationMixin):
    """The model with its language-model head: `generate`, and a loss where labels are given."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LlavaUhdConfig):
        super().__init__(config)
        self.model = LlavaUhdModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `LlavaUhdModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
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
        **kwargs: Any,
    ) -> LlavaUhdCausalLMOutputWithPast:
        """Logits, and the mean next-token loss over `labels` (B, length), -100 where nothing is asked for.

        See `LlavaUhdModel.forward` for the images.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            view_shapes=view_shapes,
            num_views=num_views,
            grids=grids,
            image_features=image_features,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlavaUhdCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        images = {name: kwargs.pop(name, None) for name in (*IMAGE_INPUTS, "image_features")}
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, is_first_iteration=is_first_iteration, **kwargs
        )
        # With a cache the images are in it after the first step; without one every step sees the whole prompt.
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(images)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeats every sample for its beams. Images are packed, not one row a sample: encoded once, then repeated."""
        images = {name: model_kwargs.pop(name, None) for name in IMAGE_INPUTS}
        features = model_kwargs.pop("image_features", None)
        if expand_size > 1 and images["pixel_values"] is not None:
            features, images = torch.cat(self.get_image_features(**images).pooler_output), {}
        if expand_size > 1 and features is not None:
            assert input_ids is not None
            tokens_of_sample = torch.eq(input_ids, self.config.image_token_id).sum(dim=1).tolist()
            if sum(tokens_of_sample) != len(features):
                raise _mismatch(sum(tokens_of_sample), len(features))
            features = torch.cat([sample.repeat(expand_size, 1) for sample in features.split(tokens_of_sample)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images, "image_features": features}


__all__ = ["LlavaUhdForConditionalGeneration", "LlavaUhdModel", "LlavaUhdPreTrainedModel"]
