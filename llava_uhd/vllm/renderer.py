"""Renderer: from messages to token ids exactly as the package's own processor makes them.

vLLM tokenizes the rendered text as it stands. The processor does more: special tokens of the tokenizer, a space after
an image where SentencePiece prepends one to the first piece only, ordinary ids for separators, and an image token in a
text part is text.
"""

import threading
from typing import Any

from jinja2 import TemplateError
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput, TokensInput, TokensPrompt
from vllm.renderers.chat_utils import parse_chat_messages, parse_chat_messages_async
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.utils.async_utils import make_async

from .processing import mismatch

# Arguments of the chat template that its author counts on; vLLM passes others for other models.
TEMPLATE_ARGUMENTS = ("add_generation_prompt", "continue_final_message", "tools", "documents")


class LlavaUhdRenderer(HfRenderer):
    """vLLM's renderer with the chat template and the tokenization of `LlavaUhdProcessor`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._processor = self.get_mm_processor().info.get_hf_processor()
        self._tokenizing = threading.Lock()  # a fast tokenizer must not be borrowed twice
        self._render_async = make_async(self._render, executor=self._executor)

    def render_messages(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        """Return the conversation and its prompt, tokenized."""
        conversation, *media = parse_chat_messages(messages, **self._parsing(params))
        return conversation, self._render(conversation, params, *media)

    async def render_messages_async(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        """Return the conversation and its prompt, tokenized by the renderer's threads."""
        conversation, *media = await parse_chat_messages_async(messages, **self._parsing(params))
        return conversation, await self._render_with_timeout(self._render_async(conversation, params, *media))

    def _parsing(self, params: ChatParams) -> dict[str, Any]:
        # Content in parts: images keep their place, and a text part is text.
        return {
            "model_config": self.model_config,
            "content_format": "openai",
            "media_io_kwargs": params.media_io_kwargs,
            "mm_processor_kwargs": params.mm_processor_kwargs,
        }

    def _render(self, conversation: list[Any], params: ChatParams, images: Any, uuids: Any) -> TokensPrompt:
        options = params.get_apply_chat_template_kwargs()
        arguments = {name: options[name] for name in TEMPLATE_ARGUMENTS if options.get(name) is not None}
        try:
            with self._tokenizing:
                text = self._processor.apply_chat_template(
                    conversation, chat_template=options.get("chat_template"), tokenize=False, **arguments
                )
                ids = self._processor.encode_unexpanded(text)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise VLLMValidationError(f"the chat template refuses the messages: {error}") from error
        prompt = TokensPrompt(prompt_token_ids=ids, prompt=text)
        if images is not None:
            prompt["multi_modal_data"] = images
        if uuids is not None:
            prompt["multi_modal_uuids"] = uuids
        return prompt

    def _tokenize_prompt(self, prompt: Any, params: TokenizeParams) -> TokensPrompt:
        if self._wants_offsets(prompt, params):
            return super()._tokenize_prompt(prompt, params)
        with self._tokenizing:
            ids = self._processor.encode_unexpanded(prompt["prompt"], params.add_special_tokens)
        return self._build_tokens_prompt(ids, prompt)

    def _process_tokens(self, prompt: TokensPrompt, *, skip_mm_cache: bool = False) -> TokensInput | MultiModalInput:
        self._check_images(prompt)
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        self._check_images(prompt)
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def _check_images(self, prompt: TokensPrompt) -> None:
        """Refuse image tokens without images; with images the multimodal processor counts them."""
        num_tokens = prompt["prompt_token_ids"].count(self._processor.image_token_id)
        if num_tokens and not prompt.get("multi_modal_data"):
            raise mismatch(num_tokens, 0)

    def validate_token_ids(self, token_ids: Any, *, parameter: str | None = None) -> None:
        """Refuse ids that the language model has no embedding for; images are expanded to ids that it has."""
        vocab_size = self.model_config.get_vocab_size()
        if len(token_ids) and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise VLLMValidationError(
                f"token ids must be from 0 to {vocab_size - 1}, got {min(token_ids)} to {max(token_ids)}",
                parameter=parameter,
            )
