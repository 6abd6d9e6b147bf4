"""Mixture dataset: sources mixed by weight, samples processed lazily."""

import hashlib
import json
import logging
import random
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...files import append_line
from ..recipe import Source
from .conversations import BadSample, read_conversation
from .encoding import Encoded, Encoder
from .sources import open_source

logger = logging.getLogger(__name__)

# Length estimates without a manifest: characters per token, tokens per image.
CHARACTERS_PER_TOKEN = 4
IMAGE_TOKENS = 600


class Mixture(Dataset):
    """Dataset of `Encoded` samples; None replaces a sample that cannot be used.

    Args:
        sources: sources with weights. The fractional part of a weight selects a random subset once, by the seed.
        encoder: sample processor, see `encoding`.
        seed: random seed of sampling and augmentation.
        fatal: True raises for a sample that cannot be used, instead of reporting and skipping it.
        report: file that gets a JSON line for each such sample, once.
    """

    def __init__(
        self, sources: tuple[Source, ...], encoder: Encoder, seed: int, fatal: bool = False, report: Path | None = None
    ):
        if not sources:
            raise ValueError("data: there are no sources")
        self.sources = [open_source(source) for source in sources]
        self.encoder, self.seed, self.fatal, self.report = encoder, seed, fatal, report
        self._reported: set[str] = set()  # lines of the report, of which so many bytes were read
        self._read = 0
        rng = random.Random(f"mixture:{seed}")
        self.places: list[tuple[int, int]] = []  # source, sample
        for number, source in enumerate(sources):
            whole, part = int(source.weight), source.weight % 1
            size = len(self.sources[number])
            chosen = sorted(rng.sample(range(size), round(part * size)))
            self.places += [(number, index) for index in [*range(size)] * whole + chosen]
        self._digest = hashlib.sha256()
        manifests = [None if source.manifest is None else _manifest_lengths(source) for source in sources]
        self.lengths: list[int] = []
        self.has_images: list[bool] = []
        for number, index in self.places:
            length, with_images = self._measure(number, index)
            lengths = manifests[number]
            if lengths is not None:
                if len(lengths) != len(self.sources[number]):
                    raise ValueError(
                        f"{sources[number].manifest} lists {len(lengths)} samples, but {sources[number].path} has "
                        f"{len(self.sources[number])}: make it again with `llava-uhd data check`"
                    )
                length = lengths[index] or length
            self.lengths.append(length)
            self.has_images.append(with_images)

    def _measure(self, number: int, index: int) -> tuple[int, bool]:
        """Return the approximate number of tokens of a sample, and whether it has images."""
        try:
            conversation = read_conversation(self.sources[number].record(index))
        except BadSample:
            self._digest.update(b"bad sample")
            return 0, False  # reported when it is loaded
        self._digest.update(f"{number}:{index}:{conversation.text}\0".encode())
        images = len(conversation.images)
        return len(conversation.text) // CHARACTERS_PER_TOKEN + images * IMAGE_TOKENS, images > 0

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of samples, and a digest of their texts and of the lengths that decide their order."""
        digest = self._digest.copy()
        digest.update(json.dumps([self.lengths, self.has_images]).encode())
        return {"samples": len(self), "sha256": digest.hexdigest()}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> Encoded | None:
        number, index = self.places[item]
        source = self.sources[number]
        try:
            conversation = read_conversation(source.record(index))
            images = [source.image(index, name) for name in conversation.images]
            return self.encoder(conversation, images, f"{self.seed}:{number}:{index}")
        except BadSample as error:
            message = f"{source.path}: sample {index}: {error}"
            if self.fatal:
                raise ValueError(message) from error
            self._leave_out(message, {"source": source.path, "index": index, "reason": str(error)})
            return None

    def _leave_out(self, message: str, entry: dict[str, Any]) -> None:
        """Report a sample that cannot be used, unless an earlier pass, process or run did."""
        line = json.dumps(entry)
        if self.report is not None:
            if self.report.is_file():
                with self.report.open("rb") as file:
                    file.seek(self._read)
                    new = file.read()
                self._read += len(new)
                self._reported.update(new.decode().splitlines())
            if line in self._reported:
                return
            append_line(self.report, line)
        logger.warning("left out: %s", message)


def _manifest_lengths(source: Source) -> list[int]:
    """Return the number of tokens of each sample from its manifest, 0 for broken samples."""
    path = Path(source.manifest or "")
    if not path.is_file():
        raise ValueError(f"there is no manifest {path}: `llava-uhd data check` writes it")
    lengths = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        try:
            lengths.append(int(json.loads(line)["num_tokens"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged in line {number}: make it again with `llava-uhd data check`"
            ) from error
    return lengths
