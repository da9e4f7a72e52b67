"""`/jobs/{id}/events`: a page of JSON, or a stream of server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from afdc.errors import InputError
from afdc.wire.common import MAX_PAGE, Page
from afdc.wire.jobs import TERMINAL_EVENTS, Event
from afdc_server.api.deps import Held, JobId, ReadCaller
from afdc_server.api.openapi import problems
from afdc_server.jobs import store
from afdc_server.jobs.hub import Channel, EventHub
from afdc_server.ledger.events import StoredEvent, read_events
from afdc_server.service.errors import BusyError
from afdc_server.service.services import Services

router = APIRouter(tags=["jobs"])
PING_S = 15.0
SEND_S = 60.0
MEDIA_TYPE = "text/event-stream"
STREAM_EXAMPLE = (
    "retry: 1000\n\nid: 1\nevent: job_queued\n"
    'data: {"id":1,"kind":"job_queued","at":"2026-01-01T00:00:00Z","data":{}}\n\n'
)
HEADERS = [(b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
PING, HELLO = b": ping\n\n", b"retry: 1000\n\n"
MAX_ID, MAX_DIGITS = 1 << 53, 16


@router.get(
    "/jobs/{id:id}/events",
    response_model=Page[Event],
    summary="What happened to a job",
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}}},
        **problems(401, 403, 404, 422, 429, 503),
    },
)
async def get_events(
    id: JobId,
    services: Held,
    caller: ReadCaller,
    after: Annotated[int, Query(ge=0, lt=MAX_ID, description="the last event that is known")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header(description="streams: as `after`")] = None,
) -> Response:
    """With `Accept: text/event-stream` a stream that ends behind the job's last event; otherwise a page.

    Ids of a job are gapless from 1: a client that was cut off sends the last one that it has seen.
    """
    await run_in_threadpool(_check, services, caller.tenant, id)
    if MEDIA_TYPE not in accept.lower():
        return await run_in_threadpool(_page, services, id, after, limit)
    if services.hub.watchers >= services.settings.limits.streams:
        raise BusyError(
            "too many streams are open", reason="streams", remedy="Poll GET /jobs/{id}?wait=30", retry_after_s=10
        )
    return EventStream(services.hub, id, _position(last_event_id, after))


def _check(services: Services, tenant: str, id: str) -> None:
    with services.db.read() as connection:
        store.get(connection, tenant, id)


def _position(last_event_id: str | None, after: int) -> int:
    if not last_event_id:
        return after
    digits = last_event_id if len(last_event_id) <= MAX_DIGITS and last_event_id.isascii() else ""
    if not digits.isdigit() or int(digits) >= MAX_ID:
        raise InputError(f"Last-Event-ID {last_event_id[:40]!r} is no event id", remedy="Send the last id that came")
    return int(digits)


def _page(services: Services, id: str, after: int, limit: int) -> Response:
    with services.db.read() as connection:
        found = read_events(connection, id, after, limit + 1)
    shown = [to_wire(one) for one in found[:limit]]
    page = Page[Event](
        data=shown,
        has_more=len(found) > limit,
        first_id=str(shown[0].id) if shown else None,
        last_id=str(shown[-1].id) if shown else None,
    )
    return Response(page.model_dump_json(), 200, None, "application/json")


def to_wire(event: StoredEvent) -> Event:
    """As the API tells of it."""
    return Event(id=event.id, kind=event.kind, at=event.at, data=dict(event.payload))  # type: ignore[arg-type]  # pydantic reads seconds


def frame(event: StoredEvent) -> bytes:
    """One server-sent event."""
    data = json.dumps(to_wire(event).model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n".encode()


class EventStream(Response):
    """Sends events until the job's last one, the client's end, or the server's.

    A client that does not read is dropped once a write has waited a minute; it comes back with its Last-Event-ID.
    """

    def __init__(self, hub: EventHub, job: str, after: int) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        self._hub = hub
        self._job = job
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            with self._hub.watch(self._job) as channel:
                await self._write(send, HELLO)
                await self._follow(channel, send, gone)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:  # a reader too slow: the connection is cut, and the id says where to go on
            return
        finally:
            gone.cancel()

    async def _follow(self, channel: Channel, send: Send, gone: asyncio.Future[None]) -> None:
        while not gone.done() and not self._hub.closing:
            wake = channel.wake
            found = await self._hub.read(channel, self._job, self._after)
            if found:
                await self._write(send, b"".join(map(frame, found)))
                self._after = found[-1].id
                if _is_end(found[-1].kind):
                    return
                continue
            if _is_end(channel.kind):  # whoever comes back behind the job's last event waits for nothing
                return
            if not await _woken(wake, gone):
                await self._write(send, PING)

    async def _write(self, send: Send, body: bytes) -> None:
        message: dict[str, Any] = {"type": "http.response.body", "body": body, "more_body": True}
        async with asyncio.timeout(SEND_S):
            await send(message)


def _is_end(kind: str) -> bool:
    """Whether a job whose last event is of this kind has come to its end; a retry would add events behind it."""
    return kind in TERMINAL_EVENTS


async def _woken(wake: asyncio.Future[None], gone: asyncio.Future[None]) -> bool:
    """Wait for news or the client's end. False: neither came within the time between two pings."""
    done, _ = await asyncio.wait({wake, gone}, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
