"""Files that are made while they are sent: what a writer writes is taken away piece by piece."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from afdc.errors import StorageError
from afdc.wire.datasets import StoredFile
from afdc_server.artifacts import ArtifactStore

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the format's earliest: equal content gives equal bytes
PLAIN_FILE = 0o100644 << 16


class Drain(io.RawIOBase):
    """A file that can only be written, from which `take` removes what came since the last time."""

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()
        self._taken = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Keep `data` until it is taken."""
        view = memoryview(data)
        self._held += view
        return view.nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self._taken + len(self._held)

    def take(self) -> bytes:
        """What was written since the last time."""
        data = bytes(self._held)
        self._taken += len(data)
        self._held.clear()
        return data


def parquet_pieces(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """One Parquet file of the batches, a row group each."""
    drain = Drain()
    with pq.ParquetWriter(drain, schema, compression="zstd", store_schema=True) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield drain.take()
    yield drain.take()


def zip_pieces(artifacts: ArtifactStore, location: str, files: Iterable[StoredFile], folder: str) -> Iterator[bytes]:
    """A zip archive of stored files below `folder`; the same files give the same bytes.

    Parquet is compressed already, so nothing is compressed again.

    Raises:
        StorageError: a file cannot be read or is not what was stored: the archive is not finished then.
    """
    drain = Drain()
    with zipfile.ZipFile(drain, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(files, key=lambda one: one.path):
            info = zipfile.ZipInfo(f"{folder}/{file.path}", ZIP_TIME)
            info.create_system, info.external_attr, info.file_size = 3, PLAIN_FILE, file.bytes
            with archive.open(info, "w") as member:
                for piece in _checked(artifacts, location, file):
                    member.write(piece)
                    yield drain.take()
            yield drain.take()
    yield drain.take()


def _checked(artifacts: ArtifactStore, location: str, file: StoredFile) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in artifacts.pieces(location, file.path, 0, file.bytes):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != file.sha256:
        raise StorageError(f"{location}/{file.path} is damaged: its content does not match its hash")
