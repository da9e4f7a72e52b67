"""A scripted server for the client's tests: handlers by method and path, and bodies that break off."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from afdc.sdk.retry import Clock

Handler = Callable[[httpx.Request], httpx.Response]

NOW = "2026-01-02T03:04:05Z"
JOB = "job_0190a0a0a0a07000800000000000000a"
SEEDS = "seed_0190a0a0a0a07000800000000000000b"
DATASET = "ds_0190a0a0a0a07000800000000000000c"
ADAPTER = "ad_0190a0a0a0a07000800000000000000d"
KEY = "afdc_canary-secret-0123456789"
TASK: dict[str, Any] = {"instruction": "Which?", "labels": ["up", "down"]}


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Pieces, and then the end or an error, for both kinds of client."""

    def __init__(self, pieces: Iterable[bytes], error: Exception | None = None) -> None:
        self.pieces = list(pieces)
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Time:
    """A clock that only sleeping moves, and chance that always draws the same."""

    now: float = 1000.0
    draw: float = 0.5
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, draw=lambda: self.draw)


class Service:
    """Answers with what was scripted for "METHOD /path", one after the other; the last answer stays."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._script: dict[str, list[Handler]] = {}

    def on(self, route: str, *answers: Handler | httpx.Response | Exception | dict[str, Any]) -> None:
        self._script[route] = [_as_handler(answer) for answer in answers]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answers = self._script.get(f"{request.method} {request.url.path}")
        if answers is None:
            return problem(404, "not_found")
        return _unread((answers.pop(0) if len(answers) > 1 else answers[0])(request))

    def seen(self, route: str) -> list[httpx.Request]:
        return [request for request in self.requests if f"{request.method} {request.url.path}" == route]


def _unread(response: httpx.Response) -> httpx.Response:
    """As it comes off a network: httpx counts a response that is made of bytes as read."""
    if isinstance(response.stream, Body):
        return response
    return httpx.Response(response.status_code, headers=response.headers, stream=Body([response.content]))


def _as_handler(answer: Handler | httpx.Response | Exception | dict[str, Any]) -> Handler:
    if isinstance(answer, dict):
        return lambda request: httpx.Response(200, json=answer)
    if isinstance(answer, httpx.Response):
        response = answer
        return lambda request: response
    if isinstance(answer, Exception):
        error = answer

        def fail(request: httpx.Request) -> httpx.Response:
            raise error

        return fail
    return answer


def problem(status: int, code: str, headers: dict[str, str] | None = None, **extra: Any) -> httpx.Response:
    body = {"title": "Title", "status": status, "code": code, "detail": "What is wrong.", **extra}
    found = {"content-type": "application/problem+json", **(headers or {})}
    return httpx.Response(status, content=json.dumps(body).encode(), headers=found)


def job(status: str = "running", **extra: Any) -> dict[str, Any]:
    return {"id": JOB, "status": status, "seeds": SEEDS, "created_at": NOW, "updated_at": NOW, **extra}


def seed_set(**extra: Any) -> dict[str, Any]:
    found = {"id": SEEDS, "kind": "seeds", "task": TASK, "report": {"rows": 2}, "sha256": "0", "created_at": NOW}
    return found | extra


def event(number: int, kind: str = "progress") -> dict[str, Any]:
    return {"id": number, "kind": kind, "at": NOW, "data": {}}


def frame(number: int, kind: str = "progress") -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(event(number, kind))}\n\n".encode()


async def settle(value: Any) -> Any:
    """The result, of either client."""
    return await value if inspect.isawaitable(value) else value


async def collect(feed: Any) -> list[Any]:
    """All items, of either client."""
    return [item async for item in feed] if hasattr(feed, "__aiter__") else list(feed)
