"""Rank, world size and device of this process, as torchrun and accelerate set them in the environment.

Every module that shares work between processes asks here; torch is imported only for the device.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """This process among those that share a run.

    Attributes:
        index: rank of this process, counted from 0 over all nodes.
        count: number of processes (world size).
    """

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that writes the outputs of a run, rank 0."""
        return self.index == 0

    @classmethod
    def from_environment(cls) -> "Rank":
        """Read `RANK` and `WORLD_SIZE`; a single process where they are not set.

        Raises:
            ValueError: the two do not describe a process of a group.
        """
        rank = cls(_number("RANK", 0), _number("WORLD_SIZE", 1))
        if not 0 <= rank.index < rank.count:
            raise ValueError(
                f"the environment has RANK={rank.index} and WORLD_SIZE={rank.count}: expected 0 <= rank < size"
            )
        return rank


def is_main_process() -> bool:
    """Return True for the process that writes the outputs of a run, rank 0."""
    return Rank.from_environment().is_main


def world_size() -> int:
    """Return the number of processes that share the run."""
    return Rank.from_environment().count


def local_device() -> str | None:
    """Return the accelerator of this rank, such as `cuda:3`; None without a launcher or without an accelerator."""
    if "LOCAL_RANK" not in os.environ:
        return None
    import torch

    if not torch.accelerator.is_available():
        return None
    return f"{torch.accelerator.current_accelerator()}:{_number('LOCAL_RANK', 0)}"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"the environment variable {name} must be an integer, got {text!r}") from error
