"""Server-sent events out of bytes, wherever these were cut (WHATWG HTML, 9.2.6, "Interpreting an event stream")."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 16 << 20
LINE_END = re.compile(rb"\r\n|\r|\n")


class OversizedError(ValueError):
    """A message is longer than `MAX_MESSAGE_BYTES`: memory stays bounded."""


@dataclass(frozen=True)
class Message:
    """One event. `id` is the last that was sent, with this message or before it; "" for none."""

    id: str
    event: str
    data: str


class SseParser:
    """Feed it bytes, get messages. A message that the stream ends in is not given out, as the specification says.

    Attributes:
        retry_ms: reconnection time that the server asked for, milliseconds, or None.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._line = bytearray()
        self._after_cr = False
        self._at_start = True
        self._id = ""
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with these bytes.

        Raises:
            OversizedError: a message has no end.
        """
        if not data:
            return []
        start = 1 if self._after_cr and data[:1] == b"\n" else 0  # the second half of a CRLF that was cut
        self._after_cr = data.endswith(b"\r")
        *ended, rest = LINE_END.split(data[start:])
        messages = []
        for piece in ended:
            self._extend(piece)
            message = self._take_line()
            if message is not None:
                messages.append(message)
        self._extend(rest)
        return messages

    def _extend(self, piece: bytes) -> None:
        self._line += piece
        self._size += len(piece)
        if self._size > MAX_MESSAGE_BYTES:
            raise OversizedError(f"an event of more than {MAX_MESSAGE_BYTES:,} bytes")

    def _take_line(self) -> Message | None:
        line = bytes(self._line)
        self._line.clear()
        if self._at_start:
            line = line.removeprefix(codecs.BOM_UTF8)
            self._at_start = False
        if not line:
            return self._dispatch()
        if line[:1] == b":":
            self._size -= len(line)  # comments are pings: any number of them may come before a message
        else:
            name, _, value = line.decode(errors="replace").partition(":")
            self._field(name, value.removeprefix(" "))
        return None

    def _field(self, name: str, value: str) -> None:
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and re.fullmatch(r"[0-9]{1,9}", value):
            self.retry_ms = int(value)

    def _dispatch(self) -> Message | None:
        message = Message(self._id, self._event or "message", "\n".join(self._data)) if self._data else None
        self._event, self._data, self._size = "", [], 0
        return message
