"""The event stream: every event once and in order, wherever and however often the connection breaks."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from afdc.sdk.exceptions import NotFoundError, ReplyError, UnreachableError
from tests.sdk.service import JOB, Body, Service, Time, collect, event, frame, job, problem, settle

PATH = f"/v1/jobs/{JOB}/events"
KINDS = ["job_queued", "stage", "progress", "progress", "job_succeeded"]
WHOLE = b": hello\n\n" + b"".join(frame(number, kind) for number, kind in enumerate(KINDS, 1)) + b": bye\n\n"


def stream(*pieces: bytes, error: Exception | None = None) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=Body(pieces, error))


class Events:
    """The endpoint: a page of JSON, or for each connection what `replies` makes of the last id that was seen."""

    def __init__(self, service: Service, *replies: Any, kinds: list[str] = KINDS) -> None:
        self.replies = iter(replies)
        self.kinds = kinds
        self.last_ids: list[str | None] = []
        self.bodies: list[Body] = []
        service.on(f"GET {PATH}", self)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.headers["accept"] != "text/event-stream":
            after = int(request.url.params["after"])
            data = [event(number, kind) for number, kind in enumerate(self.kinds, 1) if number > after]
            return httpx.Response(200, json={"data": data[: int(request.url.params["limit"])]})
        self.last_ids.append(request.headers.get("last-event-id"))
        reply = next(self.replies)
        if isinstance(reply, Exception):
            raise reply
        made: httpx.Response = reply(request) if callable(reply) else reply
        if isinstance(made.stream, Body):
            self.bodies.append(made.stream)
        return made


async def ids(client: Any, after: int = 0) -> list[int]:
    return [found.id for found in await collect(client.jobs.stream(JOB, after=after))]


async def test_to_the_terminal_event(client: Any, service: Service, time: Time) -> None:
    events = Events(service, stream(WHOLE))
    found = await collect(client.jobs.stream(JOB))
    assert [(one.id, one.kind) for one in found] == list(enumerate(KINDS, 1))
    assert events.bodies[0].closed
    assert time.slept == []


async def test_cut_at_any_byte(client: Any, service: Service, time: Time) -> None:
    rest = {number: b"".join(frame(n, kind) for n, kind in enumerate(KINDS, 1) if n > number) for number in range(6)}

    def go_on(request: httpx.Request) -> httpx.Response:
        return stream(rest[int(request.headers.get("last-event-id", 0))])

    for place in range(len(WHOLE) + 1):
        for error in (None, httpx.ReadError("cut")):
            Events(service, stream(WHOLE[:place], error=error), go_on)
            service.on(f"GET /v1/jobs/{JOB}", job())
            assert await ids(client) == [1, 2, 3, 4, 5], place


async def test_repeats_are_dropped(client: Any, service: Service) -> None:
    events = Events(service, stream(frame(1), frame(2), error=httpx.ReadError("cut")), stream(WHOLE))
    assert await ids(client) == [1, 2, 3, 4, 5]
    assert events.last_ids == [None, "2"]


async def test_it_begins_where_it_is_told(client: Any, service: Service) -> None:
    events = Events(service, stream(WHOLE))
    assert await ids(client, after=3) == [4, 5]
    assert events.last_ids == ["3"]


async def test_a_gap_is_gone_back_to(client: Any, service: Service, time: Time) -> None:
    events = Events(service, stream(frame(1), frame(3)), stream(frame(2), frame(4)), stream(WHOLE))
    assert await ids(client) == [1, 2, 3, 4, 5]
    assert events.last_ids == [None, "1", "2"]
    assert len(time.slept) == 2
    assert all(body.closed for body in events.bodies)


@pytest.mark.parametrize(
    "bad",
    [
        b"id: x\ndata: {}\n\n",
        b"id: -1\ndata: {}\n\n",
        "id: \u0662\ndata: {}\n\n".encode(),
        b"id: 99999999999999999999999\ndata: {}\n\n",
        frame(2).replace(b"id: 2", b"id: 1"),
    ],
)
async def test_ids_that_cannot_be(client: Any, service: Service, bad: bytes) -> None:
    events = Events(service, stream(bad), stream(WHOLE))
    assert await ids(client) == [1, 2, 3, 4, 5]
    assert events.last_ids == [None, None]


async def test_messages_without_an_id_are_no_events(client: Any, service: Service) -> None:
    Events(service, stream(b"event: slow\ndata: read faster\n\n", WHOLE))
    assert await ids(client) == [1, 2, 3, 4, 5]


async def test_it_gives_up_when_nothing_helps(client: Any, service: Service, time: Time) -> None:
    events = Events(service, stream(frame(1), frame(2)), *[httpx.ConnectError("refused")] * 20)
    service.on(f"GET /v1/jobs/{JOB}", job())
    with pytest.raises(UnreachableError):
        await ids(client)
    assert events.last_ids[1:] == ["2"] * 10
    assert len(events.last_ids) == 11
    assert time.slept[0] < time.slept[3] <= time.slept[-1] <= 8


async def test_endless_gaps_end(client: Any, service: Service, time: Time) -> None:
    Events(service, *(stream(frame(7)) for _ in range(20)))
    with pytest.raises(ReplyError, match="event 7 came after event 0"):
        await ids(client)


async def test_long_silence_is_no_failure(client: Any, service: Service, time: Time) -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        time.now += 60
        return stream(b": ping\n\n" * 4, error=httpx.ReadError("cut"))

    Events(service, *[silent] * 40, stream(WHOLE))
    assert await ids(client) == [1, 2, 3, 4, 5]


async def test_the_server_s_reconnection_time(client: Any, service: Service, time: Time) -> None:
    Events(service, stream(b"retry: 3000\n\n", error=httpx.ReadError("cut")), stream(WHOLE))
    await ids(client)
    assert time.slept == [3.0]


async def test_refusals(client: Any, service: Service, time: Time) -> None:
    Events(service, problem(503, "busy", {"Retry-After": "4"}), problem(429, "x"), stream(WHOLE))
    assert await ids(client) == [1, 2, 3, 4, 5]
    assert time.slept[0] == 4.25
    Events(service, problem(404, "not_found"))
    with pytest.raises(NotFoundError):
        await ids(client)
    Events(service, httpx.Response(200, text="<html>", headers={"content-type": "text/html"}))
    with pytest.raises(ReplyError, match="text/html"):
        await ids(client)


async def test_an_event_that_is_none(client: Any, service: Service) -> None:
    Events(service, stream(b"id: 1\ndata: {}\n\n"))
    with pytest.raises(ReplyError, match="no Event"):
        await ids(client)


@pytest.mark.parametrize("kind", ["job_succeeded", "job_failed", "job_cancelled", "job_expired"])
async def test_terminal_events(client: Any, service: Service, kind: str) -> None:
    Events(service, stream(frame(1), frame(2, kind)), kinds=["x", kind])
    assert await ids(client) == [1, 2]


async def test_a_job_that_was_put_back_goes_on(client: Any, service: Service) -> None:
    kinds = ["stage", "job_failed", "job_retried", "job_succeeded"]
    frames = [frame(number, kind) for number, kind in enumerate(kinds, 1)]
    events = Events(service, stream(*frames[:2]), stream(*frames[2:]), kinds=kinds)
    assert await ids(client) == [1, 2, 3, 4]
    assert events.last_ids == [None, "2"]


async def test_a_job_that_is_over_has_no_more_events(client: Any, service: Service) -> None:
    events = Events(service, *[stream(b": nothing\n\n") for _ in range(9)])
    service.on(f"GET /v1/jobs/{JOB}", job("succeeded"))
    assert await ids(client, after=5) == []
    assert events.last_ids == ["5", "5"], "twice: it may have ended between the stream and the look at it"


async def test_leaving_early_closes_the_connection(client: Any, service: Service) -> None:
    events = Events(service, stream(*(frame(number) for number in itertools.islice(itertools.count(1), 50))))
    service.on(f"GET /v1/jobs/{JOB}", job())
    handle = await settle(client.jobs.get(JOB))
    feed = handle.stream()
    if hasattr(feed, "__anext__"):
        assert (await feed.__anext__()).id == 1
        await feed.aclose()
    else:
        assert next(feed).id == 1
        feed.close()
    assert events.bodies[0].closed
