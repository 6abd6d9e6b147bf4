"""LRU cache with a maximum size in bytes; safe to use from several threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """LRU cache of values by key.

    Args:
        max_bytes: maximum size of all values; 0 caches none.
        size: size of a value in bytes, which must not change while the value is cached.

    Attributes:
        num_bytes: size of all cached values.
        hits: number of hits counted.
        misses: number of misses counted.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]):
        self.max_bytes = max_bytes
        self.size = size
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Return the cached value, which becomes the most recently used; None if there is none."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def count(self, hits: int, misses: int = 0) -> None:
        """Count hits and misses."""
        with self._lock:
            self.hits += hits
            self.misses += misses

    def put(self, key: K, value: V) -> None:
        """Cache a value unless it is larger than the maximum size; drop the least recently used ones."""
        size = self.size(value)
        if size > self.max_bytes:
            return
        with self._lock:
            if (replaced := self._values.pop(key, None)) is not None:
                self.num_bytes -= self.size(replaced)
            self._values[key] = value
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self.size(self._values.popitem(last=False)[1])
