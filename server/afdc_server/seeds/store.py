"""Seed sets in the artifact store and the database: first the rows, then the row that says that they are there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from afdc.files import atomic_writer, canonical_json, sha256_bytes, sha256_file
from afdc.task import Task
from afdc.wire.seeds import SeedExample, SeedKind, SeedReport, SeedSet
from afdc_server.artifacts import ArtifactStore
from afdc_server.db.schema import seed_sets, service_jobs
from afdc_server.scratch import scratch_folder
from afdc_server.seeds.intake import Intake
from afdc_server.service.errors import missing
from afdc_server.service.ids import SEED, is_id, new_id

SEEDS, ROWS_FILE = "seeds", "rows.jsonl"


def store_rows(artifacts: ArtifactStore, intake: Intake) -> tuple[str, str]:
    """Put the rows into the artifact store. Returns the new set's id and the hash of its content."""
    id = new_id(SEED)
    with scratch_folder("afdc-seeds-") as folder:
        path = folder / ROWS_FILE
        with atomic_writer(path) as stream:
            stream.writelines(row.to_line() for row in intake.rows)
        rows = sha256_file(path)
        artifacts.publish(folder, location(id))
    task = intake.task.model_dump(mode="json") if intake.task else None
    return id, sha256_bytes(canonical_json([task, rows]))


def location(id: str) -> str:
    """Where a set's rows lie in the artifact store."""
    return f"{SEEDS}/{id}"


def insert_set(
    connection: Connection,
    *,
    tenant: str,
    id: str,
    sha256: str,
    kind: SeedKind,
    intake: Intake,
    name: str,
    meta: Mapping[str, str],
) -> SeedSet:
    """Say that the set is there."""
    row = {
        "id": id,
        "tenant": tenant,
        "name": name,
        "kind": kind,
        "task": intake.task.model_dump(mode="json") if intake.task else None,
        "report": intake.report.model_dump(mode="json"),
        "sha256": sha256,
        "location": location(id),
        "meta": dict(meta),
        "created_at": time.time(),
    }
    connection.execute(insert(seed_sets).values(row))
    return SeedSet.model_validate({**row, "metadata": row["meta"]})


def get_set(connection: Connection, tenant: str, id: str, kind: SeedKind | None = None) -> SeedSet:
    """The set of this tenant. Raises NotFoundError where there is none of this id, or of this kind."""
    query = select(seed_sets).where(seed_sets.c.id == id, seed_sets.c.tenant == tenant)
    row = connection.execute(query).first() if is_id(id, SEED) else None
    if row is None or (kind is not None and row.kind != kind):
        raise missing(f"seed set of kind {kind}" if kind else "seed set", id)
    return to_wire(row)


def to_wire(row: Row[Any]) -> SeedSet:
    """As the API tells of it."""
    return SeedSet(
        id=row.id,
        name=row.name,
        kind=row.kind,
        task=Task.model_validate(row.task) if row.task else None,
        report=SeedReport.model_validate(row.report),
        sha256=row.sha256,
        metadata=row.meta,
        created_at=row.created_at,
    )


def delete_set(connection: Connection, tenant: str, id: str) -> None:
    """Forget the set. Raises NotFoundError. Its rows are removed by the caller, after the commit."""
    get_set(connection, tenant, id)
    connection.execute(delete(seed_sets).where(seed_sets.c.id == id, seed_sets.c.tenant == tenant))


def is_used(connection: Connection, tenant: str, id: str) -> bool:
    """Whether a job that is not at its end reads from it."""
    open_jobs = select(service_jobs.c.request).where(
        service_jobs.c.tenant == tenant, service_jobs.c.finished_at.is_(None)
    )
    names = ("seeds", "eval", "unlabeled")
    return any(id in {row.request.get(name) for name in names} for row in connection.execute(open_jobs))


def read_rows(artifacts: ArtifactStore, id: str) -> Iterator[SeedExample]:
    """Every stored row, in order; one in memory at a time."""
    for line in artifacts.lines(location(id), ROWS_FILE):
        yield SeedExample.model_validate_json(line)


def write_examples(path: Path, examples: Iterable[SeedExample], *, labelled: bool = True) -> int:
    """Write rows as `afdc run` reads them. Returns how many."""
    count = 0
    with atomic_writer(path) as stream:
        for example in examples:
            fields = {"text": example.text, **({"label": example.label} if labelled else {})}
            stream.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count
