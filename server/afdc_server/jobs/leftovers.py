"""Files of jobs that have ended: what nobody reads again goes at once, the rest when the operator's time is up.

A job that has succeeded never runs again, and its results lie in the artifact store. One that failed, was cancelled or
has expired goes on from its files when it is tried again, and begins anew where they are gone (`rebuild`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, select

from afdc.layout import RunLayout
from afdc.wire.jobs import TERMINAL
from afdc_server.db.database import Database
from afdc_server.db.schema import service_jobs
from afdc_server.ledger.events import lock_job
from afdc_server.service.ids import JOB, is_id

GONE = ".gone-"


class _End(NamedTuple):
    status: str
    at: float


def trim(layout: RunLayout) -> bool:
    """Remove the files of a job that has succeeded, but for its report, its numbers and its logs, which are small.

    Returns whether there were any. What cannot be removed stays for the next sweep.
    """
    kept = {layout.result, layout.report, layout.state, layout.logs}
    left: list[Path] = []
    with suppress(OSError):
        left = [path for folder in (layout.root, layout.state) for path in listed(folder) if path not in kept]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return bool(left)


def sweep_work(db: Database, work: Path, before: float) -> Iterator[str]:
    """Trim the folders of jobs that have succeeded, and remove those of all that ended before `before`.

    Yields the names of both.
    """
    for folder in listed(work):
        if not is_id(folder.name, JOB):
            continue
        with suppress(FileNotFoundError):  # its job was deleted meanwhile
            if _clear(db, folder, before):
                yield folder.name


def _clear(db: Database, folder: Path, before: float) -> bool:
    with db.read() as connection:
        end = _end_of(connection, folder.name)
    if end is None:
        return False
    return _take_away(db, folder, before) if end.at < before else end.status == "succeeded" and trim(RunLayout(folder))


def _end_of(connection: Connection, job: str) -> _End | None:
    """How the job ended and when, in seconds since 1970; None while it may go on by itself."""
    columns = (service_jobs.c.status, service_jobs.c.finished_at)
    row = connection.execute(select(*columns).where(service_jobs.c.id == job)).first()
    if row is None or row.status not in TERMINAL or row.finished_at is None:
        return None
    return _End(row.status, row.finished_at)


def _take_away(db: Database, folder: Path, before: float) -> bool:
    """Remove the folder, unless its job has been tried again meanwhile.

    It gets another name while the job is locked, so that no retry meets half of it: one that comes first keeps it, one
    that comes later finds none.
    """
    gone = folder.with_name(f"{GONE}{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)  # of a sweep that was cut off
    with db.write() as connection:
        lock_job(connection, folder.name)
        end = _end_of(connection, folder.name)
        if end is None or end.at >= before:
            return False
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def listed(folder: Path) -> list[Path]:
    """What a folder holds, in order; nothing where there is none."""
    return sorted(folder.iterdir()) if folder.is_dir() else []
