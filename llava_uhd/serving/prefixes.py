"""How a conversation began, as the language model keeps it: keys and values up to the last image.

Images are most of a prompt, and they come before the question. Whoever asks about the same images again, in a further
turn or in another conversation, goes on from these keys and values: only the text after the last image is read.
"""

from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from .bounded import BoundedCache
from .features import Key

if TYPE_CHECKING:
    from .prompts import Prompt

# The ids of the tokens, as bytes, and which images stand at those that are placeholders.
PrefixKey = tuple[bytes, tuple[Key, ...]]


def prefix_cache(max_bytes: int) -> BoundedCache[PrefixKey, DynamicCache]:
    return BoundedCache(max_bytes, _num_bytes)


def prefix_key(prompt: "Prompt") -> PrefixKey:
    ids = prompt.input_ids[0, : prompt.num_prefix_tokens]
    return ids.numpy().tobytes(), tuple(key for key, _ in prompt.images)


def _num_bytes(cache: DynamicCache) -> int:
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
