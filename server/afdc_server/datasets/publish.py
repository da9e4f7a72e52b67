"""Finished folders become data sets and adapters: first their files, then the rows that say that they are there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError
from sqlalchemy import Connection, insert

from afdc.adapter import read_manifest
from afdc.errors import StorageError
from afdc.task import Task
from afdc.wire.datasets import StoredFile
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.reading import BATCH_ROWS, SPLIT_FOLDERS
from afdc_server.db.schema import adapters, datasets
from afdc_server.export.dataset import MANIFEST_FILE, TASK_FILE, read_summary

DATASETS, ADAPTERS = "datasets", "adapters"
"""Where both lie in the artifact store."""


@dataclass(frozen=True)
class DatasetFacts:
    """What the database keeps of a published data-set folder. `per_label`: empty for an open task."""

    location: str
    files: tuple[StoredFile, ...]
    rows: int
    rejected: int
    per_label: Mapping[str, int]
    task: Task


@dataclass(frozen=True)
class AdapterFacts:
    """What the database keeps of a published adapter folder."""

    location: str
    name: str
    round: int
    manifest: Mapping[str, Any]
    files: tuple[StoredFile, ...]


def dataset_location(dataset_id: str) -> str:
    """Where a data set lies in the artifact store."""
    return f"{DATASETS}/{dataset_id}"


def adapter_location(adapter_id: str) -> str:
    """Where an adapter lies in the artifact store."""
    return f"{ADAPTERS}/{adapter_id}"


def publish_dataset(artifacts: ArtifactStore, folder: Path, dataset_id: str) -> DatasetFacts:
    """Put a folder that `write_dataset` made into the artifact store. Doing it twice leaves the same.

    Raises:
        ConflictError: the folder holds no readable manifest.
        StorageError: a file is not what the manifest lists, or the store cannot be written.
    """
    manifest = read_summary(folder)
    task = _read_task(folder)
    per_label = {} if task.is_open else _count_labels(folder, task)
    location = dataset_location(dataset_id)
    files = tuple(artifacts.publish(folder, location))
    _check_listed(folder, files, {name: entry["sha256"] for name, entry in manifest["files"].items()})
    return DatasetFacts(location, files, int(manifest["rows"]), int(manifest["rejected"]), per_label, task)


def publish_adapter(artifacts: ArtifactStore, folder: Path, adapter_id: str) -> AdapterFacts:
    """Put an adapter folder into the artifact store. Doing it twice leaves the same.

    Raises:
        AdapterError: the folder holds no readable manifest.
        StorageError: a file is not what the manifest lists, or the store cannot be written.
    """
    manifest = read_manifest(folder)
    location = adapter_location(adapter_id)
    files = tuple(artifacts.publish(folder, location))
    _check_listed(folder, files, manifest.files)
    return AdapterFacts(location, manifest.name, manifest.round, manifest.model_dump(mode="json"), files)


def insert_dataset(
    connection: Connection,
    tenant: str,
    job: str,
    dataset_id: str,
    facts: DatasetFacts,
    *,
    version: int,
    parent: str | None,
    reviewed: int,
) -> None:
    """Say that the data set is there. `reviewed`: rows of it that a person has judged, in this version or before."""
    connection.execute(
        insert(datasets).values(
            id=dataset_id,
            tenant=tenant,
            job=job,
            version=version,
            parent=parent,
            task=facts.task.model_dump(mode="json"),
            rows=facts.rows,
            rejected=facts.rejected,
            per_label=dict(facts.per_label),
            reviewed=reviewed,
            files=_as_json(facts.files),
            location=facts.location,
            created_at=time.time(),
        )
    )


def insert_adapter(
    connection: Connection,
    tenant: str,
    job: str,
    adapter_id: str,
    facts: AdapterFacts,
    *,
    final: bool = False,
    activated: bool = True,
) -> None:
    """Say that the adapter is there. `final`: it is the one that the job hands out."""
    connection.execute(
        insert(adapters).values(
            id=adapter_id,
            tenant=tenant,
            job=job,
            name=facts.name,
            round=facts.round,
            final=final,
            activated=activated,
            manifest=dict(facts.manifest),
            files=_as_json(facts.files),
            location=facts.location,
            created_at=time.time(),
        )
    )


def _as_json(files: Sequence[StoredFile]) -> list[dict[str, Any]]:
    return [file.model_dump(mode="json") for file in files]


def _read_task(folder: Path) -> Task:
    path = folder / TASK_FILE
    try:
        return Task.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise StorageError(f"{path} is missing or damaged", remedy="Write the data set again") from exc


def _count_labels(folder: Path, task: Task) -> dict[str, int]:
    counts: Counter[str] = Counter()
    try:
        for path in sorted((folder / SPLIT_FOLDERS["default"]).glob("*.parquet")):
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS, columns=["label"]):
                    for entry in pc.value_counts(batch.column(0)).to_pylist():
                        counts[entry["values"]] += entry["counts"]
    except (OSError, pa.ArrowException) as exc:
        raise StorageError(f"the rows in {folder} cannot be read: {exc}", remedy="Write the data set again") from exc
    return {name: counts[name] for name in task.names}


def _check_listed(folder: Path, files: Sequence[StoredFile], listed: Mapping[str, str]) -> None:
    """See that what was published is what the manifest promises."""
    found = {file.path: file.sha256 for file in files if file.path != MANIFEST_FILE}
    wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
    if wrong:
        raise StorageError(f"{folder / wrong[0]} is not what its manifest lists", remedy="Write the folder again")
