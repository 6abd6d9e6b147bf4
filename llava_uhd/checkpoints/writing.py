"""Writing a folder so that it is there whole or not at all, and safetensors tensor by tensor.

A safetensors file is eight bytes with the length of its header, the header in JSON, and the tensors' bytes: when all
shapes are known beforehand it can be written front to back, holding one tensor at a time.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .tensors import DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@contextmanager
def new_folder(out: Path, overwrite: bool = False, num_bytes: int = 0) -> Iterator[Path]:
    """A folder to fill, that becomes `out` when the block ends and vanishes when it fails.

    What a run that was killed left behind is removed first: nothing is ever continued from a half-written state.

    Args:
        out: its final place; its parent must be writable.
        overwrite: whether a folder there may be replaced.
        num_bytes: that will be written, to refuse at once what the disk cannot hold.

    Raises:
        ValueError: `out` exists and may not be replaced.
        OSError: the disk is too full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"{out} exists already; give --overwrite to replace it")
    partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    free = shutil.disk_usage(out.parent).free
    if num_bytes > free:
        raise OSError(f"{out} needs {num_bytes:,} bytes, but the disk has {free:,} left")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    partial.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def write_safetensors(
    file: Path,
    tensors: Sequence[Planned],
    read: Callable[[str], torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a file, asking for one tensor after the other.

    Args:
        file: to be written.
        tensors: in this order; larger elements before smaller ones keep each aligned.
        read: gives a tensor of the planned shape and dtype.
        metadata: of the header.
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
    """Writes `model.safetensors`, or shards of about `shard_bytes` and their index, as transformers names them."""
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
    """A reader that tells the bytes it has read, of so many in all."""
    done = 0

    def read_and_tell(name: str) -> torch.Tensor:
        nonlocal done
        tensor = read(name)
        done += tensor.nbytes
        on_progress(done, total)
        return tensor

    return read_and_tell


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
