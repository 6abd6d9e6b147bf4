"""Where samples come from: LLaVA JSON or JSONL beside a folder of images, or WebDataset tars.

Both are read in place and at random, so that a shuffled order, and where a run was in it, is a matter of numbers. Of a
tar only the headers are read beforehand; nothing is unpacked.
"""

import json
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..recipe import Source
from .conversations import BadSample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Samples(Protocol):
    """A sequence of samples with their images."""

    path: str

    def __len__(self) -> int: ...

    def record(self, index: int) -> dict[str, Any]:
        """The sample as it was written; `BadSample` if it is no JSON object."""
        ...

    def image(self, index: int, name: str) -> Any:
        """What the image processor can decode: a path, or a file."""
        ...


class JsonSamples:
    """Samples of a JSON list, or of one JSON object a line; kept as bytes, a fraction of what objects take."""

    def __init__(self, path: str, images: str = "."):
        self.path, self.images = path, Path(images).expanduser()
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"there is no file {path}")
        content = file.read_bytes()
        if content.lstrip()[:1] == b"[":
            try:
                records = json.loads(content)
            except ValueError as error:
                raise ValueError(f"{path} is not valid JSON: {error}") from error
            self.lines = [json.dumps(record, ensure_ascii=False).encode() for record in records]
        else:
            self.lines = [line for line in content.splitlines() if line.strip()]

    def __len__(self) -> int:
        return len(self.lines)

    def record(self, index: int) -> dict[str, Any]:
        return _parse(self.lines[index])

    def image(self, index: int, name: str) -> Path:
        return self.images / name


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int


class TarSamples:
    """Samples of WebDataset tars: files of one sample share their name up to the first dot.

    A sample is a `.json` in the LLaVA format and its images. An `image` names a file of the sample, or is anything
    where the sample has one image only; without `image`, it has those that stand beside it.
    """

    def __init__(self, path: str):
        self.path = path
        place = Path(path).expanduser()
        self.shards = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        if not self.shards or not self.shards[0].is_file():
            raise ValueError(f"there are no tars at {path}")
        # One entry a sample: its shard, and its members by what follows the first dot.
        self.samples: list[tuple[int, dict[str, _Member]]] = []
        for number, shard in enumerate(self.shards):
            try:
                self._index(number, shard)
            except tarfile.TarError as error:
                raise ValueError(f"{shard} is not a whole tar: {error}") from error

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
        if images := self._images(index):
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


def _parse(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise BadSample(f"it is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample(f"it is a JSON {type(record).__name__}, not an object")
    return record


def open_source(source: Source) -> JsonSamples | TarSamples:
    """The samples of a recipe's source.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    path = Path(source.path).expanduser()
    samples = (
        TarSamples(source.path) if path.is_dir() or path.suffix == ".tar" else JsonSamples(source.path, source.images)
    )
    if len(samples) == 0:
        raise ValueError(f"{source.path} has no samples")
    return samples
