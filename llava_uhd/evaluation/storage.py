"""Evaluation files: written atomically and validated when read.

A record (`result.json`, `protocol.json`) carries a checksum of its content; a prediction carries one in its
`metadata`. Files of earlier versions have none and are read unchecked. Lone surrogates, which UTF-8 cannot hold, are
written as their JSON escapes.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from .. import files
from ..errors import InputError
from ..terminal import note

Record = dict[str, Any]
CHECKSUM = "checksum"
# Checksums that begin so cover all of a prediction; others, of earlier versions, these fields.
_WHOLE = "row-"
_COVERED = ("question_id", "prompt", "text", "image", "index", "error")


class StorageError(InputError):
    """Error: an evaluation file is missing, damaged or of another kind."""


def encode_text(text: str) -> bytes:
    r"""Encode to UTF-8 with lone surrogates as JSON escapes (`\ud83d`), which round-trip."""
    return text.encode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Escape lone surrogates, which UTF-8 streams reject."""
    return encode_text(text).decode()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file name to OS errors without one (such as a full disk)."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file with `write`, then rename it atomically to `path`.

    Raises:
        OSError: the file cannot be written; names it, and the temporary file is removed.
    """
    with files.replace_file(path) as temporary:
        write(temporary)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically.

    Raises:
        OSError: the file cannot be written; names it.
    """
    replace_file(path, lambda temporary: temporary.write_bytes(encode_text(text)))


def _digest(record: Mapping[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != CHECKSUM}
    return sha256(json.dumps(content).encode()).hexdigest()[:16]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its content as its last field."""
    content = {name: value for name, value in record.items() if name != CHECKSUM}
    text = json.dumps(content | {CHECKSUM: _digest(content)}, ensure_ascii=False, indent=1)
    write_atomically(path, text + "\n")


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON object that `write_record` wrote, without its checksum.

    Args:
        path: file to read.
        kind: name of such a file in errors, such as "result file".

    Raises:
        StorageError: the file is missing or damaged, or holds something else; names it.
    """
    if not path.is_file():
        raise StorageError(f"no {kind} {path}")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is no {kind}, or it is damaged: {error}") from error
    if not isinstance(record, dict):
        raise StorageError(f"{path} is no {kind}: it holds a {type(record).__name__}, not an object")
    expected = record.pop(CHECKSUM, None)
    if expected is not None and expected != _digest(record):
        raise StorageError(
            f"{path} is damaged, or it was edited: its checksum is {expected}, its content's is {_digest(record)}; "
            "write it again (eval score predictions.jsonl)"
        )
    return record


def row_checksum(row: Mapping[str, Any]) -> str:
    """Return the checksum of a prediction, which covers all of it but the checksum."""
    metadata = {name: value for name, value in (row.get("metadata") or {}).items() if name != CHECKSUM}
    content = json.dumps({**row, "metadata": metadata}, sort_keys=True)
    return f"{_WHOLE}{zlib.crc32(content.encode()):08x}"


def _former_checksum(row: Mapping[str, Any]) -> str:
    covered = [row.get(name) for name in _COVERED]
    return f"{zlib.crc32(json.dumps(covered).encode()):08x}"


def _is_as_written(row: Mapping[str, Any]) -> bool:
    """Return whether a prediction matches its checksum, where it has one."""
    metadata = row.get("metadata")
    if not isinstance(metadata, dict):
        return "index" not in row  # this package has always written both
    expected = metadata.get(CHECKSUM)
    if isinstance(expected, str) and expected.startswith(_WHOLE):
        return expected == row_checksum(row)
    if expected is not None:
        return bool(expected == _former_checksum(row))
    return not (metadata and "index" in row)  # there was one among them


def dump_row(row: Record) -> str:
    """Return one line of a prediction file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_rows(path: Path, rows: Iterable[Record]) -> None:
    """Append predictions and wait until they are on disk.

    Raises:
        OSError: the file cannot be written; names it.
    """
    content = encode_text("".join(map(dump_row, rows)))
    with _naming(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> tuple[list[Record], list[str]]:
    """Read a prediction file.

    Returns:
        The rows, and a name ("line 7") for each line that is none or does not match its checksum.

    Raises:
        StorageError: there is no such file.
    """
    if not path.is_file():
        raise StorageError(f"no prediction file {path}")
    rows, unreadable = [], []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        problem = None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and "question_id" in row and isinstance(row.get("text"), str)):
            problem = f"line {number}"
        elif not isinstance(row.get("prompt"), str | None) or not isinstance(row.get("image"), str | None):
            problem = f"line {number}"
        elif not _is_as_written(row):
            problem = f"line {number}: not as it was written, by its checksum"
        if problem is None:
            rows.append(row)
        else:
            unreadable.append(problem)
    return rows, unreadable


def warn(message: str) -> None:
    """Print a warning on stderr."""
    note(f"warning: {printable(message)}")
