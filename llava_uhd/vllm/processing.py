"""Multimodal processor: images by the package's own image processor, placeholders by its own layout.

Each image is an item of its own with its patches, view shapes, number of views and grid, so vLLM caches images one by
one and batches any of them.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalDataDict, MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
    TimingContext,
)

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.images import decode_image
from ..model.modeling_llava_uhd import IMAGE_INPUTS
from ..model.processing_llava_uhd import LlavaUhdProcessor
from ..model.slicing import Size
from .largest import check_views, largest_image, max_image_tokens


class LlavaUhdDataParser(MultiModalDataParser):
    """Decodes images as the package does: orientation, transparency, depth and color modes."""

    max_pixels: int | None = None

    def _parse_image_data(self, data: Any) -> Any:
        if data is None or self.is_embeddings(data):
            return super()._parse_image_data(data)
        is_batch = isinstance(data, list | tuple) or getattr(data, "ndim", 0) == 4
        images = data if is_batch else [data]
        max_pixels = {} if self.max_pixels is None else {"max_pixels": self.max_pixels}
        return ImageProcessorItems(
            [
                None if image is None else decode_image(_source(image), name=f"image {index + 1}", **max_pixels)
                for index, image in enumerate(images)
            ]
        )


def _source(image: Any) -> Any:
    """The bytes of an image whose color mode vLLM has changed already, or the image."""
    if not isinstance(image, MediaWithBytes):
        return image
    return image.media if image.io_config is None else image.original_bytes


def mismatch(num_tokens: int, num_images: int) -> VLLMValidationError:
    """Return the error of a prompt with more or fewer placeholders than images."""
    return VLLMValidationError(
        f"the prompt has {num_tokens} image placeholders, but {num_images} images were given", parameter="image"
    )


class LlavaUhdProcessingInfo(BaseProcessingInfo):
    """Facts about the model that vLLM plans with."""

    def get_hf_config(self) -> LlavaUhdConfig:
        """Return the model's config."""
        return self.ctx.get_hf_config(LlavaUhdConfig)

    def get_hf_processor(self, **kwargs: object) -> LlavaUhdProcessor:
        """Return the processor, with a tokenizer of its own; options are given to each call instead."""
        return self._processor

    @cached_property
    def _processor(self) -> LlavaUhdProcessor:
        # The configured options are for calls, too: as arguments of the constructor they would be another processor.
        return LlavaUhdProcessor.from_pretrained(self.ctx.model_config.model, revision=self.ctx.model_config.revision)

    def get_data_parser(self) -> MultiModalDataParser:
        """Return the parser of images."""
        parser = LlavaUhdDataParser(expected_hidden_size=self._get_expected_hidden_size())
        parser.max_pixels = self._processor.image_processor.max_pixels
        return parser

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return that images are supported, any number of them."""
        return {"image": None}

    @cached_property
    def slice_limit(self) -> int:
        """Most slices of an image: what the server was started with, or else the model's own."""
        configured = self.ctx.get_mm_config().mm_processor_kwargs or {}
        return _max_slices(configured, None) or self._processor.image_processor.max_slices

    def max_slices(self, options: Mapping[str, object]) -> int:
        """Return the most slices of the images of a request.

        Args:
            options: `mm_processor_kwargs` of the request.

        Raises:
            VLLMValidationError: for another option, or a number below 1 or above the server's.
        """
        return _max_slices(options, self.slice_limit) or self.slice_limit

    def largest(self) -> Size:
        """Return the (width, height) of an image with the most tokens that fits into the context."""
        max_length = self.ctx.model_config.max_model_len
        slice_grid = self._processor.image_processor.slice_grid
        size, _ = largest_image(
            self._processor.token_grid,
            self._processor.layout,
            max_length=max_length,
            slice_grid=None if slice_grid is None else tuple(slice_grid),
            pad_to_square=self._processor.image_processor.pad_to_square,
            pad_to_grid=self._processor.image_processor.pad_to_grid,
            **self._sizes,
        )
        return size

    @property
    def _sizes(self) -> dict[str, int]:
        image_processor = self._processor.image_processor
        return {
            "max_slices": self.slice_limit,
            "view_size": image_processor.view_size,
            "patch_size": image_processor.patch_size,
        }

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the most tokens that an image can have within the context."""
        if not mm_counts.get("image", 0):
            return {}
        return {"image": min(max_image_tokens(self._processor.token_grid, **self._sizes), seq_len)}


def _max_slices(options: Mapping[str, object], limit: int | None) -> int | None:
    if unknown := sorted(set(options) - {"max_slices"}):
        raise VLLMValidationError(
            f"mm_processor_kwargs may have max_slices alone, got {', '.join(map(str, unknown))}",
            parameter="mm_processor_kwargs",
        )
    value = options.get("max_slices")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise VLLMValidationError(f"max_slices must be at least 1, got {value!r}", parameter="mm_processor_kwargs")
    if limit is not None and value > limit:
        raise VLLMValidationError(
            f"max_slices is at most {limit} on this server, got {value}: start it with "
            f"--mm-processor-kwargs '{{\"max_slices\": {value}}}'",
            parameter="mm_processor_kwargs",
        )
    return value


class LlavaUhdDummyInputsBuilder(BaseDummyInputsBuilder[LlavaUhdProcessingInfo]):
    """Images that need the most memory, for profiling."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return a placeholder for each image."""
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> MultiModalDataDict:
        """Return images of the largest size."""
        width, height = self.info.largest()
        images = self._get_dummy_images(
            width=width, height=height, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class LlavaUhdMultiModalProcessor(BaseMultiModalProcessor[LlavaUhdProcessingInfo]):
    """Makes of images the inputs of the model, and of each placeholder the tokens of its image."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """Return the inputs of the engine for a prompt with images.

        Raises:
            VLLMValidationError: there are more or fewer placeholders than images, or an option is refused.
        """
        self.info.max_slices(inputs.hf_processor_mm_kwargs)
        num_tokens = inputs.prompt.count(self.info.get_hf_processor().image_token_id)
        num_images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if num_tokens != num_images:
            raise mismatch(num_tokens, num_images)
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        image_processor = self.info.get_hf_processor().image_processor
        max_slices = self.info.max_slices(hf_kwargs)
        images: Any = hf_data["images"]
        for index, image in enumerate(images):
            fitted = image_processor.fit_letters(image, max_slices=max_slices)
            plan = image_processor.plan(*fitted.size, max_slices=max_slices)
            check_views(plan, image_processor.view_size, f"image {index + 1}")
        inputs = image_processor(images, max_slices=max_slices, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.info.ctx.model_config.dtype)
        return inputs

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        if "pixel_values" not in hf_inputs:  # all of them were cached
            return {}
        num_views = hf_inputs["num_views"]
        areas = hf_inputs["view_shapes"].prod(dim=1)
        num_patches = torch.stack([of_image.sum() for of_image in areas.split(num_views.tolist())])
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", num_patches),
            "view_shapes": MultiModalFieldConfig.flat_from_sizes("image", num_views, keep_on_cpu=True),
            "num_views": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "grids": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        processor = self.info.get_hf_processor()
        image_id = processor.image_token_id
        # The image token may lie behind the vocabulary; a feature takes its place, so any id of the vocabulary serves.
        known_id = image_id if image_id < self.info.get_hf_config().text_config.vocab_size else 0

        def tokens_of(index: int) -> PromptUpdateDetails:
            item = out_mm_kwargs["image"][index].get_data()
            views = {name: torch.atleast_1d(item[name]) for name in IMAGE_INPUTS[1:]}
            ids = processor.ids_of_image({**views, "grids": views["grids"].view(-1, 2)}, 0)
            is_embed = torch.tensor([token == image_id for token in ids])
            full = [known_id if token == image_id else token for token in ids]
            return PromptUpdateDetails(full, is_embed=lambda _: is_embed)

        return [PromptReplacement("image", target=[image_id], replacement=tokens_of)]
