"""Files and folders that are there whole or not at all.

- `replace_file`, `write_text`, `write_json`: a file appears under its name when all its bytes are on disk.
- `new_folder`: the same for a folder.
- `seal_folder`, `seal_file`: write sizes and checksums of a folder's files into one list.
- `find_damage`, `differences`: compare a folder with that list.
- `write_checked`, `read_checked`: one file with its checksum.
- `lock_folder`: one process at a time works in a folder.

    with replace_file(out / "state.pt") as file:
        torch.save(state, file)
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 24  # bytes that are read at a time for a checksum
CHECKSUM_THREADS = 8
CHECKED = b"llava-uhd checked file, bytes and CRC-32: "


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; it replaces `path` when the block ends and is removed when the block fails.

    The temporary path is always the same, so that a run overwrites what a killed one left.

    Args:
        path: final place of the file; its folder must exist.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # A full disk names no file.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, replacing the one before as a whole."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a value as JSON, replacing the file before as a whole.

    Raises:
        ValueError: it holds a number that JSON does not have (NaN, infinity).
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not valid JSON ({error})") from error


def write_checked(path: Path, content: bytes | memoryview) -> None:
    """Write bytes behind a line with their number and CRC-32, replacing the file before as a whole."""
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(CHECKED + f"{len(content)} {zlib.crc32(content):08x}\n".encode())
        file.write(content)


def read_checked(path: Path) -> bytes:
    """Read what `write_checked` wrote; of a file without its line, as earlier versions wrote, all bytes.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    content = path.read_bytes()
    if not content.startswith(CHECKED):
        return content
    line, _, content = content.removeprefix(CHECKED).partition(b"\n")
    if line != f"{len(content)} {zlib.crc32(content):08x}".encode():
        raise ValueError(f"it is damaged: {len(content):,} bytes that do not agree with their checksum")
    return content


def append_line(path: Path, line: str) -> None:
    """Append a line to a log in one write, so that a kill leaves at most one partial line, at the end."""
    with path.open("ab") as file:
        file.write(f"{line}\n".encode())


def drop_partial_line(path: Path) -> None:
    """Cut off what a kill left behind the last newline."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(out: Path, overwrite: bool = False, num_bytes: int = 0) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `out` when the block ends and is removed when the block fails.

    What a killed run left behind is removed first: nothing is ever continued from a partial folder.

    Args:
        out: final place of the folder; its parent must be writable.
        overwrite: whether an existing folder may be replaced.
        num_bytes: bytes that will be written, to refuse at once what the disk cannot hold.

    Raises:
        ValueError: `out` exists and may not be replaced, or another process is writing it.
        OSError: the disk is too full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(out, beside=True):
        partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
        if replaced.exists() and not out.exists():  # killed between the two renames
            replaced.rename(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
            raise ValueError(f"{out} exists already; give --overwrite to replace it")
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(out.parent).free
        if num_bytes > free:
            raise OSError(f"{out} needs {num_bytes:,} bytes, but the disk has {free:,} left")
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                sync(file)
        except BaseException:
            shutil.rmtree(partial)
            raise
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            out.rename(replaced)
        partial.rename(out)
        sync(out.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def seal_folder(folder: Path, seal: str) -> None:
    """Write the list of a folder's files with size and CRC-32 of each; the folder is complete from then on.

    Args:
        folder: folder whose files, at any depth, are all written.
        seal: name of the list in it.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != seal]
    for file in files:
        sync(file)
    with ThreadPoolExecutor(CHECKSUM_THREADS) as threads:
        checksums = list(threads.map(checksum, files))
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "crc32": crc}
        for file, crc in zip(files, checksums, strict=True)
    }
    write_json(folder / seal, {"files": entries})


def seal_file(folder: Path, seal: str, name: str) -> None:
    """Enter a file that was written later into the list that `seal_folder` wrote."""
    content = read_json(folder / seal)
    file = folder / name
    content["files"][name] = {"bytes": file.stat().st_size, "crc32": checksum(file)}
    write_json(folder / seal, content)


def find_damage(folder: Path, seal: str, contents: bool = True) -> str | None:
    """Compare a folder with the list that `seal_folder` wrote.

    Args:
        folder: folder to check.
        seal: name of the list in it.
        contents: also compare checksums, which reads every file.

    Returns:
        The first difference in words, None where there is none. An empty list, as earlier versions wrote, tells
        nothing about the files: they are taken as they are.
    """
    return next((said for _, said in differences(folder, seal, contents)), None)


def differences(
    folder: Path, seal: str, contents: bool = True, is_checked: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, str]]:
    """Yield the name of each file that differs from the list that `seal_folder` wrote, and the difference in words.

    Args:
        folder: folder to check.
        seal: name of the list in it; yielded itself if it is missing or damaged.
        contents: also compare checksums, which reads every file.
        is_checked: function that returns whether a file of the list is checked.
    """
    file = folder / seal
    if not file.is_file():
        yield seal, f"it was not written to its end (no file {seal!r})"
        return
    if file.stat().st_size == 0:
        return
    try:
        entries = read_json(file)["files"]
        expected = {str(name): (int(entry["bytes"]), int(entry["crc32"])) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        yield seal, f"its list of files {seal!r} is damaged"
        return
    expected = {name: values for name, values in expected.items() if is_checked(name)}
    same_size = {}
    for name, (size, crc) in expected.items():
        if not (folder / name).is_file():
            yield name, f"its file {name} is missing"
        elif (found := (folder / name).stat().st_size) != size:
            yield name, f"its file {name} has {found:,} of {size:,} bytes"
        else:
            same_size[name] = crc
    if contents:
        with ThreadPoolExecutor(CHECKSUM_THREADS) as threads:
            found_checksums = threads.map(checksum, [folder / name for name in same_size])
            for (name, crc), found_crc in zip(same_size.items(), found_checksums, strict=True):
                if found_crc != crc:
                    yield name, f"its file {name} is damaged (checksum {found_crc:08x}, expected {crc:08x})"


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    crc = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


@contextmanager
def lock_folder(folder: Path, beside: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however that ends.

    Args:
        folder: folder to hold; made if it is not there, and removed again if nothing else was put into it.
        beside: put the lock file next to the folder, for one that is itself replaced.

    Raises:
        ValueError: another process holds it.
    """
    file = folder.with_name(f".{folder.name}.lock") if beside else folder / ".lock"
    existed = folder.exists()
    if existed and not beside and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: name another one")
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(file)
    if handle is None:
        raise ValueError(f"{folder} is in use by another run: wait for it to end, or name another folder")
    with handle:
        try:
            yield
        finally:
            if os.name != "nt":  # Windows keeps a file that is open
                file.unlink(missing_ok=True)
            if not beside and not existed and not any(folder.iterdir()):
                folder.rmdir()


def _locked(file: Path) -> IO[bytes] | None:
    """Open and lock a file; None while another process holds it."""
    while True:
        handle = file.open("ab")
        if not _try_lock(handle):
            handle.close()
            return None
        # The process that held it before may have removed it since it was opened: then the lock is of nothing.
        if _is_at(handle, file):
            return handle
        handle.close()


def _is_at(handle: IO[bytes], file: Path) -> bool:
    try:
        opened, named = os.fstat(handle.fileno()), file.stat()
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


def _try_lock(handle: IO[bytes]) -> bool:
    """Lock an open file for this process without waiting."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
