"""Streams of records from JSON lines, CSV and plain text: what the bytes say, before anybody asks what they mean.

A reader yields a `Record` or a `Problem` for each line and goes on where it can. Memory is bounded by the longest line
that is allowed, whatever the file holds.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from afdc.errors import InputError

FileKind = Literal["jsonl", "csv", "text"]

MAX_LINE_BYTES = 1 << 20
MAX_TEXT_CHARS = 100_000  # below the csv module's process-wide field limit, so that both formats agree
MAX_JSON_BYTES = 4 << 20
SNIFF_BYTES = 4096
SUFFIXES: dict[str, FileKind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".txt": "text"}

AS_UTF8 = "Save the file as UTF-8"
AS_OBJECTS = 'Write one JSON object a line, such as {"text": "...", "label": "..."}'
AS_CSV = (
    "Start the file with the line text,label, quote a field that holds a comma, a quote or a line break, "
    "and double the quotes inside it"
)


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of one record and the 1-based line it starts on."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line cannot be used, and what to do about it."""

    line: int
    message: str
    remedy: str = ""


class _UnreadableError(Exception):
    """Carries a problem out of a reader that cannot go on behind it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def read_records(path: Path, *, plain_text: bool = False) -> Iterator[Record | Problem]:
    """Records of a file, in order. A file that cannot be opened raises; a bad line is yielded as a problem.

    Args:
        path: `.jsonl`, `.ndjson`, `.json`, `.csv`, and with `plain_text` `.txt`; the content decides otherwise.
        plain_text: accept one text a line.

    Raises:
        InputError: a missing file, a folder, a pipe, or a file that may not be read.
    """
    _require_regular(path)
    kind = _file_kind(path, plain_text)
    readers = {"jsonl": _jsonl_records, "csv": _csv_records, "text": text_records}
    stream = open_input(path)
    try:
        with stream:
            yield from readers[kind](stream)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _require_regular(path: Path) -> None:
    """Refuse pipes and devices: files are read more than once (to check, to count, to use), and these only once."""
    try:
        is_once_only = path.exists() and not path.is_file() and not path.is_dir()
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if is_once_only:
        raise InputError("not a regular file", path=str(path), remedy="Save the texts in a file and name that")


def open_input(path: Path) -> BinaryIO:
    """Open for reading.

    Raises:
        InputError: a missing file, a folder, or one that may not be read.
    """
    try:
        return path.open("rb")
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> InputError:
    """The error for a file that the operating system will not read."""
    if isinstance(exc, FileNotFoundError):
        return InputError("no such file", path=str(path), remedy="Check the path")
    if isinstance(exc, IsADirectoryError):
        return InputError("this is a folder", path=str(path), remedy="Name a file inside it")
    return InputError(f"cannot be read: {exc.strerror or exc}", path=str(path), remedy="Check its permissions")


def read_json(path: Path, shape: str) -> Any:
    """The value of a small JSON file; `shape` is the remedy that shows what belongs in it.

    Raises:
        InputError: over 4 MiB, not UTF-8 or not JSON.
    """
    try:
        with open_input(path) as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"longer than {MAX_JSON_BYTES:,} bytes", path=str(path), remedy="Check the path")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        message = f"not UTF-8 at byte {exc.start} of the file"
        raise InputError(message, path=str(path), line=line, remedy=AS_UTF8) from exc
    except json.JSONDecodeError as exc:
        message = f"broken JSON at column {exc.colno}: {exc.msg}"
        raise InputError(message, path=str(path), line=exc.lineno, remedy=shape) from exc
    except (RecursionError, ValueError) as exc:  # nested too deeply, or a number of thousands of digits
        raise InputError(f"broken JSON: {_why(exc)}", path=str(path), remedy=shape) from exc


def _file_kind(path: Path, plain_text: bool) -> FileKind:
    kind = SUFFIXES.get(path.suffix.lower())
    if kind and (plain_text or kind != "text"):
        return kind
    with open_input(path) as stream:
        head = stream.read(SNIFF_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] in (b"{", b"["):
        return "jsonl"
    columns = [column.strip(b' "\r').lower() for column in head.split(b"\n", 1)[0].split(b",")]
    return "csv" if not plain_text or b"text" in columns else "text"


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str] | Problem]:
    """Decoded lines with their line ends. Nothing is read behind an over-long line: what follows is no text file."""
    number, offset = 0, 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            message = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
            yield Problem(number, message, "Put each example on a line of its own and shorten long texts")
            return
        data = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        try:
            yield number, data.decode()
        except UnicodeDecodeError as exc:
            where = offset + len(raw) - len(data) + exc.start
            yield Problem(number, f"not UTF-8 at byte {where} of the file (0x{data[exc.start]:02x})", AS_UTF8)
        offset += len(raw)


def text_records(stream: BinaryIO) -> Iterator[Record | Problem]:
    """One record a line that is not blank."""
    for item in _lines(stream):
        if isinstance(item, Problem):
            yield item
        elif item[1].strip():
            yield Record(item[0], {"text": item[1]})


def _jsonl_records(stream: BinaryIO) -> Iterator[Record | Problem]:
    for item in _lines(stream):
        if isinstance(item, Problem):
            yield item
        elif item[1].strip():
            yield _json_record(*item)


def _json_record(line: int, text: str) -> Record | Problem:
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as exc:
        return Problem(line, f"broken JSON at column {exc.colno}: {exc.msg}", AS_OBJECTS)
    except (RecursionError, ValueError) as exc:  # nested too deeply, a key given twice, or thousands of digits
        return Problem(line, f"broken JSON: {_why(exc)}", AS_OBJECTS)
    if not isinstance(value, dict):
        return Problem(line, f"not a JSON object but {type_name(value)}", AS_OBJECTS)
    return Record(line, value)


def _why(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    return "a number of thousands of digits" if "integer string conversion" in str(exc) else str(exc)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {repeated!a} is given twice")
    return found


def type_name(value: object) -> str:
    """What a JSON value is called in a message."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def _csv_records(stream: BinaryIO) -> Iterator[Record | Problem]:
    """Rows below the header, RFC 4180. Reading ends at broken quoting: no row behind it can be trusted."""
    rows = csv.reader(_csv_lines(stream), strict=True)
    start = 1
    try:
        header = _csv_header(next(rows, []), rows.line_num)
        start = rows.line_num + 1
        for row in rows:
            line, start = start, rows.line_num + 1
            if len(row) == len(header):
                yield Record(line, dict(zip(header, row, strict=True)))
            elif row:
                yield Problem(line, f"{len(row)} fields under a header of {len(header)}", AS_CSV)
    except csv.Error as exc:
        yield Problem(start, f"broken CSV: {exc}", AS_CSV)
    except _UnreadableError as exc:
        yield exc.problem


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    for item in _lines(stream):
        if isinstance(item, Problem):
            raise _UnreadableError(item)
        yield item[1]


def _csv_header(row: list[str], line: int) -> list[str]:
    if not row:
        if line:
            raise _UnreadableError(Problem(line, "the CSV file does not begin with a header", AS_CSV))
        return []
    header = [name.strip().casefold() for name in row]
    if "text" not in header:
        shown = ", ".join(name[:40] for name in header[:8])
        raise _UnreadableError(Problem(1, f"the CSV header has no column named text; it has: {shown}", AS_CSV))
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise _UnreadableError(Problem(1, f"the CSV header names column {repeated!r} twice", AS_CSV))
    return header
