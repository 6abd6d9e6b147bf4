"""Tokenizer whose largest id is one that the language model has.

The image token and the reserved separators may lie behind the vocabulary. vLLM accepts every id that its tokenizer
has, in `bad_words` for instance, and an id without a row in the embedding or in the logits would end the engine.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from vllm.tokenizers.hf import CachedHfTokenizer


class LlavaUhdTokenizer(CachedHfTokenizer):
    """Loads the tokenizer of a model folder; its `max_token_id` is bounded by the vocabulary of the language model."""

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Return the tokenizer, of a class of its own."""
        tokenizer = super().from_pretrained(path_or_repo_id, *args, **kwargs)
        config = AutoConfig.from_pretrained(path_or_repo_id, revision=kwargs.get("revision"))
        return bounded(tokenizer, config.text_config.vocab_size)


def bounded(tokenizer: Any, vocab_size: int) -> Any:
    """Return the tokenizer with `max_token_id` below a vocabulary size.

    Args:
        tokenizer: tokenizer of vLLM's, changed in place.
        vocab_size: rows of the language model's embedding.
    """
    base: Any = type(tokenizer)
    largest = min(tokenizer.max_token_id, vocab_size - 1)

    class BoundedTokenizer(base):
        @property
        def max_token_id(self) -> int:
            return largest

        def __reduce__(self) -> Any:
            rebuild, arguments = base.__reduce__(self)
            return _rebuild, (rebuild, arguments, vocab_size)

    BoundedTokenizer.__name__ = base.__name__
    tokenizer.__class__ = BoundedTokenizer
    return tokenizer


def _rebuild(rebuild: Any, arguments: Any, vocab_size: int) -> Any:
    return bounded(rebuild(*arguments), vocab_size)
