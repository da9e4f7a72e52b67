"""Jobs in the database: every change is one transaction with the event that tells of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from afdc.wire.jobs import TERMINAL
from afdc_server.db.schema import service_jobs
from afdc_server.jobs.states import Action, move
from afdc_server.ledger.events import append_event, lock_job
from afdc_server.ledger.schema import events
from afdc_server.ledger.schema import jobs as fences
from afdc_server.service.errors import missing

JobRow = Row[Any]


def create(connection: Connection, values: Mapping[str, Any]) -> None:
    """Put a new job into the queue. `values`: id, tenant, name, request, config, config_hash, model…, parent."""
    now = time.time()
    row = {
        "status": "queued",
        "stage": "",
        "progress": {},
        "usage": {},
        "attempt": 0,
        "version": 1,
        "created_at": now,
        "updated_at": now,
        **values,
    }
    connection.execute(insert(service_jobs).values(row))
    connection.execute(insert(fences).values(job=row["id"], fence=0, created_at=now))
    append_event(connection, str(row["id"]), "job_queued", {})


def get(connection: Connection, tenant: str, job: str) -> JobRow:
    """The job of this tenant. Raises NotFoundError."""
    row = connection.execute(
        select(service_jobs).where(service_jobs.c.id == job, service_jobs.c.tenant == tenant)
    ).first()
    if row is None:
        raise missing("job", job)
    return row


def find(connection: Connection, job: str) -> JobRow | None:
    """The job, whoever's it is: for the runner."""
    return connection.execute(select(service_jobs).where(service_jobs.c.id == job)).first()


def starts_in_vain(connection: Connection, job: str) -> int:
    """How often the job was started since it last finished a stage."""
    mine = events.c.job == job
    last = select(func.max(events.c.id)).where(mine, events.c.kind == "stage_finished").scalar_subquery()
    starts = select(func.count()).where(mine, events.c.kind == "job_running", events.c.id > func.coalesce(last, 0))
    return int(connection.execute(starts).scalar_one())


def act(connection: Connection, job: str, action: Action, told: Mapping[str, Any] | None = None, **values: Any) -> str:
    """Move a job to its next state, with the event of the new state. Returns the state; the same one changes nothing.

    The caller's transaction holds the job from here on.

    Raises:
        StateError: the action has no meaning in this state.
    """
    lock_job(connection, job)
    before = connection.execute(select(service_jobs.c.status).where(service_jobs.c.id == job)).scalar_one()
    after = move(before, action)
    if after != before:
        change(connection, job, status=after, **_stamps(after), **values)
        append_event(connection, job, f"job_{after}", told or {})
    return after


def _stamps(status: str) -> dict[str, Any]:
    now = time.time()
    if status in TERMINAL:
        return {"finished_at": now, "worker": None, "lease_until": None}
    if status in {"queued", "paused"}:
        return {"finished_at": None, "error": None, "worker": None, "lease_until": None}
    return {}


def change(connection: Connection, job: str, **values: Any) -> None:
    """Set columns; the job's version rises with it."""
    connection.execute(
        update(service_jobs)
        .where(service_jobs.c.id == job)
        .values(version=service_jobs.c.version + 1, updated_at=time.time(), **values)
    )
