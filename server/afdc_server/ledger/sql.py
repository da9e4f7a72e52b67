"""Ledger over SQLAlchemy Core.

Each writer holds a fence number: opening a job raises it, and a commit under an older number is refused, so a process
that was frozen and replaced publishes nothing. Writers of one job take turns (`afdc_server.db.open`). The service
raises the fence in the transactions that give a job away and take it, so that there is no moment between them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, delete, insert, select, update

from afdc.errors import ConflictError
from afdc_pipeline.seams import ChunkRecord, StageKey
from afdc_server.db.open import READ_ONLY, open_sqlite_file, translated
from afdc_server.ledger.events import append_event, lock_job, raise_fence, read_events
from afdc_server.ledger.schema import chunks, jobs, metadata, stages, values


def open_sqlite(path: Path) -> Engine:
    """Open (or create) a SQLite ledger file.

    Raises:
        StorageError: the file cannot be opened or is not a database.
    """
    engine = open_sqlite_file(path)
    with translated("opened"):
        metadata.create_all(engine)
    return engine


class FencedError(ConflictError):
    """Another process has the job now: nothing was written, and nothing will be."""


class SqlLedger:
    """The ledger of one job. Opening it fences off every earlier holder."""

    def __init__(self, engine: Engine, job: str, fence: int | None = None) -> None:
        """`fence`: what `raise_fence` gave to this holder; None raises it here."""
        self._engine = engine
        self._reader = engine.execution_options(**{READ_ONLY: True})
        self.job = job
        self._fence = self._take_fence() if fence is None else fence

    def finished(self, key: StageKey, inputs: str) -> dict[str, Any] | None:
        """See `Ledger.finished`."""
        row = self._first(_of(stages, self.job, key))
        if row is None:
            return None
        _check_inputs(key, row.inputs, inputs)
        return dict(row.result)

    def chunks(self, key: StageKey) -> list[ChunkRecord]:
        """See `Ledger.chunks`."""
        with self._reading() as connection:
            rows = connection.execute(_of(chunks, self.job, key).order_by(chunks.c.idx)).all()
        return [ChunkRecord(row.idx, row.ref, row.rows, row.counters) for row in rows]

    def begun(self, key: StageKey, inputs: str) -> list[ChunkRecord]:
        """See `Ledger.begun`."""
        row = self._first(_of(chunks, self.job, key).where(chunks.c.inputs != inputs))
        if row is not None:
            _check_inputs(key, row.inputs, inputs)
        return self.chunks(key)

    def commit_chunk(self, key: StageKey, inputs: str, chunk: ChunkRecord) -> None:
        """See `Ledger.commit_chunk`."""
        with self.transaction() as connection:
            connection.execute(
                insert(chunks).values(
                    job=self.job,
                    round=key.round,
                    stage=key.stage,
                    idx=chunk.index,
                    inputs=inputs,
                    ref=chunk.ref,
                    rows=chunk.rows,
                    counters=dict(chunk.counters),
                )
            )

    def commit_stage(
        self, key: StageKey, inputs: str, result: Mapping[str, Any], seconds: float, counters: Mapping[str, float]
    ) -> None:
        """See `Ledger.commit_stage`."""
        with self.transaction() as connection:
            connection.execute(
                insert(stages).values(
                    job=self.job,
                    round=key.round,
                    stage=key.stage,
                    inputs=inputs,
                    result=dict(result),
                    counters=dict(counters),
                    seconds=seconds,
                    finished_at=time.time(),
                )
            )
            told = {"round": key.round, "stage": key.stage, "seconds": seconds, "counts": dict(counters)}
            append_event(connection, self.job, "stage_finished", told)

    def references(self) -> list[str]:
        """References of every committed chunk."""
        with self._reading() as connection:
            return list(connection.execute(select(chunks.c.ref).where(chunks.c.job == self.job)).scalars())

    def results(self, prefix: str) -> list[dict[str, Any]]:
        """Results of the finished stages whose names begin with `prefix`."""
        query = select(stages.c.result).where(stages.c.job == self.job, stages.c.stage.startswith(prefix))
        with self._reading() as connection:
            return [dict(result) for result in connection.execute(query).scalars()]

    def forget(self, reason: str, also: Callable[[Connection], None] = lambda _connection: None) -> None:
        """Drop every stage, chunk and value: the job begins anew. Its events stay, and one says why.

        Args:
            also: what belongs to the same transaction.
        """
        with self.transaction() as connection:
            also(connection)
            for table in (stages, chunks, values):
                connection.execute(delete(table).where(table.c.job == self.job))
            append_event(connection, self.job, "job_restarted", {"reason": reason})

    def seconds(self) -> dict[tuple[int, str], float]:
        """See `Ledger.seconds`."""
        query = select(stages.c.round, stages.c.stage, stages.c.seconds).where(stages.c.job == self.job)
        with self._reading() as connection:
            return {(row.round, row.stage): row.seconds for row in connection.execute(query)}

    def totals(self) -> dict[str, float]:
        """See `Ledger.totals`."""
        total: Counter[str] = Counter()
        with self._reading() as connection:
            for table in (chunks, stages):
                for (counters,) in connection.execute(select(table.c.counters).where(table.c.job == self.job)):
                    total.update(counters)
        return dict(total)

    def add_event(self, kind: str, payload: Mapping[str, Any]) -> int:
        """See `Ledger.add_event`."""
        with self.transaction() as connection:
            return append_event(connection, self.job, kind, payload)

    def events(self, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
        """Events with an id above `after`: (id, kind, payload), ids gapless from 1."""
        with self._reading() as connection:
            return [(found.id, found.kind, dict(found.payload)) for found in read_events(connection, self.job, after)]

    def get_value(self, key: str) -> Any:
        """A value of the job, or None."""
        row = self._first(select(values.c.value).where(values.c.job == self.job, values.c.key == key))
        return None if row is None else row.value

    def set_value(self, key: str, value: Any, told: tuple[str, Mapping[str, Any]] | None = None) -> None:
        """Set a value of the job (JSON-able), together with an event (kind, payload) that tells of it."""
        with self.transaction() as connection:
            where = (values.c.job == self.job, values.c.key == key)
            if connection.execute(update(values).where(*where).values(value=value)).rowcount == 0:
                connection.execute(insert(values).values(job=self.job, key=key, value=value))
            if told is not None:
                append_event(connection, self.job, *told)

    def _take_fence(self) -> int:
        with translated("written"), self._engine.begin() as connection:
            return raise_fence(connection, self.job)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction of this holder, for what has to be committed together with the ledger's own rows.

        Raises:
            FencedError: another process has opened the job since; nothing is written.
            StorageError: the database cannot be written.
        """
        with translated("written"), self._engine.begin() as connection:
            if lock_job(connection, self.job) != self._fence:
                raise FencedError(
                    f"another process has taken over job {self.job}", remedy="Nothing was written; end this process"
                )
            yield connection

    def _first(self, query: Select[Any]) -> Any:
        with self._reading() as connection:
            return connection.execute(query).first()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated("read"), self._reader.connect() as connection:
            yield connection


def _check_inputs(key: StageKey, stored: str, wanted: str) -> None:
    if stored != wanted:
        raise ConflictError(
            f"stage {key.stage} of round {key.round} was made from other inputs",
            remedy="Use the options, files, model and device of the first start, or another output folder",
        )


def _of(table: Table, job: str, key: StageKey) -> Select[Any]:
    return select(table).where(table.c.job == job, table.c.round == key.round, table.c.stage == key.stage)


def stored_jobs(engine: Engine) -> list[str]:
    """Ids of the jobs in a database, oldest first."""
    with engine.connect() as connection:
        return list(connection.execute(select(jobs.c.job).order_by(jobs.c.created_at)).scalars())
