"""One server a data folder: its lock, and the name under which it holds leases."""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from afdc.errors import ConflictError, StorageError

LOCK_FILE = "lock"


@dataclass(frozen=True)
class Instance:
    """Held until `release`, or the end of the process. `name` stays that of the folder over all starts."""

    name: str
    handle: int

    def release(self) -> None:
        """Let another server have the folder."""
        os.close(self.handle)


def hold_instance(data: Path) -> Instance:
    """Keep every other server out of the data folder.

    Raises:
        ConflictError: another server works on it. StorageError: it cannot be written.
    """
    try:
        handle = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise _unusable(data, exc) from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Instance(_name(handle), handle)
    except OSError as exc:
        os.close(handle)
        if isinstance(exc, BlockingIOError):
            remedy = "End it, or give --data another folder"
            raise ConflictError(f"another afdc-server works on {data}", remedy=remedy) from exc
        raise _unusable(data, exc) from exc


def _name(handle: int) -> str:
    """What stands in the lock file, put there by the folder's first server."""
    name = os.pread(handle, 64, 0).decode("ascii", "replace")
    if not name:
        name = secrets.token_hex(8)
        os.pwrite(handle, name.encode(), 0)
        os.fsync(handle)
    return name


def _unusable(data: Path, exc: OSError) -> StorageError:
    return StorageError(f"cannot write to {data}: {exc.strerror}", remedy="Give --data another folder")
