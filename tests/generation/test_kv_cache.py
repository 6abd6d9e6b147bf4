"""KV caches: growth in place, forks, and language models that can be batched exactly."""

import pytest
import torch
from transformers import CONFIG_MAPPING, DynamicCache

from llava_uhd.generation import kv_cache
from llava_uhd.generation.kv_cache import (
    MIN_GROWTH,
    cache_bytes,
    can_fork,
    fork,
    has_experts,
    has_full_attention,
    new_cache,
)

CONFIG = CONFIG_MAPPING["llama"](num_hidden_layers=2)


def states(length: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 2, length, 4), torch.randn(batch, 2, length, 4)


def grow(caches: list, lengths: list[int], batch: int = 1) -> None:
    """Append the same keys and values to each layer of all caches, and compare what they return."""
    for length in lengths:
        for layer in range(2):
            keys, values = states(length, batch)
            grown = [cache.update(keys, values, layer) for cache in caches]
            assert all(torch.equal(a, b) for other in grown[1:] for a, b in zip(grown[0], other, strict=True))


def test_growth_gives_the_tensors_of_transformers_cache():
    cache, expected = new_cache(CONFIG), DynamicCache(config=CONFIG)
    grow([expected, cache], [7, 3, *[1] * 200, 90, 1, 1], batch=2)
    assert cache.get_seq_length() == expected.get_seq_length() == 302
    index = torch.tensor([1, 0, 1])
    for each in (cache, expected):
        each.batch_select_indices(index)
        each.crop(-5)
    grow([expected, cache], [1, 1, 30], batch=3)


def test_a_token_is_copied_a_bounded_number_of_times(monkeypatch):
    copied = []
    original = kv_cache._grown

    def counted(tensor, capacity):
        copied.append(tensor.shape[-2])
        return original(tensor, capacity)

    monkeypatch.setattr(kv_cache, "_grown", counted)
    cache = new_cache(CONFIG)
    length = 3000
    grow([cache], [500, *[1] * (length - 500)])
    per_token = sum(copied) / (2 * 2 * length)  # two layers, keys and values
    assert 0 < per_token <= 5
    kept = sum(layer._buffers[0].shape[-2] for layer in cache.layers) / 2
    assert kept <= length * 1.25 + MIN_GROWTH


def test_a_fork_shares_its_origin_and_neither_changes_the_other():
    origin = new_cache(CONFIG)
    grow([origin], [20])
    forked = fork(origin)
    assert forked.layers[0].keys.data_ptr() == origin.layers[0].keys.data_ptr()
    before = [layer.keys.clone() for layer in origin.layers]
    grow([forked], [1, 1, 1])
    assert origin.get_seq_length() == 20 and forked.get_seq_length() == 23
    grow([origin], [1, 5])
    second = fork(origin)
    grow([second], [2])
    grow([origin], [1])
    assert all(torch.equal(layer.keys[..., :20, :], keys) for layer, keys in zip(origin.layers, before, strict=True))
    assert all(torch.equal(layer.keys[..., :20, :], keys) for layer, keys in zip(forked.layers, before, strict=True))
    assert not torch.equal(second.layers[0].keys[..., 26:27, :], origin.layers[0].keys[..., 26:27, :])


def test_a_prefix_is_kept_without_unused_capacity():
    cache = new_cache(CONFIG)
    grow([cache], [20])
    kept = fork(cache)
    grow([cache], [1])
    assert cache_bytes(kept) == sum(layer.keys.untyped_storage().nbytes() * 2 for layer in kept.layers)


@pytest.mark.parametrize(
    "name, values, is_exact",
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, False),
        ("mistral", {"sliding_window": 8}, False),
        ("lfm2", {"full_attn_idxs": [1]}, False),
        ("llama4_text", {}, False),
        ("mixtral", {}, False),
        ("qwen3_moe", {}, False),
        ("qwen3_next", {}, False),
        ("gemma3_text", {}, False),
    ],
)
def test_language_models_that_can_be_batched_exactly(name, values, is_exact):
    config = CONFIG_MAPPING[name](num_hidden_layers=4, **values)
    assert (has_full_attention(config) and not has_experts(config)) == is_exact


def test_a_layer_that_overwrites_its_states_cannot_be_forked():
    config = CONFIG_MAPPING["mistral"](num_hidden_layers=2, sliding_window=8)
    assert not can_fork(new_cache(config)) and can_fork(new_cache(CONFIG))
