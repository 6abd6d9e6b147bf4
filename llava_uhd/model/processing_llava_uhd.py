"""Processor: from prompts with image placeholders, and images, to the inputs of the model.

Every `<image>` in a prompt becomes the run of image tokens and separators that the layout of its image says, so the
sequence the model sees is decided here and no token is inserted later.

Separators are ordinary tokens, named by id: the Qwen2 checkpoint was trained with the ids of the Vicuna vocabulary,
which mean other strings there. So the text carries two reserved strings for them, and their ids are put in right after
tokenization, before anything else looks at the ids.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .chat_templates import CHAT_TEMPLATES
from .image_processing_llava_uhd import LlavaUhdImageProcessor, normalization_of
from .labels import ImageTextInputs
from .layout import LAYOUTS, ImageLayout, LayoutName, TokenGrid, TokenType, layout_views, plan_layout
from .messages import escape, prepare_messages, remove_escapes
from .validation import QUERY_GRID, TOKEN_ID, UNSHUFFLE_FACTOR, check_int

SLICE_SEPARATOR = "<|slice_separator|>"
ROW_SEPARATOR = "<|row_separator|>"


class LlavaUhdProcessor(ProcessorMixin):  # type: ignore[misc]  # not followed, see pyproject.toml
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
        input_level: int = 1,
    ):
        """Join an image processor and a tokenizer.

        Args:
            image_processor: see `LlavaUhdImageProcessor`.
            tokenizer: tokenizer of the language model; the image token and the reserved separators are added to it.
            chat_template: Jinja; see `chat_templates`.
            layout: `stitched`, `sequential` or `unseparated`, see `layout`.
            query_grid: a view has query_grid² tokens; None for the MLP projector.
            unshuffle_factor: side of the square of patches of one token of the MLP projector, else None.
            slice_separator_id: ordinary token id after a slice.
            row_separator_id: ordinary token id after a row.
            image_token: placeholder of an image in a prompt, and string of its tokens.
            input_level: level of the pyramid whose patches the MLP projector joins; 1 for the others.
        """
        assert tokenizer is not None
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        for name, value, low, high in (
            ("query_grid", query_grid, 1, QUERY_GRID),
            ("unshuffle_factor", unshuffle_factor, 1, UNSHUFFLE_FACTOR),
            ("input_level", input_level, 1, 8),
            ("slice_separator_id", slice_separator_id, 0, TOKEN_ID),
            ("row_separator_id", row_separator_id, 0, TOKEN_ID),
        ):
            if value is not None:
                check_int(name, value, low, high)
        if not isinstance(image_token, str) or len(image_token) < 2:
            raise ValueError(f"image_token must be a string of at least 2 characters, got {image_token!r}")
        TokenGrid(query_grid, unshuffle_factor, input_level)  # refuses what does not fit together
        self.layout = layout
        self.query_grid = query_grid
        self.unshuffle_factor = unshuffle_factor
        self.input_level = input_level
        self.slice_separator_id = slice_separator_id
        self.row_separator_id = row_separator_id
        self.image_token = image_token
        self._token_type_texts = {
            TokenType.IMAGE: image_token,
            TokenType.SLICE_SEPARATOR: SLICE_SEPARATOR,
            TokenType.ROW_SEPARATOR: ROW_SEPARATOR,
        }
        tokenizer.add_tokens(
            [AddedToken(text, special=True) for text in self._token_type_texts.values()], special_tokens=True
        )
        self.can_escape = remove_escapes(tokenizer)
        # A plain tokenizer returns token types as well, and no model behind this processor takes them.
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self._reserved_ids = tuple(map(tokenizer.convert_tokens_to_ids, (SLICE_SEPARATOR, ROW_SEPARATOR)))
        self._text_after_image = _text_after(image_token, tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def token_grid(self) -> TokenGrid:
        """Tokens of a view."""
        return TokenGrid(self.query_grid, self.unshuffle_factor, self.input_level)

    @property
    def _ordinary_ids(self) -> dict[int, int]:
        """Ordinary id of each reserved one."""
        return dict(zip(self._reserved_ids, (self.slice_separator_id, self.row_separator_id), strict=True))

    @classmethod
    def from_config(
        cls,
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        image_token: str = "<image>",
    ) -> Self:
        """Return the processor that belongs to a model.

        Args:
            config: the model's `LlavaUhdConfig`.
            tokenizer: tokenizer of its language model.
            chat_template: a name (`vicuna`, `qwen`, `plain`, `tiny`), Jinja, or None for a model without chats.
            image_mean: mean of each channel that the vision tower was trained with; None for that of its kind.
            image_std: deviation of each channel, likewise.
            image_token: placeholder of an image in a prompt.

        Raises:
            ValueError: the tokenizer gives the image token another id than the config, or the normalization of the
                vision tower is unknown and was not given.
        """
        if image_mean is None or image_std is None:
            mean, std = normalization_of(config.vision_config.model_type)
            image_mean, image_std = image_mean or mean, image_std or std
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        is_mlp = config.projector.type == "mlp"
        processor = cls(
            LlavaUhdImageProcessor(
                max_slices=config.max_slices,
                view_size=config.vision_config.image_size,
                patch_size=config.vision_config.patch_size,
                image_mean=list(image_mean),
                image_std=list(image_std),
                slice_grid=config.slice_grid,
                pad_to_square=config.pad_to_square,
                pad_to_grid=config.pad_to_grid,
                letter_height=config.letter_height,
            ),
            tokenizer,
            chat_template=CHAT_TEMPLATES.get(chat_template, chat_template) if chat_template else None,
            layout=config.layout,
            query_grid=None if is_mlp else config.projector.query_grid,
            unshuffle_factor=config.projector.unshuffle_factor if is_mlp else None,
            slice_separator_id=config.slice_separator_id,
            row_separator_id=config.row_separator_id,
            image_token=image_token,
            input_level=config.projector.input_level if is_mlp else 1,
        )
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"the tokenizer's id of {processor.image_token} is {processor.image_token_id}, "
                f"but config.image_token_id is {config.image_token_id}"
            )
        return processor

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        """Tokenize prompts and process their images; see the class.

        Returns:
            Inputs of the model; with prompts, `ImageTextInputs`, whose `labels` ignore images.
        """
        if text is not None and not isinstance(text, Iterable):
            raise ValueError(
                f"text must be a string or a list of strings, got {type(text).__name__}; images come first, as in "
                "processor(images, text)"
            )
        outputs = super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if text is None:
            return outputs
        num_images = len(outputs["num_views"]) if "num_views" in outputs else 0
        token_ids = {
            name: getattr(self, name) for name in ("image_token_id", "slice_separator_id", "row_separator_id")
        }
        counts = [len(self._layout_of(outputs, index).order) for index in range(num_images)]
        return ImageTextInputs(outputs.data, token_ids=token_ids, tokens_per_image=counts)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation, or a list of them, and tokenize it on demand.

        See `messages` for which `<image>` is a placeholder. Images are in the parts of the messages, or in `images` of
        `processor_kwargs`, in the order of the placeholders (one list per conversation of several).

        Args:
            conversation: messages with `role` and `content`.
            chat_template: Jinja in place of the processor's own.
            tokenize: return token ids in place of text.
            return_dict: return all inputs of the model in place of the token ids alone.
            return_tensors: `pt` or `np` for tensors.
            return_assistant_tokens_mask: return `assistant_masks` as well, 1 for tokens in the template's
                `{% generation %}` marks.
            processor_kwargs: options of `__call__`.
            kwargs: further options of transformers' `apply_chat_template`, and variables of the template.

        Raises:
            ValueError: the template refuses the messages, or images and placeholders disagree.
        """
        from jinja2 import TemplateError

        options = dict(processor_kwargs or {})
        images = options.pop("images", kwargs.pop("images", None))
        if not len(conversation):
            raise ValueError("there are no messages")
        is_batch = isinstance(conversation[0], list | tuple)
        conversations = list(conversation) if is_batch else [conversation]
        images = [None] * len(conversations) if images is None else list(images) if is_batch else [images]
        if len(images) != len(conversations):
            raise ValueError(f"there are {len(conversations)} conversations, but {len(images)} lists of images")
        tokens = self._plain_tokens(conversations)
        prepared = [
            prepare_messages(messages, of_conversation, self.image_token, tokens)
            for messages, of_conversation in zip(conversations, images, strict=True)
        ]
        masked = tokenize and return_dict and return_assistant_tokens_mask
        if masked:
            # transformers' own mask is shifted by expanded images before 5.18, and slow for many turns.
            return_tensors = return_tensors or options.pop("return_tensors", None)
            options |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        elif return_tensors is not None:
            options["return_tensors"] = return_tensors
        try:
            outputs = super().apply_chat_template(
                prepared if is_batch else prepared[0],
                chat_template=chat_template,
                tokenize=tokenize,
                return_dict=return_dict,
                processor_kwargs=options,
                **kwargs,
            )
            if not masked:
                return outputs
            spans = self._answer_spans(prepared, chat_template, kwargs)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error
        offsets = outputs.pop("offset_mapping")
        replaced = outputs.pop("text_replacement_offsets", None) or [[]] * len(offsets)
        outputs["assistant_masks"] = [
            _answer_mask(*of_prompt) for of_prompt in zip(spans, offsets, replaced, strict=True)
        ]
        outputs.convert_to_tensors(tensor_type=return_tensors)
        return outputs

    def escape(self, text: str) -> str:
        """Return a text for a prompt in which the image token and the separators are words, not placeholders.

        Raises:
            ValueError: it holds one of them, and the tokenizer is a slow one, which cannot take it as text.
        """
        held = [token for token in self._token_type_texts.values() if token in text]
        if held and not self.can_escape:
            raise ValueError(
                f"a text holds {held[0]}, which this tokenizer ({type(self.tokenizer).__name__}) reserves"
            )
        return escape(text, held)

    def _plain_tokens(self, conversations: Sequence[Any]) -> list[str]:
        """The reserved strings; checks that text parts with them can be tokenized."""
        if not self.can_escape:
            for message in (message for messages in conversations for message in messages):
                content = message.get("content")
                for part in content if isinstance(content, list | tuple) else ():
                    if isinstance(part, dict) and isinstance(part.get("text"), str):
                        self.escape(part["text"])
        return list(self._token_type_texts.values())

    def _answer_spans(
        self, conversations: list[Any], chat_template: str | None, kwargs: dict[str, Any]
    ) -> list[list[tuple[int, int]]]:
        """Character spans of the `{% generation %}` marks of each conversation, before images are expanded."""
        template = self.chat_template if chat_template is None else chat_template
        if isinstance(self.chat_template, dict):
            template = self.chat_template["default" if chat_template is None else chat_template]
        variables = {**self.tokenizer.special_tokens_map, **kwargs}
        spans: list[list[tuple[int, int]]]
        _, spans = render_jinja_template(
            conversations=conversations,
            tools=variables.pop("tools", None),
            documents=variables.pop("documents", None),
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=variables.pop("add_generation_prompt", False),
            **variables,
        )
        return spans

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
                for index, (expected, item) in enumerate(zip(placeholders, images, strict=True), start=1):
                    if expected != _count_images(item):
                        raise ValueError(
                            f"prompt {index} has {expected} {self.image_token} placeholders, "
                            f"but {_count_images(item)} images were given for it"
                        )
            elif sum(placeholders) != _count_images(images):
                raise ValueError(
                    f"the prompts have {sum(placeholders)} {self.image_token} placeholders in all, "
                    f"but {_count_images(images)} images were given"
                )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """Return the text that replaces the placeholder of one image."""
        return "".join(
            self._token_type_texts[token_type] for token_type in self._layout_of(image_inputs, image_idx).template
        )

    def ids_of_image(self, image_inputs: Any, image_idx: int) -> list[int]:
        """Return the token ids of one image in a prompt: image tokens, and separators by their ordinary ids.

        Args:
            image_inputs: `num_views`, `view_shapes` and `grids`, as the image processor returns them.
            image_idx: index of the image among them.
        """
        ids = {
            TokenType.IMAGE: self.image_token_id,
            TokenType.SLICE_SEPARATOR: self.slice_separator_id,
            TokenType.ROW_SEPARATOR: self.row_separator_id,
        }
        return [ids[token_type] for token_type in self._layout_of(image_inputs, image_idx).template]

    def _layout_of(self, image_inputs: Any, image_idx: int) -> ImageLayout:
        num_views = image_inputs["num_views"].tolist()
        first = sum(num_views[:image_idx])
        view_shapes = image_inputs["view_shapes"][first : first + num_views[image_idx]].tolist()
        columns, rows = image_inputs["grids"][image_idx].tolist()
        return layout_views(
            (columns, rows), tuple(view_shapes[0]), tuple(view_shapes[-1]), self.token_grid, self.layout
        )

    def get_text_with_replacements(self, text: list[str], *args: Any, **kwargs: Any) -> Any:
        """Expand the placeholders, and let the text after an image be tokenized as if it began a text.

        The reference implementation tokenizes the pieces between images one by one. SentencePiece prepends a space to
        the first piece only; insert it after each image so that the following text tokenizes identically.
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
            ordinary_ids = self._ordinary_ids
            text_inputs["input_ids"] = [[ordinary_ids.get(token, token) for token in ids] for ids in input_ids]

    def encode_prompt(self, text: str, image_inputs: Any) -> list[int]:
        """Return the token ids of a prompt whose images were processed before, one by one.

        Args:
            text: prompt with a placeholder for each image.
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
        input_ids: list[int] = encoded["input_ids"][0]
        return input_ids

    def encode_unexpanded(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a prompt with one image token for each image, for a server that expands them later.

        The ids around the images are those of `encode_prompt`.

        Args:
            text: prompt with a placeholder for each image.
            add_special_tokens: whether the tokenizer adds its own, such as the beginning of the text.
        """
        placeholders = [self.image_token] * text.count(self.image_token)
        texts, _ = self.get_text_with_replacements([text], placeholders)
        (ids,) = self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
        ordinary_ids = self._ordinary_ids
        return [ordinary_ids.get(token, token) for token in ids]

    def image_layout(self, width: int, height: int, **kwargs: Any) -> ImageLayout:
        """Layout of an image of this size: its token template, order and counts.

        Args:
            width: image width in pixels.
            height: image height in pixels.
            kwargs: options of the image processor in place of its own.
        """
        return plan_layout(self.image_processor.plan(width, height, **kwargs), self.token_grid, self.layout)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Count the image tokens, and the rows of `pixel_values`, of images of (height, width): for vLLM.

        Raises:
            ValueError: the counts follow from more than the sizes, by `letter_height`.
        """
        if image_sizes is None:
            return MultiModalData()
        options = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"]
        if (height := self.image_processor.used_height(**options)) is not None:
            raise ValueError(f"images are resized to a letter_height of {height}: sizes alone give no token count")
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


def _answer_mask(
    spans: Sequence[Sequence[int]], offsets: Sequence[Sequence[int]], replaced: Sequence[dict[str, Any]]
) -> list[int]:
    """1 for each token that overlaps a span, else 0.

    Args:
        spans: (start, end) characters of the answers in the text before images were expanded, ascending.
        offsets: (start, end) characters of each token in the expanded text, (0, 0) for added ones.
        replaced: `span` of each placeholder and `new_span` of its replacement, in order.
    """
    ends = [entry["span"][1] for entry in replaced]
    gained = [0, *(entry["new_span"][1] - entry["span"][1] for entry in replaced)]
    moved = [[place + gained[bisect_right(ends, place)] for place in span] for span in spans]
    starts = [start for start, _ in moved]
    mask = []
    for start, end in offsets:
        index = bisect_left(starts, end) - 1  # the last span that begins before the token ends
        mask.append(int(end > start and index >= 0 and start < moved[index][1]))
    return mask


def _text_after(image_token: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the separator after an image with which the following text tokenizes as if it began there."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    after = tokenizer(image_token + "a", add_special_tokens=False)["input_ids"][1:]
    return "" if after == alone else " "


__all__ = ["LlavaUhdProcessor"]
