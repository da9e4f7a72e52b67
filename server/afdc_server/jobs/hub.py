"""Tells those who watch a job that something has happened, and keeps its latest events at hand.

Watchers hold no queue: each has a number, the last event it has seen, and reads what is new from a ring that all
watchers of the job share, or from the database when it is far behind. One task polls for all jobs that are watched, so
that what another process wrote is seen too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from afdc.errors import AfdcError
from afdc_server.db.database import Database
from afdc_server.ledger.events import StoredEvent, read_events
from afdc_server.ledger.schema import events

POLL_S = 2.0
RING = 256
PAGE = 200
IDS_A_QUERY = 500
UNSEEN = -1
log = structlog.get_logger("afdc.hub")


@dataclass
class Channel:
    """A watched job: its latest events without a gap, who watches, and what they wait on.

    Attributes:
        last: id of the last event that is known, the ring's last if that has any; UNSEEN before the first look.
        kind: of that event.
        stale: something may have been committed behind it.
    """

    last: int = UNSEEN
    kind: str = ""
    ring: deque[StoredEvent] = field(default_factory=lambda: deque(maxlen=RING))
    watchers: int = 0
    wake: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    stale: bool = True
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class EventHub:
    """Lives on the API's loop; `notify` may be called from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._channels: dict[str, Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._polling: asyncio.Task[None] | None = None
        self.closing = False
        self._closed = asyncio.Event()

    def start(self) -> None:
        """Begin to poll, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """End polling and wake every watcher, who then sees that it is over."""
        self.closing = True
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        self._wake_all()

    def close_streams(self) -> None:
        """Let every watcher see that it is over. May be called from any thread or a signal handler."""
        self.closing = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended: nobody watches
                self._loop.call_soon_threadsafe(self._wake_all)

    async def closed(self) -> None:
        """Wait until it is over."""
        await self._closed.wait()

    def _wake_all(self) -> None:
        self._closed.set()
        for job in list(self._channels):
            self._wake(job)

    @property
    def watchers(self) -> int:
        """Open watches, over all jobs."""
        return sum(channel.watchers for channel in self._channels.values())

    def notify(self, job: str) -> None:
        """Something of the job was committed."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, perhaps at this moment: nobody watches
                self._loop.call_soon_threadsafe(self._wake, job)

    def _wake(self, job: str) -> None:
        channel = self._channels.get(job)
        if channel is not None:
            channel.stale = True
            channel.wake.set_result(None)
            channel.wake = asyncio.get_running_loop().create_future()

    @contextmanager
    def watch(self, job: str) -> Iterator[Channel]:
        """Be woken when the job moves. Take `channel.wake` before looking, then wait on it."""
        channel = self._channels.setdefault(job, Channel())
        channel.watchers += 1
        try:
            yield channel
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                self._channels.pop(job, None)

    async def read(self, channel: Channel, job: str, after: int) -> Sequence[StoredEvent]:
        """Events behind `after`, at most a page; all watchers that wait for the same ones share one query."""
        async with channel.reading:
            if channel.last == UNSEEN:
                channel.stale = False
                channel.last, channel.kind = await run_in_threadpool(self._newest, job)
            elif channel.stale and after >= channel.last:
                await self._refresh(channel, job)
            if after >= channel.last:
                return []
            oldest = channel.ring[0].id if channel.ring else channel.last + 1
            if after < oldest - 1:
                return await run_in_threadpool(self._query, job, after)
        return [event for event in channel.ring if event.id > after][:PAGE]

    async def _refresh(self, channel: Channel, job: str) -> None:
        channel.stale = False  # before the query: what is committed meanwhile sets it again
        found = await run_in_threadpool(self._query, job, channel.last)
        channel.ring.extend(found)
        if found:
            channel.last, channel.kind = found[-1].id, found[-1].kind
        channel.stale |= len(found) == PAGE

    def _newest(self, job: str) -> tuple[int, str]:
        """Id and kind of the job's last event; 0 and "" for none."""
        query = select(events.c.id, events.c.kind).where(events.c.job == job).order_by(events.c.id.desc()).limit(1)
        with self._db.read() as connection:
            row = connection.execute(query).first()
        return (row.id, row.kind) if row is not None else (0, "")

    def _query(self, job: str, after: int) -> list[StoredEvent]:
        with self._db.read() as connection:
            return read_events(connection, job, after, PAGE)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._look()
            except AfdcError as exc:  # the database is away: watchers wait on, and the next look tries again
                log.warning("watched jobs not looked at", error=str(exc))

    async def _look(self) -> None:
        watched = {job: channel.last for job, channel in self._channels.items() if channel.last != UNSEEN}
        for job, last in (await run_in_threadpool(self._last_ids, list(watched))).items():
            if last > watched[job]:
                self._wake(job)

    def _last_ids(self, jobs: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._db.read() as connection:
            for start in range(0, len(jobs), IDS_A_QUERY):
                part = jobs[start : start + IDS_A_QUERY]
                query = select(events.c.job, func.max(events.c.id)).where(events.c.job.in_(part)).group_by(events.c.job)
                found.update({row[0]: row[1] for row in connection.execute(query)})
        return found
