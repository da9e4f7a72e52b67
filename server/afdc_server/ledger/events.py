"""Events of a job: appended in the transaction of what they tell, numbered without gaps from 1."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from afdc_server.ledger.schema import events, jobs


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """`at`: seconds since the epoch."""

    id: int
    kind: str
    payload: Mapping[str, Any]
    at: float


def lock_job(connection: Connection, job: str) -> int | None:
    """The job's fence, or None where it has no row yet. Other writers of the job wait until the transaction ends."""
    fence = connection.execute(select(jobs.c.fence).where(jobs.c.job == job).with_for_update()).scalar()
    return None if fence is None else int(fence)


def raise_fence(connection: Connection, job: str) -> int:
    """Shut out whoever holds the job, from this transaction's commit on. Returns the new fence.

    A job without a row gets one.
    """
    fence = lock_job(connection, job)
    if fence is None:
        connection.execute(insert(jobs).values(job=job, fence=1, created_at=time.time()))
        return 1
    connection.execute(update(jobs).where(jobs.c.job == job).values(fence=fence + 1))
    return fence + 1


def append_event(connection: Connection, job: str, kind: str, payload: Mapping[str, Any]) -> int:
    """Append and return the event's id. The caller has locked the job."""
    last = connection.execute(select(func.max(events.c.id)).where(events.c.job == job)).scalar()
    number = int(last or 0) + 1
    row = {"job": job, "id": number, "kind": kind, "payload": dict(payload), "at": time.time()}
    connection.execute(insert(events).values(row))
    return number


def read_events(connection: Connection, job: str, after: int = 0, limit: int | None = None) -> list[StoredEvent]:
    """Events with an id above `after`, in order."""
    query = select(events).where(events.c.job == job, events.c.id > after).order_by(events.c.id).limit(limit)
    return [StoredEvent(row.id, row.kind, row.payload, row.at) for row in connection.execute(query)]
