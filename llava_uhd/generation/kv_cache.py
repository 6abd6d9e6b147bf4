"""KV caches: in-place growth, forks, and language models that can be batched without changing an answer.

A fork shares the tensors of its origin, so growing it must not write to them; and decoding request by request attends
from one token to all that its cache holds, so each layer must be plain causal attention over the whole sequence. Both
hold for layers of full attention alone: recurrent and convolution states are overwritten, and with sliding windows or
chunks the mask decides what is attended to.

Shapes: B sequences, h heads of d channels, L tokens in the cache, C >= L tokens of capacity.
"""

import copy
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

FULL_ATTENTION = "full_attention"
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
MIN_GROWTH = 64  # tokens


class GrowingLayer(DynamicLayer):
    """Full-attention layer that appends in place, in buffers that grow by a quarter.

    `DynamicLayer` copies all L tokens for each new one; here a token is copied at most five times on average, however
    long the sequence. `keys` and `values` are views of the first L tokens of (B, h, C, d) buffers. The first call
    takes exactly the memory of its tokens, so a prefix is not kept with unused capacity.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None
    _end: torch.Tensor | None = None  # `keys` as the last call left them: others are not of these buffers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, h, new, d) keys and values; return all of the sequence."""
        length = self.get_seq_length()
        if length == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        end = length + key_states.shape[-2]
        if self._buffers is None or self._end is not self.keys or end > self._buffers[0].shape[-2]:
            capacity = end + max(MIN_GROWTH, end // 4)
            self._buffers = _grown(self.keys, capacity), _grown(self.values, capacity)
        keys, values = self._buffers
        keys[..., length:end, :] = key_states
        values[..., length:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        self._end = self.keys
        return self.keys, self.values

    def fork(self) -> "GrowingLayer":
        """Return a layer that continues from this one; it shares the tensors until it grows."""
        forked = copy.copy(self)
        forked._buffers = forked._end = None
        return forked


def _grown(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    """Return a (B, h, C, d) buffer that begins with a (B, h, L, d) tensor."""
    buffer = tensor.new_empty((*tensor.shape[:-2], capacity, tensor.shape[-1]))
    buffer[..., : tensor.shape[-2], :] = tensor
    return buffer


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache of a language model; its layers of full attention grow in place.

    Args:
        config: configuration of the language model.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def has_full_attention(config: PreTrainedConfig) -> bool:
    """Return whether every layer of a language model is full attention over an ordinary KV cache.

    Args:
        config: configuration of the language model.
    """
    kinds = getattr(config, "layer_types", None) or ()  # not every configuration names them
    return all(kind == FULL_ATTENTION for kind in kinds) and can_fork(new_cache(config))


def has_experts(config: PreTrainedConfig) -> bool:
    """Return whether a language model routes tokens to experts.

    Args:
        config: configuration of the language model.
    """
    return any((getattr(config, name, None) or 0) > 1 for name in EXPERT_COUNTS)


def can_fork(cache: Cache) -> bool:
    """Return whether growing a fork leaves the original unchanged: with layers of full attention alone."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def fork(cache: DynamicCache) -> DynamicCache:
    """Return a cache that continues from this one. They share their tensors until they grow.

    Args:
        cache: cache of layers of full attention alone.
    """
    forked = copy.copy(cache)
    forked.layers = [layer.fork() for layer in cache.layers]
    return forked


def cache_bytes(cache: DynamicCache) -> int:
    """Return the number of bytes of a cache's keys and values."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
