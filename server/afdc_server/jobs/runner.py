"""Who runs next: claims queued jobs, keeps their leases, stops them on request, takes over what others left.

One thread. The database is the only truth: what the API writes there is seen at the next turn, at once after `wake`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, select, update

from afdc.errors import EngineDiedError, StorageError
from afdc_pipeline.seams import Health
from afdc_server.accounts.limits import all_own_limits, with_own
from afdc_server.db.open import POSTGRESQL
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.jobs.states import ACTIVE, STOPPING
from afdc_server.jobs.sweep import Sweeper
from afdc_server.jobs.work import Bench, JobThread
from afdc_server.ledger.events import lock_job, raise_fence
from afdc_server.service.settings import ServerSettings

TURN_S = 1.0
CANARIES = 5  # tokens asked for in vain, one after the other: an engine that restarts makes one wait and not fail
DAY_S = 86_400.0
CLAIMS = 0x61666464  # of PostgreSQL's advisory locks: servers choose their next job one after the other
log = structlog.get_logger("afdc.runner")


class Runner:
    """The job queue of one server process.

    Attributes:
        worker: its name in the leases: instance and process.
        on_engine_lost: called when the engine was given up, and nothing but a new process brings it back.
    """

    def __init__(self, bench: Bench, settings: ServerSettings, instance: str, told: Callable[[str], None]) -> None:
        self.bench = bench
        self._db = bench.db
        self._settings = settings
        self._instance = instance
        self._told = told
        self._sweeper = Sweeper(bench.db, bench.artifacts, settings.data, settings.keep_work_days * DAY_S)
        self.worker = f"{instance}:{time.time_ns():x}"
        self._running: dict[str, JobThread] = {}
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._woken = False
        self._closing = False
        self._engine_died = False
        self._canaries_lost = 0
        self.on_engine_lost: Callable[[BaseException], None] = lambda _: None
        self._canary: Future[Health] | None = None
        self._thread = threading.Thread(target=self._run, name="afdc-runner", daemon=True)

    def start(self) -> None:
        """Begin: first with what an earlier process of this instance left."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the database now."""
        with self._turn:
            self._woken = True
            self._turn.notify_all()

    @property
    def running(self) -> int:
        """Jobs under way in this process."""
        with self._lock:
            return len(self._running)

    def stop(self) -> None:
        """Begin to end: no job is started any more, and those under way are stopped. For signal handlers, too."""
        self._closing = True

    def close(self, timeout_s: float) -> None:
        """Stop every job at its next safe point, give the leases back and end. Jobs go back into the queue."""
        self.stop()
        self.wake()
        end = time.monotonic() + timeout_s
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._lock:
            left = list(self._running.values())
        for one in left:
            one.stop()
        for one in left:
            one.join(max(0.0, end - time.monotonic()))
        with suppress(StorageError):
            self.bench.budgets.save()

    def _run(self) -> None:
        is_first = True
        while not self._closing:
            try:
                if is_first:
                    self._release_own()
                    is_first = False
                self._take_turn()
            except Exception as exc:  # the database is away, or worse: jobs go on, and the next turn tries again
                log.warning("turn failed", error=str(exc), kind=type(exc).__name__)
            with self._turn:
                if not self._woken:
                    self._turn.wait(TURN_S)
                self._woken = False
        with self._lock:
            left = set(self._running)
        self._stop(left)

    def _take_turn(self) -> None:
        self._sweeper.turn()
        self._renew()
        self._take_over()
        self._stop_wanted()
        while self._has_room() and self._claim():
            pass
        self.bench.budgets.save()  # last: it may wait for another server's lock, and leases must not

    def _has_room(self) -> bool:
        return not self._closing and self.running < self._settings.running_jobs and self._engine_answers()

    def _engine_answers(self) -> bool:
        """After a death of the engine one token is asked for first: an engine that is gone fails no queued jobs."""
        if not self._engine_died:
            return True
        if self._canary is None:
            host = self.bench.shared.host
            self._canary = host.submit(host.engine.health())
            self._canary.add_done_callback(lambda _: self.wake())
        if not self._canary.done():
            return False
        canary, self._canary = self._canary, None
        error = EngineDiedError("the engine was closed") if canary.cancelled() else canary.exception()
        self._engine_died = error is not None
        self._canaries_lost = self._canaries_lost + 1 if error is not None else 0
        if error is not None and self._canaries_lost == CANARIES:
            log.error("the engine is lost", error=str(error))
            self.on_engine_lost(error)
        return not self._engine_died

    def _renew(self) -> None:
        """Say that this process lives. A job that is not ours any more is stopped: its fence has gone up."""
        with self._lock:
            mine = list(self._running)
        if not mine:
            return
        with self._db.write() as connection:
            where = (service_jobs.c.id.in_(mine), service_jobs.c.worker == self.worker)
            until = time.time() + self._settings.lease_s
            connection.execute(update(service_jobs).where(*where).values(lease_until=until))
            ours = set(connection.execute(select(service_jobs.c.id).where(*where)).scalars())
        self._stop({job for job in mine if job not in ours})

    def _release_own(self) -> None:
        """Whoever ran jobs under this instance's name before is dead: the instance's folder is locked by us."""
        self._release(service_jobs.c.worker.like(f"{self._instance}:%"))

    def _take_over(self) -> None:
        """Give jobs whose lease has run out back to the queue, and let forgotten ones expire."""
        self._release(service_jobs.c.lease_until < time.time())
        limit = time.time() - self._settings.paused_days * DAY_S
        query = select(service_jobs.c.id).where(service_jobs.c.status == "paused", service_jobs.c.updated_at < limit)
        with self._db.read() as connection:
            expired = list(connection.execute(query).scalars())
        for job in expired:
            with self._db.write() as connection:
                lock_job(connection, job)
                if (
                    connection.execute(query.where(service_jobs.c.id == job)).first() is not None
                ):  # its owner has not woken it up meanwhile
                    store.act(connection, job, "expire")
            self._told(job)

    def _release(self, condition: ColumnElement[bool]) -> None:
        query = select(service_jobs.c.id).where(service_jobs.c.status.in_(sorted(ACTIVE)), condition)
        with self._db.read() as connection:
            lost = list(connection.execute(query).scalars())
        for job in lost:
            with self._lock:
                if job in self._running:
                    continue  # our own thread still lives: its lease is late, not lost
            with self._db.write() as connection:
                if connection.execute(query.where(service_jobs.c.id == job)).first() is not None:
                    raise_fence(connection, job)  # from now on whoever had it can publish nothing
                    store.act(connection, job, "release")
            self._told(job)

    def _stop_wanted(self) -> None:
        with self._lock:
            mine = list(self._running)
        if not mine:
            return
        query = select(service_jobs.c.id).where(
            service_jobs.c.id.in_(mine), service_jobs.c.status.in_(sorted(STOPPING))
        )
        with self._db.read() as connection:
            wanted = set(connection.execute(query).scalars())
        self._stop(wanted)

    def _stop(self, jobs: set[str]) -> None:
        with self._lock:
            threads = [self._running[job] for job in jobs if job in self._running]
        for one in threads:
            one.stop()

    def _claim(self) -> bool:
        """Start the job whose turn it is. False: there is none."""
        with self._db.write() as connection:
            if connection.dialect.name == POSTGRESQL:  # SQLite has one writer at a time
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CLAIMS})")
            job = self._next(connection)
            if job is None:
                return False
            lease: dict[str, Any] = {"worker": self.worker, "lease_until": time.time() + self._settings.lease_s}
            row = store.find(connection, job)
            assert row is not None  # noqa: S101 - `_next` has just read it
            started = row.started_at or time.time()
            fence = raise_fence(connection, job)
            store.act(connection, job, "claim", attempt=row.attempt + 1, started_at=started, **lease)
        self._begin(JobThread(self.bench, row, fence, self._told, self._on_end))
        self._told(job)
        return True

    def _begin(self, running: JobThread) -> None:
        with self._lock:
            self._running[running.job] = running
        try:
            running.start()
        except RuntimeError:  # the system has no thread for it: its lease runs out
            self._on_end(running)
            raise

    def _next(self, connection: Connection) -> str | None:
        """The oldest job of the tenant that has the fewest under way: nobody waits behind one tenant's many."""
        query = select(service_jobs.c.id, service_jobs.c.tenant, service_jobs.c.status).where(
            service_jobs.c.status.in_(["queued", *sorted(ACTIVE)])
        )
        rows = connection.execute(query.order_by(service_jobs.c.id)).all()
        busy = Counter(row.tenant for row in rows if row.status in ACTIVE)
        with self._lock:
            waiting = [row for row in rows if row.status == "queued" and row.id not in self._running]
        everyones = self._settings.limits.tenant_running
        own = all_own_limits(connection, {row.tenant for row in waiting})
        most = {name: with_own(self._settings.limits, limits).tenant_running for name, limits in own.items()}
        may = [row for row in waiting if busy[row.tenant] < most.get(row.tenant, everyones)]
        return min(may, key=lambda row: (busy[row.tenant], row.id)).id if may else None

    def _on_end(self, ended: JobThread) -> None:
        with self._lock:
            self._running.pop(ended.job, None)
        if isinstance(ended.error, EngineDiedError):
            self._engine_died = True
        self.wake()
