"""Sample sources: LLaVA JSON or JSONL with an image folder, WebDataset tars, or tables (`tables`).

Both are read in place with random access, so that shuffling and resuming only need indices. Only the headers of a tar
are read beforehand; nothing is unpacked.
"""

import codecs
import json
import logging
import re
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ...model.images import IMAGE_EXTENSIONS
from ..recipe import Source
from .conversations import BadSample

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = IMAGE_EXTENSIONS


class Samples(Protocol):
    """Sequence of samples with their images."""

    path: str

    def __len__(self) -> int: ...

    def record(self, index: int) -> dict[str, Any]:
        """Return the raw sample; raise `BadSample` if it is not a JSON object."""
        ...

    def image(self, index: int, name: str) -> Any:
        """Return a path or file object that the image processor can decode."""
        ...


class JsonSamples:
    """Samples of a JSON list or JSON lines; kept as bytes to save memory."""

    def __init__(self, path: str, images: str = "."):
        self.path, self.images = path, Path(images).expanduser()
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"there is no file {path}")
        content = _as_utf8(file.read_bytes(), path)
        if b"\0" in content[:4096]:
            raise ValueError(f"{path} is not text: expected JSON, JSON lines, a tar or a Parquet file")
        if content.lstrip()[:1] == b"[" and (content.lstrip()[1:].lstrip()[:1] or b"x") in b"]{":
            try:
                records = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is not valid JSON: {error}") from error
            # Escape lone surrogates, which UTF-8 cannot encode: reject the sample, not the file.
            self.lines = [json.dumps(record).encode() for record in records]
        else:
            self.lines = [line for line in content.splitlines() if line.strip()]
            if len(self.lines) > 1 and self.lines[0].strip() == b"{":
                raise ValueError(
                    f"{path} begins with a JSON object over several lines: expected one object per line (JSONL), "
                    "or one list of objects"
                )

    def __len__(self) -> int:
        return len(self.lines)

    def record(self, index: int) -> dict[str, Any]:
        return _parse(self.lines[index])

    def image(self, index: int, name: str) -> Path:
        file = self.images / name
        if "\\" in name and not file.exists():
            return self.images / name.replace("\\", "/")  # written on Windows
        return file


def _as_utf8(content: bytes, path: str) -> bytes:
    """Return the content in UTF-8 without a byte order mark.

    Raises:
        ValueError: it begins as UTF-16 does, but is not.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16").encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return content.removeprefix(codecs.BOM_UTF8)


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int


class TarSamples:
    """Samples of WebDataset tars: files of one sample share their name up to the first dot.

    A sample is a `.json` file in LLaVA format and its images. `image` names a file of the sample, or is arbitrary if
    the sample has one image only; without `image`, the sample has all images of its key.
    """

    def __init__(self, path: str):
        self.path = path
        place = Path(path).expanduser()
        self.shards = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        if not self.shards or not self.shards[0].is_file():
            raise ValueError(
                f"there are no tars at {path}, and it is no Parquet file, folder of Parquet files or saved dataset"
            )
        # One entry per sample: its shard, and its members by extension.
        self.samples: list[tuple[int, dict[str, _Member]]] = []
        for number, shard in enumerate(self.shards):
            try:
                self._index(number, shard)
            except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{shard} is not a whole tar: {error}") from error
        if not self.samples:
            raise ValueError(f"{path} has no files in its tars")
        if missing := _missing_numbers([shard.stem for shard in self.shards]):
            logger.warning("%s: between its shards, numbers are missing: %s", path, ", ".join(missing))

    def _index(self, number: int, shard: Path) -> None:
        last = None
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                stem, _, suffix = name.name.partition(".")
                key = (str(name.parent), stem)
                if key != last:
                    self.samples.append((number, {}))
                    last = key
                self.samples[-1][1][suffix] = _Member(member.offset_data, member.size)
            end = tar.offset
        _check_end(shard, end)

    def __len__(self) -> int:
        return len(self.samples)

    def _read(self, index: int, suffix: str) -> bytes:
        number, members = self.samples[index]
        with self.shards[number].open("rb") as file:
            file.seek(members[suffix].offset)
            return file.read(members[suffix].size)

    def _images(self, index: int) -> list[str]:
        return [suffix for suffix in self.samples[index][1] if f".{suffix}".lower().endswith(IMAGE_SUFFIXES)]

    def record(self, index: int) -> dict[str, Any]:
        if "json" not in self.samples[index][1]:
            raise BadSample("it has no .json")
        record = _parse(self._read(index, "json"))
        if "images" not in record and (images := self._images(index)):
            record.setdefault("image", images)
        return record

    def image(self, index: int, name: str) -> BytesIO:
        images = self._images(index)
        suffix = PurePosixPath(name).name.partition(".")[2]
        match = name if name in images else suffix if suffix in images else images[0] if len(images) == 1 else None
        if match is None:
            raise BadSample(f"its image {name} is not among its files: {', '.join(images) or 'none'}")
        file = BytesIO(self._read(index, match))
        file.name = name
        return file


def _check_end(shard: Path, end: int) -> None:
    """Check the data after the last member: tarfile stops silently at a header it cannot read.

    Raises:
        tarfile.ReadError: there is anything but the zeros that end a tar.
    """
    size = shard.stat().st_size
    if end == size:
        logger.warning("%s ends without the mark of its end: files may be missing", shard)
        return
    with shard.open("rb") as file:
        file.seek(end)
        position = end
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                position += len(chunk) - len(chunk.lstrip(b"\0"))
                raise tarfile.ReadError(
                    f"its header at byte {end:,} of {size:,} is damaged or cut, or another tar follows "
                    f"(first byte that is not zero: {position:,})"
                )
            position += len(chunk)
    if size - end < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut at byte {size:,}, inside a header")


def _missing_numbers(stems: list[str]) -> list[str]:
    """Return the numbers missing from a numbered sequence of shard names."""
    matches = [re.fullmatch(r"(.*?)(\d+)(\D*)", stem) for stem in stems]
    if len(stems) < 2 or not all(matches):
        return []
    found: dict[tuple[str, str], set[int]] = {}
    for part in matches:
        assert part is not None
        found.setdefault((part[1], part[3]), set()).add(int(part[2]))
    missing = []
    for (before, after), numbers in found.items():
        lost = sorted(set(range(min(numbers), max(numbers))) - numbers) if max(numbers) < 10**6 else []
        # A few missing shards are an error; most missing means that a subset was downloaded.
        if lost and len(lost) < len(numbers):
            missing += [f"{before}{number}{after}" for number in lost]
    return missing


def _parse(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise BadSample("it is not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise BadSample(f"it is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample(f"it is a JSON {type(record).__name__}, not an object")
    return record


def open_source(source: Source) -> Samples:
    """Open the samples of a recipe's source.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    from .tables import TableSamples, is_table

    path = Path(source.path).expanduser()
    samples: Samples
    if is_table(source):
        samples = TableSamples(source)
    elif source.columns:
        raise ValueError(f"data: {source.path} is no table, so its source has no columns to map")
    elif path.is_dir() or path.suffix == ".tar":
        samples = TarSamples(source.path)
    else:
        samples = JsonSamples(source.path, source.images)
    if len(samples) == 0:
        raise ValueError(f"{source.path} has no samples")
    return samples
