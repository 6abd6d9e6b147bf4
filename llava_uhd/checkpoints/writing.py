"""Write safetensors tensor by tensor.

A safetensors file consists of eight bytes with the header length, the header in JSON, and the tensors' bytes: if all
shapes are known beforehand, it can be written sequentially with one tensor in memory at a time.
"""

import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import new_folder as new_folder
from ..files import write_json
from .tensors import DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Planned:
    """Tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(
    file: Path,
    tensors: Sequence[Planned],
    read: Callable[[str], torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a file, reading one tensor at a time.

    Args:
        file: output path.
        tensors: tensors in file order; sorting by decreasing element size keeps each aligned.
        read: callback that returns a tensor of the planned shape and dtype.
        metadata: metadata of the header.
    """
    header: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(file, "wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        for planned in tensors:
            numbers = read(planned.name)
            assert (tuple(numbers.shape), numbers.dtype) == (planned.shape, planned.dtype), planned
            handle.write(numbers.contiguous().flatten().view(torch.uint8).numpy().data)
        handle.flush()
        os.fsync(handle.fileno())


def write_model(
    folder: Path,
    tensors: Sequence[Planned],
    read: Callable[[str], torch.Tensor],
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `model.safetensors`, or shards of about `shard_bytes` and their index, named as in transformers."""
    read = telling(read, sum(tensor.num_bytes for tensor in tensors), on_progress)
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.num_bytes for other in shards[-1]) + tensor.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, sorted(shard, key=lambda tensor: -tensor.dtype.itemsize), read)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.num_bytes for tensor in tensors)
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def telling(
    read: Callable[[str], torch.Tensor], total: int, on_progress: Callable[[int, int], None]
) -> Callable[[str], torch.Tensor]:
    """Wrap a reader to report bytes read and total bytes."""
    done = 0

    def read_and_tell(name: str) -> torch.Tensor:
        nonlocal done
        tensor = read(name)
        done += tensor.nbytes
        on_progress(done, total)
        return tensor

    return read_and_tell
