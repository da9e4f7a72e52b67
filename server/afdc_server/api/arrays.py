"""A large JSON array from a file, one element at a time: in memory is one element, and never the whole body.

Between two elements other threads may run; a parser that reads the body in one go would hold up every request.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from afdc.wire.common import Fault
from afdc_server.api.bodies import CODE
from afdc_server.api.problems import RequestError
from afdc_server.service.errors import TooLargeError

BLOCK = 1 << 18
SPACE = re.compile(r"[ \t\n\r]*")
CUT_CHARS = 16
"""So near to the end of what was read an error may come from the cut: -Infinity is the longest token."""
DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds the end of a value, whatever its numbers are worth: whoever reads the value judges them."""


class _Window:
    """The part of the text that is being read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._is_whole = False
        self.text = ""
        self.at = 0

    def more(self) -> bool:
        """Read on, each time twice as far: an element is not looked at from its beginning too often."""
        if self._is_whole:
            return False
        rest = self.text[self.at :]
        piece = self._stream.read(max(BLOCK, len(rest)))
        self._is_whole = not piece
        self.text, self.at = rest + self._decoder.decode(piece, final=self._is_whole), 0
        return True

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            found = SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str) -> str:
        """`peek`, which has to be one of these, and go on behind it."""
        found = self.peek()
        if not found or found not in wanted:
            raise broken(f"{' or '.join(wanted)} is expected where {found or 'the end'!a} stands")
        self.at += 1
        return found

    def value(self, largest: int, number: int) -> str:
        """The text of the next value, at most `largest` characters. `number`: its place, for messages."""
        self.peek()
        while (end := self._end(number)) is None and len(self.text) - self.at <= largest:
            self.more()
        if end is None or end - self.at > largest:
            message = f"element {number} of the body is longer than {largest:,} characters"
            raise TooLargeError(message, remedy="Leave it out")
        text, self.at = self.text[self.at : end], end
        return text

    def _end(self, number: int) -> int | None:
        """Where the value that begins here ends; None: behind what was read."""
        try:
            return DECODER.raw_decode(self.text, self.at)[1]
        except json.JSONDecodeError as exc:
            is_cut = exc.msg.startswith("Unterminated string") or exc.pos >= len(self.text) - CUT_CHARS
            if self._is_whole or not is_cut:
                raise broken(exc.msg, number) from exc
            return None
        except RecursionError as exc:
            raise broken("nested too deep", number) from exc


def first_character(stream: BinaryIO) -> str:
    """That tells an array from an object; "" for an empty body. The stream is read from its beginning next.

    Raises:
        RequestError: it is no text.
    """
    try:
        return _Window(stream).peek()
    except UnicodeDecodeError as exc:
        raise broken(f"it is not UTF-8: {exc.reason}") from exc
    finally:
        stream.seek(0)


def array_elements(stream: BinaryIO, largest: int) -> Iterator[str]:
    """The JSON of every element of an array.

    Args:
        largest: characters that an element may have.

    Raises:
        RequestError: it is no array, or broken. TooLargeError: an element is larger than that.
    """
    window, number = _Window(stream), 0
    try:
        window.take("[")
        if window.peek() == "]":
            window.take("]")
        else:
            yield window.value(largest, number)
            while window.take(",]") == ",":
                number += 1
                yield window.value(largest, number)
        if window.peek():
            raise broken("something stands behind the end")
    except UnicodeDecodeError as exc:
        raise broken(f"it is not UTF-8: {exc.reason}") from exc


def broken(what: str, number: int | None = None) -> RequestError:
    """The error for a body that is no JSON. `number`: of the element that is broken."""
    pointer = "" if number is None else f"/{number}"
    message = f"the body is broken JSON{f' in element {number}' if pointer else ''}: {what}"
    return RequestError(message, [Fault(pointer=pointer, code=CODE, message=message)], code=CODE)
