"""Open a database by URL, with the transactions that the ledger and the service rely on.

SQLite runs in WAL mode with synchronous=FULL, and every write transaction begins IMMEDIATE, so that it waits for the
lock instead of failing half-way. PostgreSQL runs at its default, READ COMMITTED; writers of one job take turns by
locking that job's row. A writer that was stopped in the middle (SIGSTOP, a suspended machine, a cut cable) must not
keep the others waiting: PostgreSQL ends its transaction, and a lock that does not come is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from afdc.errors import StorageError, UsageError

BUSY_TIMEOUT_S = 30.0
READ_ONLY = "afdc_read_only"
POOL_SIZE = 16
SQLITE = "sqlite"
POSTGRESQL = "postgresql"
LOCK_TIMEOUT_S = 20
IDLE_TIMEOUT_S = 20  # inside a writing transaction: below the default lease, so that whoever takes over finds no lock
LINK = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}  # of libpq
FAULTS = (DBAPIError, PoolTimeoutError)
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)  # Internal: cut off for being idle
URLS = "Use sqlite:///path/to/file.db or postgresql://user:password@host/name"


class DatabaseAwayError(StorageError):
    """The database is locked, full, restarting or cut off: the same work may well succeed a moment later."""


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///file` or `postgresql://…`; nothing is created in it.

    Raises:
        UsageError: the URL cannot be read, or names another kind of database.
        StorageError: the folder of a SQLite file cannot be made.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise UsageError("the database URL cannot be read", remedy=URLS) from exc  # it may hold a password
    kind = parsed.get_backend_name()
    if "@" in (parsed.host or ""):  # the end of the password, and errors name hosts
        raise UsageError("the database URL cannot be read", remedy="Write @ in a password as %40")
    if kind == SQLITE and parsed.database:
        return open_sqlite_file(Path(parsed.database))
    if kind != POSTGRESQL:
        raise UsageError(f"a database of kind {kind!r} is not supported", remedy=URLS)
    try:
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args=LINK,
            pool_size=POOL_SIZE,
            max_overflow=POOL_SIZE,
            pool_pre_ping=True,
        )
    except (ModuleNotFoundError, NoSuchModuleError) as exc:
        raise UsageError(
            "PostgreSQL needs the package psycopg", remedy='Install it: pip install "psycopg[binary]"'
        ) from exc
    event.listen(engine, "begin", _limit_waiting)
    return engine


def _limit_waiting(connection: Connection) -> None:
    """Readers hold no locks that others wait for, and some of them stream for minutes."""
    if not connection.get_execution_options().get(READ_ONLY):
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'"
        )


def open_sqlite_file(path: Path) -> Engine:
    """An engine for a SQLite file, which the first connection creates.

    Raises:
        StorageError: its folder cannot be made.
    """
    with translated("opened"):
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=POOL_SIZE, max_overflow=2 * POOL_SIZE
    )
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: "begin" below does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: Connection) -> None:
    """Writers queue for the lock at once; readers of a WAL database need none."""
    reads = connection.get_execution_options().get(READ_ONLY)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def translated(what: str, name: str = "ledger") -> Iterator[None]:
    """Name what a damaged, locked, full or absent database raises."""
    try:
        yield
    except OSError as exc:
        raise StorageError(f"the {name} cannot be {what}: {exc}", remedy="Check the folder's rights") from exc
    except FAULTS as exc:
        raise storage_error(
            exc, f"the {name} cannot be {what}", "Check the folder's rights, free space and ledger.db"
        ) from exc


def storage_error(exc: DBAPIError | PoolTimeoutError, message: str, remedy: str) -> StorageError:
    """What to raise for a fault of the database: a DatabaseAwayError where waiting may help."""
    reason = exc.orig if isinstance(exc, DBAPIError) else exc
    kind = DatabaseAwayError if isinstance(exc, AWAY) else StorageError
    return kind(f"{message}: {reason}", remedy=remedy)
