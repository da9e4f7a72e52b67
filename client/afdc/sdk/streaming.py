"""The events of a job as they happen: gapless, without repeats, over any number of connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from afdc.errors import AfdcError
from afdc.sdk.core import Call, Raw, check_status, get, no_body, parse_reply, reply_as, route
from afdc.sdk.exceptions import ApiError, ReplyError, UnreachableError
from afdc.sdk.retry import RetryPolicy
from afdc.sdk.sending import Answer, Sender, send
from afdc.sdk.sse import Message, OversizedError, SseParser
from afdc.sdk.waiting import look_call
from afdc.wire.common import Page
from afdc.wire.jobs import TERMINAL_EVENTS, Event

PING_S = 15.0
"""The server writes something at least so often; a connection that lived as long was a good one."""
MAX_RECONNECTS = 10
MAX_RETRY_HINT_S = 60.0


class _BrokenStreamError(ReplyError):
    """What came cannot be the next event; a new connection may do better."""


class EventStream:
    """One reader. `last` is the id of the last event that was given out."""

    def __init__(self, sender: Sender, job: str, after: int) -> None:
        self.sender = sender
        self.job = job
        self.last = after
        self._parser = SseParser()
        self._retry = RetryPolicy(attempts=MAX_RECONNECTS, draw=sender.clock.draw)
        self._is_settled = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Events after `last`, until a terminal one or, for a job that is over, until there are no more.

        Raises:
            ApiError: the server refused in a way that a repeat does not change.
            UnreachableError, ReplyError: `MAX_RECONNECTS` connections in a row came to nothing.
        """
        failures = 0
        while True:
            before, started = self.last, self.sender.clock.now()
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        self.last = event.id
                        yield event
                        if event.kind in TERMINAL_EVENTS and await self._is_last():
                            return
                if await self._is_over(before):
                    return
                error: AfdcError = UnreachableError(f"the events of job {self.job} break off", remedy=self._remedy())
            except (UnreachableError, _BrokenStreamError, ApiError) as exc:
                if isinstance(exc, ApiError) and not exc.retryable:
                    raise
                error = exc
            lived = self.sender.clock.now() - started >= PING_S and isinstance(error, UnreachableError)
            failures = 1 if self.last > before or lived else failures + 1
            await self._pause(error, failures)

    async def _pause(self, error: AfdcError, failures: int) -> None:
        delay = self._retry.delay(error, failures)
        if delay is None:
            raise error
        hint = min((self._parser.retry_ms or 0) / 1000, MAX_RETRY_HINT_S)
        await self.sender.sleep(max(delay, hint))

    async def _is_over(self, before: int) -> bool:
        """Whether a stream that ended without a word was that of a job that is over.

        Events may have been written between the end of the stream and the look at the job, so it takes a second stream
        without a word to be sure.
        """
        if self.last > before:
            self._is_settled = False
            return False
        if self._is_settled:
            return True
        self._is_settled = (await send(self.sender, look_call(self.job))).job.is_terminal
        return False

    async def _is_last(self) -> bool:
        """Whether nothing follows a terminal event, as it does where the job was put back into the queue."""
        return not (await send(self.sender, events_call(self.job, self.last, 1))).data

    async def _connection(self) -> AsyncGenerator[Event, None]:
        """New events of one connection."""
        self._parser = SseParser()
        async with self.sender.open(self._call()) as answer:
            await _check_answer(answer, self.sender)
            async for piece in answer.pieces():
                for message in self._messages(piece):
                    event = self._next_event(message)
                    if event is not None:
                        yield event

    def _call(self) -> Call[None]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last:
            headers["Last-Event-ID"] = str(self.last)
        return get(no_body, route("jobs", self.job, "events"), headers=headers, patience_s=2 * PING_S)

    def _messages(self, piece: bytes) -> list[Message]:
        try:
            return self._parser.feed(piece)
        except OversizedError as exc:
            raise _BrokenStreamError(f"the events of job {self.job}: {exc}") from exc

    def _next_event(self, message: Message) -> Event | None:
        """The event of a message, or None for a repeat and for what carries no id of its own."""
        if not message.id:
            return None
        if not (message.id.isascii() and message.id.isdigit() and len(message.id) < 19):
            raise _BrokenStreamError(f"an event of job {self.job} has the id {message.id[:40]!r}")
        number = int(message.id)
        if number <= self.last:
            return None
        if number != self.last + 1:
            raise _BrokenStreamError(f"job {self.job}: event {number} came after event {self.last}")
        event = parse_reply(Event, message.data)
        if event.id != number:
            raise _BrokenStreamError(f"job {self.job}: event {number} says that it is {event.id}")
        return event

    def _remedy(self) -> str:
        return f"Go on with jobs.stream({self.job!r}, after={self.last})"


async def _check_answer(answer: Answer, sender: Sender) -> None:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()
    if answer.status != 200:
        check_status(Raw(answer.status, answer.headers, await answer.read()), sender.clock.utc())
    if answer.status != 200 or kind != "text/event-stream":
        raise ReplyError(f"the server sent {kind[:60]!r} (status {answer.status}) where events were asked for")


def events_call(job: str, after: int, limit: int) -> Call[Page[Event]]:
    """`GET /jobs/{id}/events`: one page."""
    return get(reply_as(Page[Event]), route("jobs", job, "events"), {"after": after, "limit": limit})


def stream_events(sender: Sender, job: str, after: int) -> AsyncGenerator[Event, None]:
    """`EventStream.events` of a new reader."""
    return EventStream(sender, job, after).events()
