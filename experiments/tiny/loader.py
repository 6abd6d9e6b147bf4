"""Batches from worker processes: pages are drawn there, in order, and batched by length.

Samples come in groups of consecutive indices; the batches of a group are cut from its samples by length, so that
little is padded, and mixed. A batch is thus a function of the phase, the seed and its number: a run that was stopped
resumes with the batch that came next.
"""

import random
from collections.abc import Iterator
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

import torch
from torch import multiprocessing

from .samples import Sample, make_samples
from .setting import Phase, Setting

GROUP = 32


def cut_batches(samples: list[Sample], tokens: int) -> list[list[Sample]]:
    """Batches of samples of about one length, each of at most so many positions with its padding, or of one sample.

    Args:
        samples: samples of one group.
        tokens: positions of a batch.
    """
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: -sample.length):
        batch = batches[-1] if batches else []
        if batch and (len(batch) + 1) * batch[0].length <= tokens:
            batch.append(sample)
        else:
            batches.append([sample])
    return batches


def _start() -> None:
    torch.set_num_threads(1)


def _make(arguments: tuple[Setting, Phase, int, int]) -> list[Sample]:
    return make_samples(*arguments)


def start_workers(count: int) -> Pool | None:
    """Processes that draw pages; None for 0, so that pages are drawn in this one.

    They are spawned: a fork of a process whose threads have computed can wait forever for a lock of theirs.
    """
    return multiprocessing.get_context("spawn").Pool(count, _start) if count else None


def stream_batches(
    setting: Setting, phase: Phase, seed: int, first: int, pool: Pool | None
) -> Iterator[tuple[int, list[Sample]]]:
    """Endless batches, each with the number to begin with for the one after it.

    Args:
        setting: sizes of the model.
        phase: phase of the training.
        seed: seed of the pages.
        first: number of the first batch: group · GROUP + place in the group.
        pool: processes that draw pages, one group ahead; None draws them here.
    """
    group, skip = divmod(first, GROUP)
    waiting: list[Any] = [_order(pool, setting, phase, seed, group)]
    while True:
        waiting.append(_order(pool, setting, phase, seed, group + len(waiting)))
        order = waiting.pop(0)
        drawn = order.get() if isinstance(order, AsyncResult) else [_make(each) for each in order]
        samples = [sample for page in drawn for sample in page]
        rng = random.Random(f"batches:{seed}:{group}")
        rng.shuffle(samples)
        batches = cut_batches(samples, phase.tokens)
        rng.shuffle(batches)
        for place, batch in enumerate(batches):
            if place >= skip:
                yield group * GROUP + place + 1, batch
        group, skip = group + 1, 0


def _order(pool: Pool | None, setting: Setting, phase: Phase, seed: int, group: int) -> Any:
    batches = [(setting, phase, seed, group * GROUP + place) for place in range(GROUP)]
    return batches if pool is None else pool.map_async(_make, batches, chunksize=1)
