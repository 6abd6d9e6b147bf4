"""A cache with a bound in bytes, the least recently used dropped first; safe to use from several threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by key.

    Attributes:
        num_bytes: of the values kept.
        hits, misses: as noted by `count`.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]):
        """Keep values of at most `max_bytes` altogether; 0 keeps none.

        Args:
            size: bytes of a value, the same as long as it is kept.
        """
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
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def count(self, hits: int, misses: int = 0) -> None:
        """Note how often a request found what it needed, and how often not."""
        with self._lock:
            self.hits += hits
            self.misses += misses

    def put(self, key: K, value: V) -> None:
        """Keep a value, if it fits at all."""
        size = self.size(value)
        if size > self.max_bytes:
            return
        with self._lock:
            if (known := self._values.pop(key, None)) is not None:
                self.num_bytes -= self.size(known)
            self._values[key] = value
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self.size(self._values.popitem(last=False)[1])
