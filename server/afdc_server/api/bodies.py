"""JSON bodies, read strictly, and only once the key is known.

What is refused here is refused everywhere: text that no store can keep (NUL, half of a surrogate pair), numbers that no
JSON reader agrees on (NaN, 1e999), keys given twice, and shapes that cost more to look at than they can be worth.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from afdc.wire.common import Fault
from afdc_server.api.deps import check_key
from afdc_server.api.problems import RequestError
from afdc_server.service.errors import UnsupportedError

MAX_DEPTH = 64
MAX_KEYS = 2048
MAX_DIGITS = 20
CODE = "invalid_json"
JSON = "application/json"
UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
"""How NUL and surrogates are written. Whole pairs match too, so that a match is no fault yet."""


class _JsonFault(ValueError):
    """A value that the standard reader takes and we do not."""


def media_type(headers: Mapping[str, str]) -> str:
    """The body's type without parameters; JSON where none is named."""
    return headers.get("content-type", JSON).partition(";")[0].strip().lower()


def require_json(headers: Mapping[str, str]) -> None:
    """Refuse a body of another type. Raises UnsupportedError."""
    if (kind := media_type(headers)) != JSON:
        raise unread(kind, JSON)


def unread(kind: str, read: str) -> UnsupportedError:
    """The error for a body of a type that is not read; `read`: those that are."""
    return UnsupportedError(f"bodies of type {kind[:80]!a} are not read here", remedy=f"Send {read}")


def parse_json(body: bytes) -> Any:
    """The value of a JSON body: UTF-8, with or without a byte order mark.

    Raises:
        RequestError: it is no JSON, or holds what is refused here.
    """
    try:
        text = body.removeprefix(codecs.BOM_UTF8).decode()
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer, parse_float=_finite
        )
        _check_shape(value, bool(UNSTORABLE.search(text)))
    except UnicodeDecodeError as exc:
        raise _refused(f"the body is not UTF-8 at byte {exc.start}") from exc
    except json.JSONDecodeError as exc:
        raise _refused(f"broken JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}") from exc
    except RecursionError as exc:
        raise _refused(f"the JSON is nested more than {MAX_DEPTH} levels deep") from exc
    except _JsonFault as exc:
        raise _refused(str(exc)) from exc
    return value


def _refused(message: str) -> RequestError:
    return RequestError(message, [Fault(code=CODE, message=message)], code=CODE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _JsonFault(f"an object has {len(pairs):,} keys, and {MAX_KEYS:,} are allowed")
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # None
        raise _JsonFault(f"the key {twice[:40]!a} is given twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _JsonFault(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _JsonFault(f"a number of {len(digits):,} digits, and {MAX_DIGITS} are allowed")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _JsonFault(f"the number {digits[:40]} is out of range")
    return value


def _check_shape(value: Any, look_at_strings: bool) -> None:
    """Depth, and characters that cannot be stored. Level by level: the nesting never reaches Python's own stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
                if look_at_strings:
                    inner += one.keys()
            elif isinstance(one, list):
                inner += one
            elif look_at_strings and isinstance(one, str):
                _check_string(one)
        level = [one for one in inner if isinstance(one, dict | list | str)]
        if not level:
            return
    raise RecursionError


def _check_string(text: str) -> None:
    if "\0" in text:
        raise _JsonFault("a string holds a NUL character (\\u0000)")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise _JsonFault("a string holds half of a surrogate pair, which is no character")


class _ReadRequest(Request):
    """A request whose JSON body was read here: FastAPI takes what was found."""

    parsed: Any = None

    async def json(self) -> Any:
        """The value of the body."""
        return self.parsed


class ApiRoute(APIRoute):
    """Endpoints with a JSON body: first the key, then the body, then FastAPI's own checks.

    FastAPI by itself reads and parses the body before it asks who sends it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI calls it, once a route."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_then_handle(request: Request) -> Response:
            await check_key(request)
            read = _ReadRequest(request.scope, request.receive)
            if body := await read.body():
                require_json(read.headers)
                read.parsed = await run_in_threadpool(parse_json, body)
            return await handle(read)

        return read_then_handle
