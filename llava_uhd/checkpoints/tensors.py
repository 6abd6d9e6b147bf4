"""Tensor files, read one tensor at a time: safetensors, and PyTorch's zip format with `weights_only`.

The header is checked against the file size before anything is allocated: a truncated file, a shape larger than the
data, and a pickle that would run code each raise a `ValueError` that names the file.
"""

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of a tensor."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorReader:
    """List and read the tensors of files. One PyTorch file is open at a time, memory-mapped."""

    def __init__(self) -> None:
        self._open: tuple[Path, dict[str, torch.Tensor]] | None = None

    def list(self, file: Path) -> Iterator[TensorInfo]:
        """Return all tensors of a file, in file order.

        Raises:
            ValueError: the file is damaged, holds something else than tensors, or would run code.
        """
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as handle:
                for key in handle.offset_keys():
                    entry = handle.get_slice(key)
                    if entry.get_dtype() not in DTYPES:
                        raise ValueError(f"{file}: {key} has the type {entry.get_dtype()}, which is not supported")
                    yield TensorInfo(file, key, tuple(entry.get_shape()), DTYPES[entry.get_dtype()])
        else:
            for key, tensor in self._load(file).items():
                yield TensorInfo(file, key, tuple(tensor.shape), tensor.dtype)

    def read(self, info: TensorInfo) -> torch.Tensor:
        """Return one tensor."""
        if info.file.suffix != ".safetensors":
            return self._load(info.file)[info.key]
        # Reopen for each tensor: the mapping and its resident memory are released with the tensor.
        with _open_safetensors(info.file) as handle:
            tensor: torch.Tensor = handle.get_tensor(info.key)
            return tensor

    def _load(self, file: Path) -> dict[str, torch.Tensor]:
        if self._open is None or self._open[0] != file:
            self._open = None
            self._open = file, load_torch_file(file)
        return self._open[1]


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite; checked in chunks to bound memory."""
    return all(bool(piece.isfinite().all()) for piece in torch.split(tensor.reshape(-1), 1 << 24))


def _open_safetensors(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short: {error}") from error


def load_torch_file(file: Path) -> dict[str, torch.Tensor]:
    """Return the memory-mapped tensors of a PyTorch file; for a training checkpoint, those of its `state_dict`.

    Raises:
        ValueError: the file is cut short, of the format before PyTorch 1.6, would run code, or holds no tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is cut short, or not in PyTorch's zip format") from error
    if packed:
        raise ValueError(f"{file} holds compressed entries ({packed[0]}), which PyTorch never writes")
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        reason = next((line for line in lines if "GLOBAL" in line), lines[-1])
        raise ValueError(f"{file} holds more than tensors and is not unpickled: {reason.strip()}") from error
    except RuntimeError as error:
        raise ValueError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} holds no dictionary of tensors")
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{file}: {key} is not a tensor but {type(value).__name__}")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{file}: {key} of shape {tuple(value.shape)} is larger than its data")
    return content
