"""How a request goes out and its reply comes in: the one seam between the blocking and the awaiting client.

Both senders have the methods of `Sender`. Those of the blocking one never wait inside an `await`, so that `faces.drive`
runs a coroutine over it to its end in one go.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import httpx

from afdc.errors import UsageError
from afdc.sdk.core import Call, Raw, Upload, check_status
from afdc.sdk.exceptions import ApiError, UnreachableError
from afdc.sdk.options import CONNECT_TIMEOUT_S, Options
from afdc.sdk.retry import Clock, RetryPolicy, may_repeat

T = TypeVar("T")

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Answer(Protocol):
    """A reply whose head has arrived."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes:
        """The whole body, decompressed."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives, as it was sent."""


class Sender(ABC):
    """Sends calls to one server.

    Attributes:
        options: where it is, and who asks.
        clock: time and chance.
        retry: how often one request is tried.
    """

    def __init__(self, options: Options, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.retry = RetryPolicy(attempts=options.max_retries, draw=clock.draw)

    @abstractmethod
    def open(self, call: Call[Any]) -> AbstractAsyncContextManager[Answer]:
        """Send once; the block reads the reply, whatever its status.

        Raises:
            UnreachableError: no reply.
            UsageError: the client is closed.
        """

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def offload(self, work: Callable[[], T]) -> T:
        """Do work on files without holding up other tasks."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""

    def settings(self) -> dict[str, Any]:
        """Arguments of the httpx client. Proxies of the environment are not asked for a server on this machine."""
        return {"headers": self.options.headers(), "trust_env": not self.options.is_local}

    def arguments(self, call: Call[Any]) -> dict[str, Any]:
        """Arguments of the httpx request, without its content."""
        silence = self.options.timeout_s + call.patience_s
        headers = dict(call.headers)
        if isinstance(call.content, Upload) and call.content.size is not None:
            headers["Content-Length"] = str(call.content.size)
        return {
            "method": call.method,
            "url": self.options.server + call.path,
            "params": call.params or None,
            "headers": headers,
            "timeout": httpx.Timeout(silence, connect=min(self.options.timeout_s, CONNECT_TIMEOUT_S)),
        }


class SyncSender(Sender):
    """Blocks."""

    def __init__(
        self,
        options: Options,
        clock: Clock,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(options, clock)
        self._http = httpx.Client(transport=transport, **self.settings())
        self._sleep = sleep

    @asynccontextmanager
    async def open(self, call: Call[Any]) -> AsyncIterator[Answer]:
        _check_open(self._http.is_closed)
        content = call.content.open() if isinstance(call.content, Upload) else call.content
        request = self._http.build_request(content=content, **self.arguments(call))
        with _translated(self.options.server):
            response = self._http.send(request, stream=True)
        try:
            yield _SyncAnswer(response, self.options.server)
        finally:
            response.close()

    async def sleep(self, seconds: float) -> None:
        self._sleep(seconds)

    async def offload(self, work: Callable[[], T]) -> T:
        return work()

    async def close(self) -> None:
        self._http.close()


class AsyncSender(Sender):
    """Awaits, on asyncio."""

    def __init__(
        self,
        options: Options,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(options, clock)
        self._http = httpx.AsyncClient(transport=transport, **self.settings())
        self._sleep = sleep

    @asynccontextmanager
    async def open(self, call: Call[Any]) -> AsyncIterator[Answer]:
        _check_open(self._http.is_closed)
        content = _in_threads(call.content.open()) if isinstance(call.content, Upload) else call.content
        request = self._http.build_request(content=content, **self.arguments(call))
        with _translated(self.options.server):
            response = await self._http.send(request, stream=True)
        try:
            yield _AsyncAnswer(response, self.options.server)
        finally:
            await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await self._sleep(seconds)

    async def offload(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def close(self) -> None:
        await self._http.aclose()


class _BaseAnswer:
    def __init__(self, response: httpx.Response, server: str) -> None:
        self._response = response
        self._server = server

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers


class _SyncAnswer(_BaseAnswer):
    async def read(self) -> bytes:
        with _translated(self._server):
            return self._response.read()

    async def pieces(self) -> AsyncIterator[bytes]:
        with _translated(self._server):
            for piece in self._response.iter_raw():
                yield piece


class _AsyncAnswer(_BaseAnswer):
    async def read(self) -> bytes:
        with _translated(self._server):
            return await self._response.aread()

    async def pieces(self) -> AsyncIterator[bytes]:
        with _translated(self._server):
            async for piece in self._response.aiter_raw():
                yield piece


async def exchange(sender: Sender, call: Call[T]) -> T:
    """Send once and read the reply.

    Raises:
        ApiError: the server refused.
        UnreachableError: it did not answer.
        ReplyError: the answer cannot be read.
    """
    async with sender.open(call) as answer:
        raw = Raw(answer.status, answer.headers, await answer.read())
    check_status(raw, sender.clock.utc())
    return call.parse(raw)


async def send(sender: Sender, call: Call[T]) -> T:
    """`exchange`, again where that can help: the reply, or the last error."""
    failures = 0
    while True:
        try:
            return await exchange(sender, call)
        except (ApiError, UnreachableError) as exc:
            failures += 1
            delay = sender.retry.delay(exc, failures) if may_repeat(exc, idempotent=call.idempotent) else None
            if delay is None:
                raise
        await sender.sleep(delay)


def _check_open(is_closed: bool) -> None:
    if is_closed:
        raise UsageError("the client is closed", remedy="Make a new one")


@contextmanager
def _translated(server: str) -> Iterator[None]:
    """httpx's errors in our words. They keep no key: httpx hides it when it shows headers."""
    try:
        yield
    except httpx.RequestError as exc:
        sent = not isinstance(exc, NEVER_SENT)
        how = "does not answer in time" if isinstance(exc, httpx.TimeoutException) else str(exc) or type(exc).__name__
        message = f"{server} {how}" if isinstance(exc, httpx.TimeoutException) else f"cannot reach {server}: {how}"
        remedy = "" if sent else "Start the server with `afdc-server`, or set AFDC_SERVER to its address"
        raise UnreachableError(message, sent=sent, remedy=remedy) from exc


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
