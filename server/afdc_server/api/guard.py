"""The outermost layer: a request id, limits of size and patience for bodies, and headers that every answer has."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afdc.errors import AfdcError
from afdc.wire.common import API_PREFIX
from afdc_server.api.problems import bug_problem, http_problem, log, problem_of, request_id, respond, retry_after
from afdc_server.api.uploads import SUFFIXES
from afdc_server.service.errors import BusyError
from afdc_server.service.ids import REQUEST, new_id
from afdc_server.service.settings import Limits
from afdc_server.service.traffic import REASON_KEY, Traffic

CLOSE = {"Connection": "close"}
SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
REVIEWS = re.compile(rf"{API_PREFIX}/datasets/[^/]+/reviews")
STREAMS = re.compile(rf"{API_PREFIX}/seeds(/validate)?")
MIN_BYTES_S = 1024
GRACE = 4
"""Idle times that a body may take before its average speed counts."""
ENDING_RETRY_S = 5
LINGER_S = 2.0
"""An answer that comes before the end of the body waits so long for the rest: a connection that is closed while its
client still writes may take the answer with it."""


@dataclass(frozen=True)
class Allowed:
    """How many bytes a body may have, and what to do with a larger one."""

    size: int
    remedy: str


@dataclass
class Exchange:
    """One request and its answer: what was read of the body, and how far the answer is.

    Attributes:
        starts: told the status when the answer begins.
    """

    limits: Limits
    allowed: Allowed
    whole: bool
    receive_next: Receive
    send_next: Send
    starts: Callable[[int], None]
    read: int = 0
    begun: bool = False
    first_read: float | None = None

    async def receive(self) -> Message:
        """The next message. The wait is bounded only while a body is still on its way.

        Raises:
            HTTPException: 408, nothing came for too long; 413, more came than is allowed.
        """
        if self.whole:
            return await self.receive_next()
        try:
            async with asyncio.timeout(self._patience()):
                message = await self.receive_next()
        except TimeoutError as exc:
            raise HTTPException(408, "The body comes too slowly. Send it again", CLOSE) from exc
        self._count(message)
        if self.read > self.allowed.size:
            raise too_large(self.allowed)
        return message

    def _patience(self) -> float:
        """Seconds for the next piece: the idle time, or what the slowest allowed speed leaves."""
        now = asyncio.get_running_loop().time()
        self.first_read = self.first_read if self.first_read is not None else now
        idle = self.limits.body_idle_s
        return max(0.0, min(idle, self.first_read + GRACE * idle + self.read / MIN_BYTES_S - now))

    def _count(self, message: Message) -> None:
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
        else:
            self.whole = True  # the client has gone: nothing more comes

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on. The last one waits for the rest of the body, within reason."""
        if message["type"] == "http.response.start":
            self.begun = True
            self.starts(message["status"])
            _add_headers(message, closes=not self.whole)
        elif not self.whole and not message.get("more_body", False):
            await self.send_next({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self.send_next(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.whole:
                    self._count(await self.receive_next())
        except TimeoutError:
            return


class Guard:
    """ASGI middleware. A fault of the body rises where the app reads it, as an HTTPException."""

    def __init__(self, app: ASGIApp, limits: Limits, traffic: Traffic) -> None:
        self._app = app
        self._limits = limits
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token, begun = request_id.set(new_id(REQUEST)), time.perf_counter()

        def starts(status: int) -> None:
            self._traffic.note(scope, status, time.perf_counter() - begun)

        exchange = Exchange(self._limits, self._allowed(scope), not _has_body(scope), receive, send, starts)
        try:
            await self._answer(scope, exchange)
        finally:
            request_id.reset(token)

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        try:
            refusal = _refusal(scope, exchange)
            if refusal is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await respond(http_problem(refusal), refusal.headers)(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # the server ends, and this took longer than it waits
            if not exchange.begun:
                ending = BusyError("the server ends", reason="ending", remedy="Try again", retry_after_s=ENDING_RETRY_S)
                scope[REASON_KEY] = ending.reason
                await respond(problem_of(ending), retry_after(ending))(scope, exchange.receive, exchange.send)
        except Exception as exc:
            if not exchange.begun:
                await respond(bug_problem(exc))(scope, exchange.receive, exchange.send)
            elif isinstance(exc, AfdcError):  # uvicorn cuts the connection, and so the client sees that this is not all
                log.warning("an answer broke off", code=exc.code, detail=str(exc), request_id=request_id.get())
            else:
                bug_problem(exc)

    def _allowed(self, scope: Scope) -> Allowed:
        limits, path = self._limits, scope["path"]
        if REVIEWS.fullmatch(path):
            return Allowed(limits.review_bytes, "Export fewer tasks at once, for instance those that are annotated")
        kind = _header(scope, b"content-type").partition(";")[0].strip().lower()
        is_stream = kind in SUFFIXES and STREAMS.fullmatch(path) is not None
        return Allowed(limits.upload_bytes if is_stream else limits.json_bytes, "Send less, or upload JSONL or CSV")


def _refusal(scope: Scope, exchange: Exchange) -> HTTPException | None:
    """Why the request is not even shown to the app."""
    if _told_length(scope) > exchange.allowed.size:
        return too_large(exchange.allowed)
    coding = _header(scope, b"content-encoding").strip().lower()
    if not exchange.whole and coding not in {"", "identity"}:
        message = f"Bodies with Content-Encoding {coding[:40]!a} are not read here. Send it as it is"
        return HTTPException(415, message, {**CLOSE, "Accept-Encoding": "identity"})
    return None


def _has_body(scope: Scope) -> bool:
    """RFC 9112, 6.3: a request has one when it names a length or a transfer coding."""
    return _told_length(scope) > 0 or bool(_header(scope, b"transfer-encoding"))


def _told_length(scope: Scope) -> int:
    told = _header(scope, b"content-length")
    return int(told[:20]) if told.isascii() and told.isdigit() else 0


def too_large(allowed: Allowed) -> HTTPException:
    """A body past its limit."""
    return HTTPException(413, f"The body is larger than {allowed.size:,} bytes. {allowed.remedy}", CLOSE)


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _add_headers(message: Message, *, closes: bool) -> None:
    headers = [(b"x-request-id", request_id.get().encode()), *message.get("headers", [])]
    present = {name.lower() for name, _ in headers}
    added = (*SAFE_HEADERS, *([(b"connection", b"close")] if closes else []))
    message["headers"] = [*headers, *(pair for pair in added if pair[0] not in present)]
