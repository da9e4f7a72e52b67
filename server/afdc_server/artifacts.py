"""Finished files: folders in a local directory or in any store that fsspec knows (s3://, gs://, …).

A folder is published whole: its files first, then the database says that it is there. Nothing in it changes afterwards.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs

from afdc.errors import InputError, StorageError, UsageError
from afdc.files import atomic_writer, publish_folder, sha256_file
from afdc.wire.datasets import StoredFile
from afdc_server.redact import credentials_of, redact

PIECE_BYTES = 1 << 20
AHEAD_BYTES = 4 << 20  # what a reader of a store elsewhere holds beyond what was asked for; s3fs would take 50 MiB
LIBRARIES = ("botocore", "aiobotocore", "aiohttp")
"""Of s3fs: their errors are no OSErrors."""
OWN = {"use_listings_cache": False, "skip_instance_cache": True}
"""Nothing is remembered of a store: other servers write there, too."""
HERE = "Free space, or check the store's rights"
ELSEWHERE = "Check its address and credentials, and their rights to read, write, list and delete (docs/deployment.md)"


class ArtifactStore:
    """Folders under one URL. `cache` holds local copies of what lies elsewhere."""

    def __init__(self, url: str, cache: Path) -> None:
        """Raises UsageError: a URL of a kind that is not installed or not known, or without a place in it."""
        try:
            fs, root = url_to_fs(url, **OWN)
        except ImportError as exc:
            raise _unusable(url, str(exc), "Install it in the server's environment") from exc
        except ValueError as exc:
            raise _unusable(url, str(exc), "Use file://… or s3://…") from exc
        if any(f"{one}@" in root for one in credentials_of(url)):
            raise UsageError(
                "the artifact store's URL carries credentials, which stores of its kind take for a part of the name",
                remedy="Give them as its library reads them; for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        self._fs: Any = fs
        self._url = url
        self._root = str(root).rstrip("/")
        if not self._root:
            raise _unusable(url, "it names no bucket or folder", "Use s3://bucket/prefix")
        self._cache = cache
        self.is_local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))

    def check(self) -> None:
        """See that the store can be written, read, listed and cleared.

        A local folder is made. A bucket is not: one that is missing is a mistyped one.

        Raises:
            StorageError: it cannot. UsageError: its library refuses what the environment says of it.
        """
        probe = f"{self._root}/.probe-{uuid.uuid4().hex}"
        try:
            with self._translated(self._url, "Make the bucket first, or correct --artifacts"):
                if self.is_local:
                    self._fs.makedirs(self._root, exist_ok=True)
                self._fs.pipe_file(probe, b"afdc")
                self._fs.find(probe)
                self._fs.cat_file(probe)
                self._fs.rm_file(probe)
        except ValueError as exc:
            raise _unusable(self._url, str(exc), ELSEWHERE) from exc

    def publish(self, folder: Path, location: str) -> list[StoredFile]:
        """Put every file of a local folder under `location`. Doing it twice leaves the same.

        Raises:
            StorageError: the store cannot be written.
        """
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        listed = [
            StoredFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in files
        ]
        with self._translated(location):
            if self.is_local:
                self._copy(folder, Path(self._path(location)))
            else:
                for path, stored in zip(files, listed, strict=True):
                    self._fs.put_file(str(path), f"{self._path(location)}/{stored.path}")
        return listed

    def _copy(self, folder: Path, target: Path) -> None:
        with _publishing(target) as temporary:
            shutil.copytree(folder, temporary)

    def local(self, location: str, file: StoredFile) -> Path:
        """A path on this machine with the file's content: the file itself, or a copy that was checked.

        Raises:
            StorageError: it cannot be read, or is not what was stored.
        """
        if self.is_local:
            return Path(self._path(location)) / inside(file.path)
        kept = self._cache / file.sha256[:2] / file.sha256
        if not kept.exists():
            with self.open(location, file.path) as source, atomic_writer(kept) as target:
                shutil.copyfileobj(source, target, PIECE_BYTES)
        if sha256_file(kept) != file.sha256:
            kept.unlink()
            raise StorageError(f"{location}/{file.path} is damaged: its content does not match its hash")
        return kept

    def local_folder(self, location: str, files: list[StoredFile], target: Path) -> Path:
        """A folder on this machine with all the files; `target` is made where they lie elsewhere."""
        if self.is_local:
            return Path(self._path(location))
        if not target.exists():
            with _publishing(target) as temporary:
                for file in files:
                    place = temporary / inside(file.path)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.local(location, file), place)
        return target

    def open(self, location: str, path: str, start: int = 0) -> BinaryIO:
        """A stored file from byte `start` on. Raises StorageError where it cannot be read."""
        with self._translated(f"{location}/{path}"):
            stream = self._fs.open(f"{self._path(location)}/{inside(path)}", "rb", block_size=AHEAD_BYTES)
            stream.seek(start)
        return cast(BinaryIO, stream)

    def pieces(self, location: str, path: str, start: int, length: int) -> Iterator[bytes]:
        """`length` bytes from `start` on, a MiB at a time."""
        with self.open(location, path, start) as stream:
            while length > 0 and (piece := self._read(stream, location, path, min(PIECE_BYTES, length))):
                length -= len(piece)
                yield piece

    def _read(self, stream: BinaryIO, location: str, path: str, length: int) -> bytes:
        with self._translated(f"{location}/{path}"):
            return stream.read(length)

    def lines(self, location: str, path: str) -> Iterator[bytes]:
        """The lines of a stored file. Raises StorageError where it cannot be read."""
        with self._translated(f"{location}/{path}"), self.open(location, path) as stream:
            yield from stream

    def folders(self, kind: str) -> list[str]:
        """Locations of the folders below `kind`, those included that a copy was cut off in."""
        with self._translated(kind):
            root = self._path(kind)
            found = self._fs.ls(root, detail=False) if self._fs.isdir(root) else []
        return [f"{kind}/{PurePosixPath(str(path)).name}" for path in found]

    def written_at(self, location: str) -> float:
        """When something of the folder was last written, in seconds since 1970; 0.0 when it holds nothing."""
        with self._translated(location):
            path = self._path(location)
            if self.is_local:
                return Path(path).stat().st_ctime  # its mtime is that of the folder it was copied from
            return max((self._fs.modified(file).timestamp() for file in self._fs.find(path)), default=0.0)

    def delete(self, location: str) -> None:
        """Remove a folder; one that is not there is fine. Raises StorageError."""
        with self._translated(location):
            if self._fs.exists(self._path(location)):
                self._fs.rm(self._path(location), recursive=True)

    def _path(self, location: str) -> str:
        return f"{self._root}/{inside(location)}"

    @contextmanager
    def _translated(self, what: str, missing: str = "Restore it from a backup") -> Iterator[None]:
        """Name what the store's library raises, whose words may repeat the URL.

        Args:
            missing: what to do where there is nothing.
        """
        try:
            yield
        except Exception as exc:
            if not is_store_error(exc):
                raise
            reason = " ".join(str(getattr(exc, "strerror", None) or exc).split()).rstrip(".")
            if reason.endswith(what):  # of a file that is gone, the library says its path alone
                reason = "it is not there"
            remedy = missing if isinstance(exc, FileNotFoundError) else HERE if self.is_local else ELSEWHERE
            told = redact(f"the artifact store failed at {what}: {reason}", self._url)
            raise StorageError(told, remedy=remedy) from exc


def is_store_error(exc: Exception) -> bool:
    """Whether a store's library may raise it where the store cannot be used; anything else is a bug."""
    return isinstance(exc, OSError) or type(exc).__module__.partition(".")[0] in LIBRARIES


def _unusable(url: str, why: str, remedy: str) -> UsageError:
    return UsageError(redact(f"the artifact store {url} cannot be used: {why}", url), remedy=remedy)


@contextmanager
def _publishing(target: Path) -> Iterator[Path]:
    """A folder to make beside `target`, where nobody else writes; it becomes `target` after the block."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        publish_folder(temporary, target)
    except BaseException:  # whatever it was, no half of a folder stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def inside(path: str) -> PurePosixPath:
    """A relative path that stays below where it starts.

    Raises:
        InputError: an absolute path, one with `..`, or one with characters that no file of ours has.
    """
    parsed = PurePosixPath(path)
    if parsed.is_absolute() or ".." in parsed.parts or not parsed.parts or "\0" in path or "\\" in path:
        raise InputError(f"{path[:80]!r} is no path inside a folder", remedy="Use a path that the listing names")
    return parsed
