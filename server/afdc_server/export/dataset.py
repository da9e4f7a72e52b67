"""Write the data-set folder: Parquet files, card, manifest and the job that made it.

One pass over the rows, one row group in memory at a time. The folder is built beside its place and renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from afdc.errors import ConflictError, StorageError
from afdc.files import canonical_json, publish_folder, sha256_file, write_bytes, write_json
from afdc_pipeline.batches import batched
from afdc_server.export.card import CardFacts, DataCounts, job_yaml, render_card, task_json
from afdc_server.export.schema import Row, Shape, rejected_shape, to_table, training_shapes

MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
JOB_FILE = "job.yaml"
TASK_FILE = "task.json"
ROW_GROUP_ROWS = 4096
FILE_ROWS = 60 * ROW_GROUP_ROWS
SAMPLE_ROWS = 8
SAMPLES_PER_LABEL = 2


@dataclass(frozen=True)
class DatasetSummary:
    """What was written. `content_sha256` is over the rows, the task and the configuration, not over file bytes."""

    path: Path
    rows: int
    rejected: int
    per_label: dict[str, int]
    per_source: dict[str, int]
    reasons: dict[str, int]
    content_sha256: str


@dataclass
class _Tally:
    """Counts and content hash of one stream of rows, updated as they pass."""

    is_open: bool = False  # answers are not counted: nearly every row has its own
    rows: int = 0
    per_label: Counter[str] = field(default_factory=Counter)
    per_source: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    samples: list[Row] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, row: Row, shape: Shape) -> None:
        """Count a row; `shape` holds all that it says."""
        self.rows += 1
        if not self.is_open:
            self.per_label[str(row["label"])] += 1
        self.per_source[str(row["source"])] += 1
        self.reasons[str(row["reason"])] += 1
        self.digest.update(canonical_json(shape.convert(row)) + b"\n")
        if len(self.samples) < SAMPLE_ROWS and row["source"] != "seed":
            self._sample(row)

    def _sample(self, row: Row) -> None:
        alike = sum(row["label"] == shown["label"] for shown in self.samples)
        if alike < SAMPLES_PER_LABEL:
            self.samples.append(row)


def write_dataset(folder: Path, rows: Iterable[Row], rejected: Iterable[Row], facts: CardFacts) -> DatasetSummary:
    """Write the data set of a finished run and publish it under `folder` in one rename.

    Args:
        folder: where it appears. Its parent belongs to this run alone (the run holds the lease).
        rows: accepted rows with all of `schema.AUDIT_COLUMNS`; read once.
        rejected: rows left out, same columns; read once, after `rows`.
        facts: what the card and the manifest say besides the rows.

    Returns:
        Counts and the content hash. When `folder` already holds this very content, it is left as it is.

    Raises:
        ConflictError: `folder` holds something else. It is never overwritten.
        StorageError: the disk is full or cannot be written; `folder` does not exist then.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        kept, left = _Tally(facts.task.is_open), _Tally(facts.task.is_open)
        _write_shapes(temporary, rows, training_shapes(facts.task), kept)
        _write_shapes(temporary, rejected, (rejected_shape(facts.task),), left)
        summary = _summarise(folder, kept, left, facts)
        _write_papers(temporary, summary, kept, facts)
        _check_existing(folder, summary)
        publish_folder(temporary, folder)
    except OSError as exc:
        raise StorageError(
            f"cannot write the data set {folder}: {exc.strerror or exc}",
            remedy="Free space or choose another folder, then run the same command again: finished work is kept",
        ) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summary


def read_summary(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a written data set.

    Raises:
        ConflictError: the folder holds no readable manifest.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError) as exc:
        raise ConflictError(f"{folder} is not a data set that AFDC wrote", remedy="Move it away and run again") from exc
    return dict(manifest)


def verify_dataset(folder: Path) -> None:
    """Check every file against the manifest. Raises StorageError for one that is missing or differs."""
    for name, entry in read_summary(folder)["files"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise StorageError(f"{path} is missing or is not what the manifest of {folder} lists")


def _write_shapes(root: Path, rows: Iterable[Row], shapes: tuple[Shape, ...], tally: _Tally) -> None:
    """Write every batch in every shape, the first of which holds the whole row.

    There is at least one file a shape, so that an empty split still has its columns.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_ShardWriter(root / shape.folder, shape)) for shape in shapes]
        for batch in batched(rows, ROW_GROUP_ROWS):
            for row in batch:
                tally.add(row, shapes[0])
            for writer in writers:
                writer.write(batch)


class _ShardWriter:
    """Parquet files `train-00000.parquet`, … of at most FILE_ROWS rows each."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder = folder
        self.shape = shape
        self.shard = 0
        self.rows_in_shard = 0
        folder.mkdir()
        self.writer = self._open()

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.writer.close()

    def write(self, rows: list[Row]) -> None:
        if self.rows_in_shard >= FILE_ROWS:
            self.writer.close()
            self.shard, self.rows_in_shard = self.shard + 1, 0
            self.writer = self._open()
        self.writer.write_table(to_table(rows, self.shape))
        self.rows_in_shard += len(rows)

    def _open(self) -> pq.ParquetWriter:
        path = self.folder / f"train-{self.shard:05d}.parquet"
        return pq.ParquetWriter(path, self.shape.schema, compression="zstd", store_schema=True)


def _summarise(folder: Path, kept: _Tally, left: _Tally, facts: CardFacts) -> DatasetSummary:
    parts = [kept.digest.hexdigest(), left.digest.hexdigest(), facts.identity()]
    return DatasetSummary(
        path=folder,
        rows=kept.rows,
        rejected=left.rows,
        per_label={name: kept.per_label.get(name, 0) for name in facts.task.names},
        per_source=dict(sorted(kept.per_source.items())),
        reasons=dict(left.reasons.most_common()),
        content_sha256=hashlib.sha256(canonical_json(parts)).hexdigest(),
    )


def _write_papers(root: Path, summary: DatasetSummary, kept: _Tally, facts: CardFacts) -> None:
    """Card, job and task, then the manifest that lists them all."""
    counts = DataCounts(
        rows=summary.rows,
        rejected=summary.rejected,
        per_label=summary.per_label,
        per_source=summary.per_source,
        reasons=summary.reasons,
        samples=tuple(kept.samples),
        content=summary.content_sha256,
    )
    write_bytes(root / CARD_FILE, render_card(facts, counts).encode())
    write_bytes(root / JOB_FILE, job_yaml(facts).encode())
    write_bytes(root / TASK_FILE, task_json(facts.task).encode())
    write_json(root / MANIFEST_FILE, _manifest(root, summary, facts))


def _manifest(root: Path, summary: DatasetSummary, facts: CardFacts) -> dict[str, Any]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        "format": 1,
        **facts.provenance(),
        "content_sha256": summary.content_sha256,
        "labels": list(facts.task.names),
        "rows": summary.rows,
        "rejected": summary.rejected,
        "files": {path.relative_to(root).as_posix(): _file_entry(path) for path in paths},
    }


def _file_entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    if path.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(path).num_rows
    return entry


def _check_existing(folder: Path, summary: DatasetSummary) -> None:
    if folder.exists() and read_summary(folder).get("content_sha256") != summary.content_sha256:
        raise ConflictError(
            f"{folder} already holds a data set with other rows",
            remedy="Choose another --out, or move that folder away",
        )
