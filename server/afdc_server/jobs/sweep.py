"""What killed processes leave behind, removed once it is old: nobody can still be at work on it.

Folders are published before the database names them, so a kill between the two leaves one that no row knows; one in the
middle of a copy leaves half of one. Replies to idempotent requests are kept for a week, and files of ended jobs for as
long as the operator says (`leftovers`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from sqlalchemy import Connection, delete, select

from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.publish import ADAPTERS, DATASETS
from afdc_server.db.database import Database
from afdc_server.db.schema import adapters, datasets, idempotency, seed_sets, service_jobs
from afdc_server.jobs.leftovers import listed, sweep_work
from afdc_server.jobs.rebuild import PUBLISHED, published_locations
from afdc_server.ledger.schema import values
from afdc_server.seeds.store import SEEDS
from afdc_server.service.ids import ADAPTER, JOB, is_id
from afdc_server.service.settings import CACHE, SERVED, WORK

FIRST_S, EVERY_S = 600.0, 6 * 3600.0
OLD_S = 24 * 3600.0
REPLIES_S = 7 * 24 * 3600.0
KINDS = (SEEDS, DATASETS, ADAPTERS)
log = structlog.get_logger("afdc.sweep")


class Sweeper:
    """Sweeps in a thread of its own, ten minutes after the start and then every six hours.

    Args:
        data: the data folder, where this server alone writes.
        keep_work_s: how long the files of a job stay after its end, in seconds.
    """

    def __init__(
        self,
        db: Database,
        artifacts: ArtifactStore,
        data: Path,
        keep_work_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._artifacts = artifacts
        self._data = data
        self._keep_work_s = keep_work_s
        self._clock = clock
        self._due = clock() + FIRST_S

    def turn(self) -> None:
        """Sweep if it is time."""
        if self._clock() >= self._due:
            self._due = self._clock() + EVERY_S
            threading.Thread(target=self._try, name="afdc-sweep", daemon=True).start()

    def _try(self) -> None:
        try:
            removed = self.sweep()
        except Exception as exc:  # the next one tries again
            log.warning("not swept", error=str(exc), kind=type(exc).__name__)
        else:
            if removed:
                log.info("leftovers removed", count=len(removed))

    def sweep(self) -> list[str]:
        """Remove what is old and unknown, and what ended jobs need no longer. Returns its names.

        Raises:
            StorageError: database, store or folder cannot be read or written.
        """
        now = self._clock()
        with self._db.write() as connection:
            connection.execute(delete(idempotency).where(idempotency.c.created_at < now - REPLIES_S))
        before = now - OLD_S
        left = [*self._sweep_artifacts(before), *self._sweep_folders(before), *self._sweep_cache(before)]
        return left + [f"{WORK}/{name}" for name in sweep_work(self._db, self._data / WORK, now - self._keep_work_s)]

    def _sweep_artifacts(self, before: float) -> Iterator[str]:
        stored = [one for kind in KINDS for one in self._artifacts.folders(kind)]
        with self._db.read() as connection:
            known = _known_locations(connection)  # after the listing: what was named meanwhile is known
        for location in stored:
            if location not in known and self._artifacts.written_at(location) < before:
                self._artifacts.delete(location)
                yield location

    def _sweep_folders(self, before: float) -> Iterator[str]:
        """Folders of jobs and copies of adapters that are gone."""
        with self._db.read() as connection:
            jobs = set(connection.execute(select(service_jobs.c.id)).scalars())
            served = set(connection.execute(select(adapters.c.id)).scalars())
        for root, prefix, known in ((WORK, JOB, jobs), (SERVED, ADAPTER, served)):
            for folder in listed(self._data / root):
                is_left = folder.name.startswith(".") or (is_id(folder.name, prefix) and folder.name not in known)
                if is_left and folder.is_dir() and folder.stat().st_ctime < before:
                    shutil.rmtree(folder, ignore_errors=True)
                    yield f"{root}/{folder.name}"

    def _sweep_cache(self, before: float) -> Iterator[str]:
        """Copies of files of a store elsewhere; whoever wants one again fetches it again."""
        for folder in listed(self._data / CACHE):
            for file in listed(folder):
                if file.is_file() and file.stat().st_ctime < before:
                    file.unlink(missing_ok=True)
                    yield f"{CACHE}/{file.name}"


def _known_locations(connection: Connection) -> set[str]:
    """Folders that a row names, or that a job is about to publish."""
    known: set[str] = set()
    for table in (seed_sets, datasets, adapters):
        known.update(connection.execute(select(table.c.location)).scalars())
    for ids in connection.execute(select(values.c.value).where(values.c.key == PUBLISHED)).scalars():
        known.update(published_locations(ids or {}))
    return known
