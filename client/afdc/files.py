"""Durable file writes: a reader sees the old file or the whole new one, and never a part.

Order of every publication: write to a temporary name in the same folder, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from afdc.errors import StorageError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

CHUNK_BYTES = 1 << 20


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with `~` and `~name` for home folders.

    Raises:
        UsageError: there is no such user, or it holds a NUL character.
    """
    if "\0" in str(text):
        raise UsageError(f"{str(text)!r} is no path: it holds a NUL character", remedy="Correct the path")
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise UsageError(f"{text}: there is no home folder of that user", remedy="Write the path in full") from exc


def cache_root() -> Path:
    """AFDC_CACHE, else XDG_CACHE_HOME/afdc, else ~/.cache/afdc."""
    if chosen := os.environ.get("AFDC_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "afdc"


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes (and hash)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _CheckedWriter(io.BufferedWriter):
    """A file whose own failures are StorageErrors; errors of whoever writes to it stay what they are."""

    def __init__(self, temporary: Path, path: Path) -> None:
        super().__init__(io.FileIO(temporary, "w"))
        self._path = path

    def write(self, data: Buffer, /) -> int:
        with _as_storage_error(self._path):
            return super().write(data)

    def flush(self) -> None:
        with _as_storage_error(self._path):
            super().flush()


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a binary stream that becomes `path` when the block ends without an error.

    Raises:
        StorageError: the disk is full or cannot be written; nothing is left under `path`. Any other error of the block
            rises as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with _as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = _CheckedWriter(temporary, path)
        with stream:
            yield stream
            stream.flush()
            with _as_storage_error(path):
                os.fsync(stream.fileno())
        with _as_storage_error(path):
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """See that `atomic_writer` can write `path`, before work is done whose result would have no place.

    Raises:
        UsageError: a folder, or something else that is no regular file: a rename would put a file in its place.
        StorageError: its folder cannot be made or written.
    """
    with _as_storage_error(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder", remedy="Name a file inside it")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file", remedy="Name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass  # making a file is the check


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file durably."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON durably."""
    write_bytes(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def publish_folder(temporary: Path, final: Path) -> None:
    """Fsync every file and folder of `temporary`, then rename it to `final`.

    A folder already at `final` wins: a published artifact never changes, and work done twice made the same one.
    """
    with _as_storage_error(final):
        for path in sorted(temporary.rglob("*"), reverse=True):  # what a folder holds comes before the folder
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            elif path.is_dir():
                fsync_folder(path)
        fsync_folder(temporary)
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.exists() and _rename_first(temporary, final):
            return
        shutil.rmtree(temporary)
        fsync_folder(final.parent)


def _rename_first(temporary: Path, final: Path) -> bool:
    """Rename durably. False: another process has published the folder in this very moment."""
    try:
        os.rename(temporary, final)
    except OSError as exc:
        if exc.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    fsync_folder(final.parent)
    return True


def rename_folder(old: Path, new: Path) -> None:
    """Rename durably inside one parent folder.

    Raises:
        StorageError: the disk cannot be written.
    """
    with _as_storage_error(new):
        os.rename(old, new)
        fsync_folder(new.parent)


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _storage_error(path, exc) from exc


def _storage_error(path: Path, exc: OSError) -> StorageError:
    reason = exc.strerror or str(exc)
    return StorageError(
        f"cannot write {path}: {reason}",
        remedy="Free space or choose another folder, then run the same command again: finished work is kept",
    )
