"""When each key was last used: noted in memory, and written now and then by a thread of its own.

A request that only reads must not wait for the database's writers, so no request writes this.
"""

from __future__ import annotations

import threading
import time

import structlog
from sqlalchemy import bindparam, or_, update

from afdc.errors import ConflictError, StorageError
from afdc_server.db.database import Database
from afdc_server.db.schema import api_keys

EVERY_S = 30.0
STOP_S = 2.0
log = structlog.get_logger("afdc.keys")


class KeyUses:
    """Times of use by a key's id. `note` may be called from any thread, also before `start`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._noted: dict[str, float] = {}
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="afdc-key-uses", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def note(self, key: str) -> None:
        """The key of this id was used now."""
        with self._lock:
            self._noted[key] = time.time()
        self._due.set()

    def stop(self) -> None:
        """Write what is left and end. A database that stays locked holds nothing up for long: the times are lost."""
        self._closing.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._due.wait()
            self._closing.wait(EVERY_S)  # others are noted meanwhile
            self._due.clear()
            try:
                self._write()
            except Exception as exc:  # nothing that happens here may end the thread
                log.warning("uses of keys not written", error=str(exc), kind=type(exc).__name__)

    def _write(self) -> None:
        """In one transaction for all keys. One that fails is tried again: a database that is locked is no error."""
        with self._lock:
            noted, self._noted = self._noted, {}
        if not noted:
            return
        used_at = api_keys.c.last_used_at
        is_later = or_(used_at.is_(None), used_at < bindparam("at"))  # a server beside this one may have seen it, too
        change = (
            update(api_keys).where(api_keys.c.id == bindparam("key"), is_later).values(last_used_at=bindparam("at"))
        )
        try:
            with self._db.write() as connection:
                connection.execute(change, [{"key": key, "at": noted[key]} for key in sorted(noted)])
        except (StorageError, ConflictError):
            with self._lock:
                self._noted = noted | self._noted
            self._due.set()
