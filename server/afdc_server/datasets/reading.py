"""Rows of a published data set, read a batch at a time: memory does not grow with the data set.

Rows of a split are numbered from 0 over all of its files. A data set never changes, so a row keeps its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afdc.errors import StorageError
from afdc.wire.datasets import Split, StoredFile
from afdc_server.artifacts import ArtifactStore, is_store_error

SPLIT_FOLDERS: Mapping[Split, str] = {"default": "data", "rejected": "rejected"}
BATCH_ROWS = 1024


@dataclass(frozen=True)
class _Group:
    """A row group of an open file, and the number of its first row."""

    file: pq.ParquetFile
    path: str
    index: int
    first: int
    rows: int

    def batches(self, columns: Sequence[str] | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        at = self.first
        names = None if columns is None else list(columns)
        # Threads would not help: many requests are read for at once.
        with translated(self.path):
            for batch in self.file.iter_batches(BATCH_ROWS, row_groups=[self.index], columns=names, use_threads=False):
                yield at, batch
                at += len(batch)


class RowFiles:
    """The Parquet files of one folder of a data set, in order."""

    def __init__(self, artifacts: ArtifactStore, location: str, files: Sequence[StoredFile], folder: str) -> None:
        self._artifacts = artifacts
        self._location = location
        self.paths = [file.path for file in files if file.path.startswith(f"{folder}/") and _is_parquet(file.path)]
        self.paths.sort()

    def schema(self) -> pa.Schema:
        """Columns of every file. Raises StorageError."""
        with self._open(self.paths[0]) as parquet:
            return parquet.schema_arrow

    def batches(self, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches from row `start` on, each with the number of its first row.

        Raises:
            StorageError: a file cannot be read, or is damaged.
        """
        for group in self._groups(start):
            for first, batch in group.batches(columns):
                skipped = max(0, start - first)
                if skipped < len(batch):
                    yield first + skipped, batch.slice(skipped)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, in order."""
        for _, batch in self.batches():
            yield from to_rows(batch)

    def take(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of these numbers, in their order. A number that there is no row of has none.

        Raises:
            StorageError: as `batches`.
        """
        wanted = np.unique(np.asarray(numbers, dtype=np.int64))
        parts: list[pa.RecordBatch] = []
        found: list[int] = []
        for group in self._groups(int(wanted[0]) if len(wanted) else 0):
            inside = wanted[(wanted >= group.first) & (wanted < group.first + group.rows)]
            for first, batch in group.batches(columns) if len(inside) else ():
                here = inside[(inside >= first) & (inside < first + len(batch))]
                parts.append(batch.take(pa.array(here - first)))
                found += here.tolist()
            if not len(wanted) or group.first + group.rows > wanted[-1]:
                break
        schema = self.schema() if not parts else parts[0].schema
        if not parts and columns is not None:
            schema = pa.schema([schema.field(name) for name in columns if name in schema.names])
        place = {number: at for at, number in enumerate(found)}
        order = pa.array([place[number] for number in numbers if number in place], pa.int64())
        return pa.Table.from_batches(parts, schema).take(order)

    def _groups(self, start: int) -> Iterator[_Group]:
        """Row groups that hold row `start` or a later one."""
        first = 0
        for path in self.paths:
            with self._open(path) as parquet:
                for index in range(parquet.metadata.num_row_groups):
                    rows = parquet.metadata.row_group(index).num_rows
                    if first + rows > start:
                        yield _Group(parquet, path, index, first, rows)
                    first += rows

    @contextmanager
    def _open(self, path: str) -> Iterator[pq.ParquetFile]:
        with (
            translated(path),
            self._artifacts.open(self._location, path) as stream,
            pq.ParquetFile(stream) as parquet,
        ):
            yield parquet


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Name what Arrow and the store raise while a file is read."""
    try:
        yield
    except Exception as exc:
        if not isinstance(exc, pa.ArrowException) and not is_store_error(exc):
            raise
        raise StorageError(f"{what} cannot be read: {exc}", remedy="Check the artifact store") from exc


def to_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """As dictionaries, with null in place of NaN, which JSON does not have."""
    return [{name: _plain(value) for name, value in row.items()} for row in batch.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet")
