"""Connections that cost a server more than they give: uvicorn's HTTP protocol with limits on what it lacks them for.

uvicorn waits for ever for the first request of a connection, and for the rest of one that has begun; with httptools
it also keeps headers of any size.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from afdc.wire.common import Problem
from afdc_server.api.problems import MEDIA_TYPE

HEAD_S = 20.0
HEAD_BYTES = 64 << 10
UNREAD_MS = 90_000


def _reply(status: HTTPStatus, code: str, detail: str) -> bytes:
    """A whole answer, for requests that reach no endpoint."""
    problem = Problem(title=status.phrase, status=status, detail=detail, code=code)
    body = problem.model_dump_json().encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


TOO_LARGE = _reply(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "More than 64 KiB of headers")
TOO_SLOW = _reply(HTTPStatus.REQUEST_TIMEOUT, "slow_request", "The request came too slowly. Send it again")
MALFORMED = _reply(HTTPStatus.BAD_REQUEST, "bad_request", "This is no HTTP request, or its first line is too long")


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # uvicorn picks the class when it is imported
    """The head of a request (line and headers) comes within `head_s` seconds and has at most `head_bytes` bytes.

    A client that takes no byte of its answer for `UNREAD_MS` is cut off by the kernel: a transport that is only closed
    would wait for it to read what is left.
    """

    head_s = HEAD_S
    head_bytes = HEAD_BYTES
    _deadline: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: Any) -> None:
        """A connection; its first head is due."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body."""
        before = self.cycle
        is_body = before is not None and not before.response_complete and before.more_body
        super().data_received(data)
        if is_body or self.cycle is not before:
            self._stop_waiting()
            return
        self._head += len(data)
        if self._head > self.head_bytes:
            self._refuse(TOO_LARGE)
        elif self._is_idle():
            self._wait_for_head()

    def send_400_response(self, _message: str) -> None:
        """What uvicorn calls for bytes that it cannot read."""
        self.transport.write(MALFORMED)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Whether no request is under way: what comes next is the head of one."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_s, self._refuse, TOO_SLOW)

    def _stop_waiting(self) -> None:
        self._head = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, reply: bytes) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self._is_idle():
            self.transport.write(reply)
            self.transport.close()
        else:  # behind an answer that is still on its way, another one would be read as a part of it
            self.transport.abort()
