"""Sample order of an epoch: a function of seed and epoch, independent of the number of devices.

Samples are shuffled into global batches, text-only and image samples separately. Within a global batch they are sorted
by length, so that samples of a micro-batch, and concurrent micro-batches of the devices, have similar lengths.
"""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


def epoch_order(
    lengths: Sequence[int], has_images: Sequence[bool], global_batch: int, seed: int, epoch: int, by_modality: bool
) -> list[int]:
    """Return the sample indices of complete global batches, concatenated.

    Remainders of both kinds are mixed in batches of their own, and the last batch is filled from the start of the
    order: every sample occurs at least once.

    Raises:
        ValueError: there are no samples.
    """
    if not lengths:
        raise ValueError("there are no samples to put in order")
    rng = random.Random(f"order:{seed}:{epoch}")
    indices = list(range(len(lengths)))
    rng.shuffle(indices)
    kinds = [indices]
    if by_modality:
        kinds = [[index for index in indices if has_images[index] == kind] for kind in (True, False)]
    batches, rest = [], []
    for kind in kinds:
        whole = len(kind) - len(kind) % global_batch
        batches += [kind[start : start + global_batch] for start in range(0, whole, global_batch)]
        rest += kind[whole:]
    rng.shuffle(rest)
    rng.shuffle(batches)
    batches += [rest[start : start + global_batch] for start in range(0, len(rest), global_batch)]
    filling = [index for batch in batches for index in batch]
    while len(batches[-1]) < global_batch:
        batches[-1] = batches[-1] + filling[: global_batch - len(batches[-1])]
    return [index for batch in batches for index in sorted(batch, key=lambda index: -lengths[index])]


class EpochOrder(Sampler[int]):
    """Sampler over `epoch_order`; call `set_epoch` before each pass."""

    def __init__(
        self,
        lengths: Sequence[int],
        has_images: Sequence[bool],
        global_batch: int,
        seed: int,
        by_modality: bool = True,
    ):
        self.lengths, self.has_images = lengths, has_images
        self.global_batch, self.seed, self.by_modality = global_batch, seed, by_modality
        self.epoch = 0
        self.size = len(self._order())

    def _order(self) -> list[int]:
        return epoch_order(self.lengths, self.has_images, self.global_batch, self.seed, self.epoch, self.by_modality)

    @property
    def steps(self) -> int:
        """Global batches of an epoch."""
        return self.size // self.global_batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._order())

    def __len__(self) -> int:
        return self.size
