"""KV caches: forking, and checks for batch-invariant decoding.

A fork shares the tensors of its origin, so growing it must not write to them; and decoding row by row attends from
one token to all that its cache holds, so each layer must be plain causal attention over the whole sequence. Both hold
for layers of full attention alone: recurrent and convolution states are overwritten, and with sliding windows or
chunks the mask decides what is attended to.
"""

import copy

from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

FULL_ATTENTION = "full_attention"
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def has_full_attention(config: PreTrainedConfig) -> bool:
    """Return whether every layer of a language model is full attention over an ordinary KV cache.

    Args:
        config: config of the language model.
    """
    kinds = getattr(config, "layer_types", None) or ()  # not every configuration names them
    return all(kind == FULL_ATTENTION for kind in kinds) and can_fork(DynamicCache(config=config))


def has_experts(config: PreTrainedConfig) -> bool:
    """Return whether a language model routes tokens to experts.

    Args:
        config: config of the language model.
    """
    return any((getattr(config, name, None) or 0) > 1 for name in EXPERT_COUNTS)


def can_fork(cache: Cache) -> bool:
    """Return whether growing a fork leaves the original as it is: with layers of full attention alone."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def fork(cache: DynamicCache) -> DynamicCache:
    """Return a cache that continues from this one. They share their tensors, which growing replaces."""
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    return grown
