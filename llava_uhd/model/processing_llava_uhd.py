"""Processor: from prompts with image placeholders, and images, to the inputs of the model.

Every `<image>` in a prompt becomes the run of image tokens and separators that the layout of its image says, so the
sequence the model sees is decided here and no token is inserted later.

Separators are ordinary tokens, named by id: the Qwen2 checkpoint was trained with the ids of the Vicuna vocabulary,
which mean other strings there. So the text carries two reserved strings for them, and their ids are put in right after
tokenization, before anything else looks at the ids.
"""

from typing import Any, Self

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .chat_templates import CHAT_TEMPLATES
from .image_processing_llava_uhd import LlavaUhdImageProcessor
from .layout import LAYOUTS, ImageLayout, LayoutName, Mark, TokenGrid, layout_views, plan_layout

SLICE_SEPARATOR = "<|slice_separator|>"
ROW_SEPARATOR = "<|row_separator|>"


class LlavaUhdProcessor(ProcessorMixin):
    """`processor(images=..., text=..., max_slices=..., padding=True, return_tensors="pt")`.

    Prompts come alone or in a list; images in one flat list for all prompts, in the order of the placeholders, or in
    one list for each prompt. Options of the image processor (see `LlavaUhdImageKwargs`) and of the tokenizer are given
    side by side. Truncation that would cut image tokens is refused.
    """

    def __init__(
        self,
        image_processor: LlavaUhdImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        layout: LayoutName = "stitched",
        query_grid: int | None = 12,
        unshuffle_factor: int | None = None,
        slice_separator_id: int = 29892,
        row_separator_id: int = 13,
        image_token: str = "<image>",
    ):
        """Join an image processor and a tokenizer.

        Args:
            image_processor: see `LlavaUhdImageProcessor`.
            tokenizer: of the language model; the image token and the reserved separators are added to it.
            chat_template: Jinja; see `chat_templates`.
            layout: `stitched` or `sequential`, see `layout`.
            query_grid: a view has query_grid² tokens; None for the MLP projector.
            unshuffle_factor: side of the square of patches of one token of the MLP projector, else None.
            slice_separator_id: ordinary token id after a slice.
            row_separator_id: ordinary token id after a row.
            image_token: placeholder of an image in a prompt, and string of its tokens.
        """
        assert tokenizer is not None
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        self.token_grid = TokenGrid(query_grid, unshuffle_factor)
        self.layout = layout
        self.query_grid = query_grid
        self.unshuffle_factor = unshuffle_factor
        self.slice_separator_id = slice_separator_id
        self.row_separator_id = row_separator_id
        self.image_token = image_token
        self._mark_texts = {
            Mark.IMAGE: image_token,
            Mark.SLICE_SEPARATOR: SLICE_SEPARATOR,
            Mark.ROW_SEPARATOR: ROW_SEPARATOR,
        }
        tokenizer.add_tokens(
            [AddedToken(text, special=True) for text in self._mark_texts.values()], special_tokens=True
        )
        # A plain tokenizer returns token types as well, and no model behind this processor takes them.
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self._ordinary_ids = {
            tokenizer.convert_tokens_to_ids(SLICE_SEPARATOR): slice_separator_id,
            tokenizer.convert_tokens_to_ids(ROW_SEPARATOR): row_separator_id,
        }
        self._text_after_image = _text_after(image_token, tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_config(cls, config: Any, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> Self:
        """The processor that belongs to a model.

        Args:
            config: the model's `LlavaUhdConfig`.
            tokenizer: of its language model.
            chat_template: a name (`vicuna`, `qwen`, `plain`), Jinja, or None for a model that is not asked in chats.

        Raises:
            ValueError: if the tokenizer gives the image token another id than the config.
        """
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        is_mlp = config.projector.type == "mlp"
        processor = cls(
            LlavaUhdImageProcessor(
                max_slices=config.max_slices,
                view_size=config.vision_config.image_size,
                patch_size=config.vision_config.patch_size,
            ),
            tokenizer,
            chat_template=CHAT_TEMPLATES.get(chat_template, chat_template) if chat_template else None,
            layout=config.layout,
            query_grid=None if is_mlp else config.projector.query_grid,
            unshuffle_factor=config.projector.unshuffle_factor if is_mlp else None,
            slice_separator_id=config.slice_separator_id,
            row_separator_id=config.row_separator_id,
        )
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"the tokenizer's id of {processor.image_token} is {processor.image_token_id}, "
                f"but config.image_token_id is {config.image_token_id}"
            )
        return processor

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Decode the images and put a lone prompt into a list. Empty lists of images are no images."""
        images, text, videos, audio = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        return (images if _count_images(images) else None), text, videos, audio

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """Check that prompts and images agree: prompt by prompt if images come in a list for each."""
        if isinstance(text, list) and all(isinstance(prompt, str) for prompt in text):
            placeholders = [prompt.count(self.image_token) for prompt in text]
            if isinstance(images, list) and any(isinstance(item, list) for item in images):
                if len(images) != len(text):
                    raise ValueError(f"there are {len(text)} prompts, but {len(images)} lists of images")
                for index, (wanted, item) in enumerate(zip(placeholders, images, strict=True)):
                    if wanted != _count_images(item):
                        raise ValueError(
                            f"prompt {index} has {wanted} {self.image_token} placeholders, "
                            f"but {_count_images(item)} images were given for it"
                        )
            elif sum(placeholders) != _count_images(images):
                raise ValueError(
                    f"the prompts have {sum(placeholders)} {self.image_token} placeholders in all, "
                    f"but {_count_images(images)} images were given"
                )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """What stands in the text for one image."""
        num_views = image_inputs["num_views"].tolist()
        first = sum(num_views[:image_idx])
        view_shapes = image_inputs["view_shapes"][first : first + num_views[image_idx]].tolist()
        columns, rows = image_inputs["grids"][image_idx].tolist()
        layout = layout_views(
            (columns, rows), tuple(view_shapes[0]), tuple(view_shapes[-1]), self.token_grid, self.layout
        )
        return "".join(self._mark_texts[mark] for mark in layout.template)

    def get_text_with_replacements(self, text: list[str], *args: Any, **kwargs: Any) -> Any:
        """Expand the placeholders, and let the text after an image be tokenized as if it began a text.

        The published code tokenizes the pieces between images one by one. A tokenizer that begins a text with a space,
        but not a piece of it, is given that space.
        """
        texts, offsets = super().get_text_with_replacements(text, *args, **kwargs)
        for index, replacements in enumerate(offsets):
            no_text_follows = {*(entry["new_span"][0] for entry in replacements), len(texts[index])}
            shift = 0
            for entry in replacements:
                start, end = entry["new_span"]
                inserted = "" if end in no_text_follows else self._text_after_image
                texts[index] = texts[index][: end + shift] + inserted + texts[index][end + shift :]
                entry["replacement"] += inserted
                entry["new_span"] = (start + shift, end + shift + len(inserted))
                shift += len(inserted)
        return texts, offsets

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: list[str]) -> None:
        """Refuse image tokens that were cut off, and give the separators their ordinary ids.

        The base class calls this right after the tokenizer.
        """
        input_ids = text_inputs["input_ids"]
        try:
            super()._check_special_mm_tokens(text, text_inputs, modalities)
        except ValueError as error:
            length = max(len(ids) for ids in self.tokenizer(text, verbose=False)["input_ids"])
            raise ValueError(
                f"a prompt of {length} tokens was cut to {max(map(len, input_ids))}, and image tokens with it; "
                "allow a longer max_length, lower max_slices or shorten the text"
            ) from error
        if isinstance(input_ids, np.ndarray | torch.Tensor):
            for reserved, ordinary in self._ordinary_ids.items():
                input_ids[input_ids == reserved] = ordinary
        else:
            text_inputs["input_ids"] = [[self._ordinary_ids.get(token, token) for token in ids] for ids in input_ids]

    def encode_prompt(self, text: str, image_inputs: Any) -> list[int]:
        """Token ids of a prompt whose images were processed before, one by one: a server keeps what it made of them.

        Args:
            text: with a placeholder for each image.
            image_inputs: `num_views`, `view_shapes` and `grids` of all its images, or nothing without images.

        Raises:
            ValueError: there are more or fewer placeholders than images.
        """
        num_images = len(image_inputs["num_views"]) if image_inputs else 0
        if (placeholders := text.count(self.image_token)) != num_images:
            raise ValueError(
                f"the prompt has {placeholders} {self.image_token} placeholders, but {num_images} images were given"
            )
        replacements = [self.replace_image_token(image_inputs, index) for index in range(num_images)]
        texts, _ = self.get_text_with_replacements([text], replacements)
        encoded = self.tokenizer(texts)
        self._check_special_mm_tokens(texts, encoded, modalities=["image"])
        return encoded["input_ids"][0]

    def image_layout(self, width: int, height: int, **kwargs: Any) -> ImageLayout:
        """Layout of an image of this size: its token template, order and counts.

        Args:
            width: of the image, in pixels.
            height: of the image, in pixels.
            kwargs: options of the image processor in place of its own.
        """
        return plan_layout(self.image_processor.plan(width, height, **kwargs), self.token_grid, self.layout)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Count the image tokens, and the rows of `pixel_values`, of images of (height, width): for vLLM."""
        if image_sizes is None:
            return MultiModalData()
        options = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"]
        return MultiModalData(
            num_image_tokens=[
                self.image_layout(width, height, **options).num_image_tokens for height, width in image_sizes
            ],
            num_image_patches=[
                self.image_processor.plan(width, height, **options).num_patches for height, width in image_sizes
            ],
        )


def _count_images(images: Any) -> int:
    if images is None:
        return 0
    return sum(map(_count_images, images)) if isinstance(images, list) else 1


def _text_after(image_token: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What to put between an image and text, for the text to be tokenized as if it began there."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    after = tokenizer(image_token + "a", add_special_tokens=False)["input_ids"][1:]
    return "" if after == alone else " "


__all__ = ["LlavaUhdProcessor"]
