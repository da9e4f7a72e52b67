"""Rows on disk as content-addressed Parquet files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from afdc.errors import StorageError
from afdc.files import sha256_bytes, write_bytes


class ParquetStore:
    """RowStore in a folder: `{sha256[:2]}/{sha256}.parquet`. A file that exists is never written again."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write the rows durably; the same rows give the same reference.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink, compression="zstd")
        data = sink.getvalue()
        ref = sha256_bytes(data)
        path = self._path(ref)
        if not path.exists():
            write_bytes(path, data)
        return ref

    def get(self, ref: str) -> list[dict[str, Any]]:
        """Read rows back.

        Raises:
            StorageError: the file is missing, or its content is not what its name says.
        """
        path = self._path(ref)
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise StorageError(
                f"cannot read {path}: {exc.strerror}", remedy="Restore it, or start in a new folder"
            ) from exc
        if sha256_bytes(data) != ref:
            raise StorageError(
                f"{path} is damaged: its content does not match its name", remedy="Restore it from a copy"
            )
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data), use_threads=False).to_pylist()
        return rows

    def _path(self, ref: str) -> Path:
        return self.root / ref[:2] / f"{ref}.parquet"
