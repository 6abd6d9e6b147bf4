"""Memory of the server process: returned to the system after requests, and collected without long pauses.

Three things keep memory, or the interpreter's lock, for longer than a request needs them:

- glibc keeps freed blocks, in as many heaps (arenas) as threads have allocated from. `limit_arenas` allows few, and
  `trim_while_running` returns free pages to the system after requests.
- A full garbage collection visits every object that importing PyTorch and transformers has made, with the lock held:
  about 0.3 CPU seconds, in which no request is read. `freeze_objects` leaves those out for good.
- An exception refers to the frames it passed through, and they to the request's body, often in a cycle that lasts
  until the next collection. `drop_frames` empties them.
"""

import asyncio
import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Callable

M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS = 2
TRIM_SECONDS = 5.0


def limit_arenas(number: int = ARENAS) -> bool:
    """Limit the heaps of glibc, unless the environment does; before threads are started.

    Returns:
        Whether the limit is set: False without glibc.
    """
    libc = _glibc()
    return libc is not None and ("MALLOC_ARENA_MAX" in os.environ or libc.mallopt(M_ARENA_MAX, number) == 1)


def freeze_objects() -> None:
    """Leave all objects that exist now out of future garbage collections."""
    gc.collect()
    gc.freeze()


def trim_memory() -> bool:
    """Return free memory to the system; False where the C library cannot, or there was none."""
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


async def trim_while_running(num_requests: Callable[[], int], seconds: float = TRIM_SECONDS) -> None:
    """Trim memory from time to time, and once more after the last request, until cancelled.

    Args:
        num_requests: requests so far; without new ones there is nothing to return.
        seconds: seconds between two looks.
    """
    trimmed = 0
    while True:
        await asyncio.sleep(seconds)
        if (number := num_requests()) != trimmed:
            trimmed = number
            await asyncio.to_thread(_collect_and_trim)


def _collect_and_trim() -> None:
    gc.collect()  # little to visit once objects are frozen
    trim_memory()


def drop_frames(error: BaseException) -> None:
    """Empty the frames that an exception and its causes passed through, so that what they hold is freed at once."""
    cleared: list[BaseException] = []
    remaining: list[BaseException | None] = [error]
    while remaining:
        each = remaining.pop()
        if each is not None and not any(each is other for other in cleared):
            cleared.append(each)
            traceback.clear_frames(each.__traceback__)
            remaining += [each.__cause__, each.__context__]


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
