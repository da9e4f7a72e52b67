"""Stored files as downloads that can be resumed: RFC 9110, ranges (14), conditions (13) and entity tags (8.8.3).

A stored file never changes, so its tag is strong: the SHA-256 of its content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from afdc.wire.datasets import StoredFile
from afdc_server.api.openapi import problems
from afdc_server.artifacts import ArtifactStore

CONTENT_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".md": "text/markdown; charset=utf-8",
}
ANY_BYTES = "application/octet-stream"
CACHE = "private, no-cache"  # a copy may be kept, and used once the server has checked the key and the tag
ONE_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
MAX_DIGITS = 18  # more than any file has bytes: longer numbers are cut, since int() refuses endless ones
BINARY: dict[str, Any] = {ANY_BYTES: {"schema": {"type": "string", "format": "binary"}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file", "content": BINARY},
    206: {"description": "The part that Range asks for", "content": BINARY},
    304: {"description": "The copy that If-None-Match names is still the file"},
    **problems(401, 403, 404, 416, 429, 503),
}


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file: `length` from `start` on."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        """Value of the header."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


def file_reply(request: Request, artifacts: ArtifactStore, location: str, file: StoredFile) -> Response:
    """Answer a GET or HEAD of a stored file.

    Raises:
        HTTPException: 416, a range behind the file's end.
        StorageError: the file cannot be read.
    """
    tag = f'"{file.sha256}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": CACHE}
    if _names(request.headers.getlist("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Disposition": attachment(PurePosixPath(file.path).name)}
    span = _wanted(request, tag, file.bytes)
    if span is not None:
        headers["Content-Range"] = span.content_range(file.bytes)
    status, sent = (200, Span(0, file.bytes)) if span is None else (206, span)
    headers["Content-Length"] = str(sent.length)
    media_type = CONTENT_TYPES.get(PurePosixPath(file.path).suffix, ANY_BYTES)
    if request.method == "HEAD":
        return Response(None, status, headers, media_type)
    pieces = started(artifacts.pieces(location, file.path, sent.start, sent.length))
    return StreamingResponse(pieces, status, headers, media_type)


def started(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, the first of them read now: what fails at once is an error reply and not a broken download."""
    first = next(pieces, b"")

    def rest() -> Iterator[bytes]:
        yield first
        yield from pieces

    return rest()


def attachment(name: str) -> str:
    """`Content-Disposition` (RFC 6266) with a name that may hold any character."""
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def parse_range(value: str, size: int) -> Span | None:
    """The bytes that a Range header asks for; None where it is to be passed over.

    Other units, several ranges and what is malformed are passed over, as RFC 9110 allows: the whole file answers.

    Raises:
        HTTPException: 416, no byte of the file is in the range.
    """
    found = ONE_RANGE.fullmatch(value)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(_number(found[2]), size)
        return _satisfiable(Span(size - length, length), size)
    start, last = _number(found[1]), _number(found[2]) if found[2] else size - 1
    if found[2] and last < start:
        return None
    return _satisfiable(Span(start, min(last, size - 1) - start + 1), size)


def _satisfiable(span: Span, size: int) -> Span:
    if span.length <= 0 or span.start >= size:
        message = f"The file has {size:,} bytes, and none in that range. Ask for the whole file"
        raise HTTPException(416, message, {"Content-Range": f"bytes */{size}"})
    return span


def _number(digits: str) -> int:
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= MAX_DIGITS else 10**MAX_DIGITS


def _wanted(request: Request, tag: str, size: int) -> Span | None:
    """The range to send. `If-Range` with another tag, or with a date (there is none here), asks for the whole file."""
    value = request.headers.get("range")
    condition = request.headers.get("if-range")
    if request.method != "GET" or value is None or (condition is not None and condition.strip() != tag):
        return None
    return parse_range(value, size)


def _names(values: list[str], tag: str) -> bool:
    """Whether `If-None-Match` names the tag; weak comparison."""
    listed = [one.strip().removeprefix("W/") for value in values for one in value.split(",")]
    return tag in listed or "*" in listed
