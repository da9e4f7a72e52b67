"""Reading and writing transactions of the service's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from afdc.errors import ConflictError
from afdc_server.db.open import FAULTS, READ_ONLY, storage_error


class Database:
    """One pool of connections. Every call of the API is one transaction of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reader = engine.execution_options(**{READ_ONLY: True})

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: one point in time on SQLite.

        Raises:
            StorageError: the database cannot be read; a DatabaseAwayError where it may be a moment later.
        """
        with _translated(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends without an error.

        Raises:
            ConflictError: another transaction has written what must be unique.
            StorageError: the database cannot be written.
        """
        with _translated(), self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as exc:
        raise ConflictError(f"this exists already: {exc.orig}", remedy="Read it, then decide") from exc
    except FAULTS as exc:
        raise storage_error(exc, "the database did not answer", "Try again; the operator must look") from exc
