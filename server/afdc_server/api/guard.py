"""The outermost layer: a request id, limits of size and patience for bodies, and headers that every answer has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afdc_server.api.problems import http_problem, request_id, respond
from afdc_server.service.ids import REQUEST, new_id
from afdc_server.service.settings import Limits

STREAMED = ("application/jsonl", "application/x-ndjson", "text/csv", "text/plain")
CLOSE = {"Connection": "close"}
SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


@dataclass
class _Body:
    """What was read of one request's body."""

    limit: int
    idle_s: float
    read: int = 0
    whole: bool = False


class Guard:
    """ASGI middleware. A fault of the body rises where the app reads it, as an HTTPException."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_id.set(new_id(REQUEST))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message)
            await send(message)

        try:
            body = _Body(self._limit(scope), self._limits.body_idle_s)
            if _told_length(scope) > body.limit:
                await respond(http_problem(_too_large(body.limit)), CLOSE)(scope, receive, answer)
            else:
                await self._app(scope, lambda: _receive(receive, body), answer)
        finally:
            request_id.reset(token)

    def _limit(self, scope: Scope) -> int:
        kind = _header(scope, b"content-type").partition(";")[0].strip().lower()
        return self._limits.upload_bytes if kind in STREAMED else self._limits.json_bytes


async def _receive(receive: Receive, body: _Body) -> Message:
    """The next message. The wait is bounded only while a body is still on its way."""
    if body.whole:
        return await receive()
    try:
        message = await asyncio.wait_for(receive(), body.idle_s)
    except TimeoutError as exc:
        raise HTTPException(408, f"No part of the body came for {body.idle_s:g} s. Send it again", CLOSE) from exc
    if message["type"] == "http.request":
        body.read += len(message.get("body", b""))
        body.whole = not message.get("more_body", False)
        if body.read > body.limit:
            raise _too_large(body.limit)
    return message


def _told_length(scope: Scope) -> int:
    told = _header(scope, b"content-length")
    return int(told[:20]) if told.isdigit() else 0


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The body is larger than {limit:,} bytes. Send less, or upload JSONL or CSV", CLOSE)


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _add_headers(message: Message) -> None:
    headers = [(b"x-request-id", request_id.get().encode()), *message.get("headers", [])]
    present = {name.lower() for name, _ in headers}
    message["headers"] = [*headers, *(pair for pair in SAFE_HEADERS if pair[0] not in present)]
