"""Parallel generation in worker processes, each on its share of the cores.

The many small products of a small model on a CPU leave the cores of one process waiting for each other, and threads
wait for Python's lock. Each process holds a copy of the model, so a large one is answered by one.
"""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import torch

from .generation import Answers, BatchGenerator, run_ahead
from .samples import Sample

if TYPE_CHECKING:
    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration

# A process for each core pays up to so many bytes of weights, which a processor's cache holds, and from so many
# batches on, since a process takes seconds to begin.
_SMALL = 64 * 2**20
_MANY = 16


def default_workers(model: "LlavaUhdForConditionalGeneration", batches: int) -> int:
    """Return one process per core for many batches of a small model on a CPU, otherwise one."""
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    pays = model.device.type == "cpu" and size <= _SMALL and batches >= _MANY
    return torch.get_num_threads() if pays else 1


class Workers:
    """Processes that answer batches of some samples as the given generator would. To be closed: a context manager."""

    def __init__(self, generator: BatchGenerator, samples: Sequence[Sample], count: int):
        self.count = count
        # By value: what torch shares between processes needs more shared memory than containers have by default.
        state = pickle.dumps((generator, list(samples)))
        threads = max(torch.get_num_threads() // count, 1)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(state, threads))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def generate_all(self, batches: Iterable[Sequence[int]]) -> Iterator[Answers]:
        """Yield answers in batch order.

        Raises:
            ChildProcessError: a process ended, killed for want of memory perhaps.
        """
        try:
            # Queue one batch more than there are processes, so that no worker idles.
            yield from run_ahead(self._pool, _answer, batches, self.count + 1)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"one of {self.count} processes that answer questions ended before its time, "
                "for want of memory perhaps; what was answered is kept: continue with fewer --workers"
            ) from error


_state: tuple[BatchGenerator, list[Sample]]


def _begin(state: bytes, threads: int) -> None:
    """Initialize a worker, which exits with its parent process, even if that is killed."""
    global _state
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _state = pickle.loads(state)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(positions: Sequence[int]) -> Answers:
    generator, samples = _state
    with ThreadPoolExecutor(1) as decoding:
        batch = generator.batches.build(samples, positions, decoding)
    return generator.generate(batch)
