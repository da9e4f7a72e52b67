"""Folders for what is being made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from afdc.errors import StorageError


@contextmanager
def scratch_folder(prefix: str, root: Path | None = None) -> Iterator[Path]:
    """A folder that is gone after the block.

    Args:
        root: where it is made, and made itself if need be; by default the system's folder for such.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    try:
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True)
    except OSError as exc:
        place = root or "the folder for temporary files"
        raise StorageError(
            f"cannot write to {place}: {exc.strerror}", remedy="Free space, or check its rights"
        ) from exc
    with folder as path:
        yield Path(path)
