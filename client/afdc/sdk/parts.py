"""A download on the disk: a `.part` beside its target until it is whole and known to be right."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from afdc.errors import StorageError
from afdc.files import fsync_folder, sha256_file
from afdc.sdk.exceptions import DownloadError
from afdc.wording import one_line

FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:]")


def inside(folder: Path, path: str) -> Path:
    """Where a file that the server calls `path` lies below `folder`.

    Raises:
        DownloadError: it would lie outside, or under a name that means something else on another system.
    """
    parts = PurePosixPath(path).parts
    is_plain = path and "/".join(parts) == path and ".." not in parts and not FORBIDDEN.search(path)
    target = folder.joinpath(*parts)
    if not is_plain or path.startswith("/") or not target.resolve().is_relative_to(folder.resolve()):
        raise DownloadError(f"the server names a file {one_line(path, 100)!r}, which is no path inside a folder")
    return target


class Part:
    """The unfinished file. One process at a time."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._stream: BinaryIO | None = None

    def size(self) -> int:
        """Bytes that are there."""
        with storing(self.path):
            return self.path.stat().st_size if self.path.exists() else 0

    def is_full(self, size: int) -> bool:
        """Whether it is there and as long as it shall be."""
        with storing(self.path):
            return self.path.exists() and self.path.stat().st_size == size

    def begin(self, offset: int) -> None:
        """Go on at `offset`; what lies behind it is dropped."""
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("r+b" if self.path.exists() else "w+b")
            self._stream.truncate(offset)
            self._stream.seek(offset)

    def write(self, piece: bytes) -> None:
        """Append."""
        with storing(self.path):
            if self._stream is None:
                raise ValueError("begin() comes first")
            self._stream.write(piece)

    def end(self) -> None:
        """Close; all that was written is in the file, though not yet on the disk."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with storing(self.path):
                stream.close()

    def drop(self) -> None:
        """Remove."""
        with storing(self.path):
            self.path.unlink(missing_ok=True)

    def has(self, sha256: str) -> bool:
        """Whether the content is that of the hash."""
        with storing(self.path):
            return sha256_file(self.path) == sha256

    def publish(self) -> None:
        """Make it the target, durably."""
        with storing(self.target):
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(self.path, self.target)
            fsync_folder(self.target.parent)


def is_there(target: Path, size: int, sha256: str) -> bool:
    """Whether the target is already what was asked for."""
    with storing(target):
        return target.is_file() and target.stat().st_size == size and sha256_file(target) == sha256


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Failures of the disk as errors that name the file.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as exc:
        remedy = "Free space or choose another folder, then download again: it goes on where it stopped"
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}", remedy=remedy) from exc
