"""Data sets and adapters in the database, as their tenant sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from afdc.task import Task
from afdc.wire.datasets import Dataset, Split, StoredFile
from afdc.wire.models import Adapter
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.reading import SPLIT_FOLDERS, RowFiles
from afdc_server.db.schema import adapters, datasets
from afdc_server.service.errors import missing
from afdc_server.service.ids import ADAPTER, DATASET, is_id


@dataclass(frozen=True, slots=True)
class StoredDataset:
    """A data set and where it lies in the artifact store."""

    wire: Dataset
    location: str

    @property
    def task(self) -> Task:
        return self.wire.task

    def size(self, split: Split) -> int:
        """Rows of a split."""
        return self.wire.rows if split == "default" else self.wire.rejected

    def file(self, path: str) -> StoredFile:
        """A file of it. Raises NotFoundError."""
        return _listed(self.wire.files, path)

    def rows(self, artifacts: ArtifactStore, split: Split) -> RowFiles:
        """The files of a split."""
        return self.folder(artifacts, SPLIT_FOLDERS[split])

    def folder(self, artifacts: ArtifactStore, folder: str) -> RowFiles:
        """The Parquet files below `folder`."""
        return RowFiles(artifacts, self.location, self.wire.files, folder)


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter and where it lies in the artifact store."""

    wire: Adapter
    location: str

    def file(self, path: str) -> StoredFile:
        """A file of it. Raises NotFoundError."""
        return _listed(self.wire.files, path)


def get_dataset(connection: Connection, tenant: str, id: str) -> StoredDataset:
    """The data set of this tenant. Raises NotFoundError."""
    query = select(datasets).where(datasets.c.id == id, datasets.c.tenant == tenant)
    row = connection.execute(query).first() if is_id(id, DATASET) else None
    if row is None:
        raise missing("data set", id)
    of_job = (datasets.c.job == row.job, datasets.c.tenant == tenant)
    newest = select(datasets.c.id).where(*of_job).order_by(datasets.c.version.desc()).limit(1)
    return StoredDataset(_to_dataset(row, connection.execute(newest).scalar_one()), row.location)


def get_adapter(connection: Connection, tenant: str, id: str) -> StoredAdapter:
    """The adapter of this tenant. Raises NotFoundError."""
    query = select(adapters).where(adapters.c.id == id, adapters.c.tenant == tenant)
    row = connection.execute(query).first() if is_id(id, ADAPTER) else None
    if row is None:
        raise missing("adapter", id)
    return StoredAdapter(_to_adapter(row), row.location)


def _listed(files: list[StoredFile], path: str) -> StoredFile:
    found = next((file for file in files if file.path == path), None)
    if found is None:
        raise missing("file", path)
    return found


def _to_dataset(row: Row[Any], latest: str) -> Dataset:
    return Dataset(
        id=row.id,
        job=row.job,
        version=row.version,
        parent=row.parent,
        latest=latest,
        task=Task.model_validate(row.task),
        rows=row.rows,
        rejected=row.rejected,
        per_label=row.per_label,
        reviewed=row.reviewed,
        files=[StoredFile.model_validate(file) for file in row.files],
        created_at=row.created_at,
    )


def _to_adapter(row: Row[Any]) -> Adapter:
    manifest = row.manifest
    return Adapter(
        id=row.id,
        name=row.name,
        job=row.job,
        round=row.round,
        final=row.final,
        base_model=manifest["base_model"],
        base_revision=manifest["base_revision"],
        rank=manifest["rank"],
        task=Task.model_validate(manifest["task"]),
        files=[StoredFile.model_validate(file) for file in row.files],
        created_at=row.created_at,
    )
