"""Requests to the server: one connection pool, and what is tried again.

aiohttp and not httpx: with hundreds of requests at once httpcore looks through its whole pool for every one of them,
which costs this process 4 to 7 ms a request against 0.2 ms.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from afdc.errors import EngineDiedError
from afdc.sdk.retry import parse_retry_after
from afdc_server.remote.server import RemoteServer

BUSY = frozenset({429, 503})  # the server is there and says "later": waited for as long as for one that is away
TRIED_AGAIN = frozenset({408, 500, 502, 504, *BUSY})
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `retry_after`: seconds that the server asks to wait, if it does."""

    status: int
    content: bytes
    retry_after: float | None = None

    @property
    def message(self) -> str:
        """The server's own words about a failure, on one line."""
        try:
            text = str(json.loads(self.content)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            text = self.content[:500].decode("utf-8", "replace")
        return " ".join(text.split())[:500] or f"HTTP {self.status}"


class HttpClient:
    """Open connections to one server. Make it inside the event loop that uses it.

    Attributes:
        replies: how many replies to `insist` have come back, of any status: a sign of life.
    """

    def __init__(self, server: RemoteServer, connections: int) -> None:
        self._server = server
        self.replies = 0
        headers = {"Content-Type": "application/json"}
        if server.api_key:
            headers["Authorization"] = f"Bearer {server.api_key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=server.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """GET, or POST where there is a body, once.

        Raises:
            EngineDiedError: no whole reply came back.
        """
        url = self._server.url + path
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body, separators=(",", ":")).encode())
        try:
            async with self._session.request(method, url, data=data, allow_redirects=False) as response:
                content = self._told(response.status, await response.read())
                reply = Reply(response.status, content, read_pause(response.headers))
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise EngineDiedError(f"{self._server.url} does not answer: {exc or type(exc).__name__}") from exc
        return reply

    def _told(self, status: int, content: bytes) -> bytes:
        """A body without our key: gateways repeat one that they refuse, and their words end in messages and logs."""
        key = self._server.api_key.encode()
        return content.replace(key, b"***") if key and status >= 400 else content

    async def insist(self, path: str, body: Mapping[str, Any], again: Collection[int] = TRIED_AGAIN) -> Reply:
        """POST until a reply comes whose status is not one of `again`; the last one where none does.

        Raises:
            EngineDiedError: the last try brought no whole reply.
        """
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + self._server.patience_s, self._server.tries
        for pause in pauses():
            try:
                reply = await self.ask(path, body)
            except EngineDiedError:
                left -= 1
                if left < 1:
                    raise
            else:
                self.replies += 1
                left -= reply.status not in BUSY
                pause = max(pause, reply.retry_after or 0.0)
                if reply.status not in again or left < 1 or loop.time() + pause > deadline:
                    return reply
            await asyncio.sleep(pause)
        raise AssertionError("pauses() has no end")


def pauses() -> Iterator[float]:
    """Seconds between tries: doubling to a limit, spread out so that many requests do not come back together."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load and protects nothing
        pause = min(2 * pause, LONGEST_PAUSE)


def read_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3: seconds or a date); None where it is not there or not readable."""
    return parse_retry_after(headers.get("Retry-After"), datetime.now(UTC))
