"""Idempotency-Key: the first request's reply, stored in its own transaction, answers every repeat.

As in draft-ietf-httpapi-idempotency-key-header: the same key with another body is 422, and while the first request is
still under way a repeat is 409.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header
from fastapi.responses import Response
from sqlalchemy import Connection, insert, select

from afdc.errors import ConflictError
from afdc.files import canonical_json, sha256_bytes
from afdc_server.api.problems import RequestError
from afdc_server.db.database import Database
from afdc_server.db.schema import idempotency

MAX_KEY = 255
REUSED = "idempotency_key_reused"
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY,
        pattern=r"^[\x21-\x7e]+$",
        description="makes a repeat of the request safe: it gets the first one's reply",
    ),
]


@dataclass(frozen=True, slots=True)
class Once:
    """A request that may be repeated. Without a key it is done each time."""

    tenant: str
    key: str | None
    request: str

    @staticmethod
    def of(tenant: str, key: str | None, path: str, body: Any) -> Once:
        """`body`: JSON-able."""
        return Once(tenant, key, sha256_bytes(canonical_json([path, body])))


class InFlightError(ConflictError):
    """The first request with this key has not been answered yet."""

    code = "request_in_flight"


class _InFlight:
    """Keys whose first request is under way in this process."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, once: Once) -> Iterator[None]:
        if once.key is None:
            yield
            return
        name = (once.tenant, once.key)
        with self._lock:
            if name in self._keys:
                raise InFlightError("a request with this Idempotency-Key is under way", remedy="Ask again in a second")
            self._keys.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard(name)


_in_flight = _InFlight()


def answer_once(db: Database, once: Once, work: Callable[[], Response]) -> Response:
    """The answer of `work`, which keeps its reply, or the one that was kept when the request came before.

    Raises:
        InFlightError: the first one is under way in this process. RequestError: the key was used for another request.
    """
    with _in_flight.hold(once):
        if (reply := _look(db, once)) is not None:
            return reply
        try:
            return work()
        except ConflictError:  # a server beside this one may have answered it meanwhile
            if (reply := _look(db, once)) is not None:
                return reply
            raise


def _look(db: Database, once: Once) -> Response | None:
    if once.key is None:
        return None
    with db.read() as connection:
        return _stored_reply(connection, once)


def _stored_reply(connection: Connection, once: Once) -> Response | None:
    """The reply of the first request with this key.

    Raises:
        RequestError: the key was used for another request.
    """
    where = (idempotency.c.tenant == once.tenant, idempotency.c.key == once.key)
    row = connection.execute(select(idempotency).where(*where)).first()
    if row is None:
        return None
    if row.request != once.request:
        raise RequestError("this Idempotency-Key was used for another request; use a new one", [], code=REUSED)
    headers = {"Idempotency-Replayed": "true", **({"Location": row.location} if row.location else {})}
    return Response(bytes(row.reply), row.status, headers, "application/json")


def keep_reply(connection: Connection, once: Once, status: int, reply: str, location: str = "") -> Response:
    """Store the reply in the request's own transaction, and return it."""
    if once.key is not None:
        connection.execute(
            insert(idempotency).values(
                tenant=once.tenant,
                key=once.key,
                request=once.request,
                status=status,
                reply=reply.encode(),
                location=location,
                created_at=time.time(),
            )
        )
    return Response(reply, status, {"Location": location} if location else None, "application/json")
