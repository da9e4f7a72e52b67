"""Requests and replies as values. Nothing here waits or sends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from afdc.errors import InputError, UsageError
from afdc.sdk.exceptions import ApiError, ReplyError, error_type
from afdc.sdk.retry import RETRIED, parse_retry_after
from afdc.task import first_fault
from afdc.wire.common import API_PREFIX, Deleted, Problem
from afdc.wording import one_line

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

IDEMPOTENCY_KEY = "Idempotency-Key"
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
Param = str | int | float | bool | None
Params = Mapping[str, Param | Sequence[str]]


@dataclass(frozen=True)
class Raw:
    """A whole reply. `headers` are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Upload:
    """A body that is streamed. `open` starts it anew for every attempt; `size` in bytes, where it is known."""

    open: Callable[[], Iterator[bytes]]
    size: int | None = None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its reply is read.

    Attributes:
        path: with the prefix, percent-encoded.
        content: encoded once, so that a repeat has the same bytes.
        idempotent: it may be sent twice.
        patience_s: seconds that the server may be silent beyond the client's timeout.
    """

    method: str
    path: str
    parse: Callable[[Raw], T] = field(repr=False)
    params: tuple[tuple[str, str], ...] = ()
    content: bytes | Upload | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = False
    patience_s: float = 0.0


def get(
    parse: Callable[[Raw], T],
    path: str,
    params: Params | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    patience_s: float = 0.0,
) -> Call[T]:
    """A GET; parameters that are None are left out."""
    return Call("GET", path, parse, encode_params(params or {}), None, headers or {}, True, patience_s)


def post(
    parse: Callable[[Raw], T],
    path: str,
    body: BaseModel | None = None,
    *,
    key: str | None = None,
    repeatable: bool = False,
    patience_s: float = 0.0,
) -> Call[T]:
    """A POST of JSON.

    Args:
        body: values that are the default are not sent, so that an older server need not know them.
        key: Idempotency-Key.
        repeatable: nothing is stored, or doing it twice is doing it once.
    """
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if key is not None:
        headers[IDEMPOTENCY_KEY] = key
    content = None if body is None else encode_json(body)
    return Call("POST", path, parse, (), content, headers, repeatable or key is not None, patience_s)


def delete(path: str, *, patience_s: float = 0.0) -> Call[Deleted]:
    """A DELETE."""
    return Call("DELETE", path, reply_as(Deleted), idempotent=True, patience_s=patience_s)


def route(*parts: str) -> str:
    """The path of an endpoint: `route("jobs", id)` is "/v1/jobs/ID".

    Raises:
        UsageError: a part that can be no id, such as one with a slash in it.
    """
    for part in parts:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", part):
            raise UsageError(f"{one_line(part, 60)!r} is not an id", remedy="Pass the id that the server gave")
    return "/".join((API_PREFIX, *parts))


def file_route(base: str, path: str) -> str:
    """The path of a stored file below `base`; every character that could end a path is escaped."""
    return f"{base}/files/{quote(path, safe='/')}"


def encode_params(params: Params) -> tuple[tuple[str, str], ...]:
    """Pairs for the query. None is left out, a sequence is repeated, True is "true"."""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        pairs += [(name, _param(one)) for one in values if one is not None]
    return tuple(pairs)


def _param(value: Param) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def encode_json(body: BaseModel) -> bytes:
    """UTF-8 JSON. Half a surrogate pair is escaped, so that it reaches the server's own check.

    Raises:
        InputError: a value that JSON does not have.
    """
    return json_bytes(body.model_dump(exclude_defaults=True))


def json_bytes(value: Any) -> bytes:
    """As `encode_json`, of plain values."""
    try:
        try:
            return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"the request is no JSON: {exc}", remedy="Use texts, numbers, lists and dicts") from exc


def checked(model: type[M], /, **values: Any) -> M:
    """A request body.

    Raises:
        InputError: names the value that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        where, _, message = first_fault(exc)
        raise InputError(f"{where}: {message}" if where else message) from exc


def reply_as(model: type[M]) -> Callable[[Raw], M]:
    """A parser of replies that hold a `model`."""

    def parse(raw: Raw) -> M:
        return parse_reply(model, raw.content)

    return parse


def parse_reply(model: type[M], content: bytes | str) -> M:
    """A `model` from JSON.

    Raises:
        ReplyError: it is something else.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as exc:
        where, _, message = first_fault(exc)
        told = f"{where}: {message}" if where else message
        remedy = "Check that the address is that of an AFDC server, of this version or a newer one"
        raise ReplyError(f"the server's answer is no {model.__name__}: {one_line(told, 300)}", remedy=remedy) from exc


def parse_text(raw: Raw) -> str:
    """The body as UTF-8."""
    return raw.content.decode(errors="replace")


def parse_json(raw: Raw) -> Any:
    """The body as JSON.

    Raises:
        ReplyError: it is none.
    """
    try:
        return json.loads(raw.content)
    except (ValueError, RecursionError) as exc:
        raise ReplyError("the server's answer is no JSON") from exc


def no_body(raw: Raw) -> None:
    """For replies whose body is read as it comes."""


def check_status(raw: Raw, now: datetime) -> None:
    """Pass replies that succeeded.

    Raises:
        ApiError: the server's own words, as the type for the status.
        ReplyError: a redirect; none is followed, since the key would go with it.
    """
    if raw.status >= 400:
        raise _api_error(raw, now)
    if raw.status >= 300 and raw.status != 304:
        where = one_line(raw.headers.get("location", ""), 200)
        raise ReplyError(
            f"the server sends on to {where!r}", remedy="Set AFDC_SERVER to the address that it really has"
        )


def _api_error(raw: Raw, now: datetime) -> ApiError:
    problem = _problem(raw)
    retryable = problem.retryable or raw.status in RETRIED
    request_id = problem.request_id or raw.headers.get("x-request-id", "")
    after = parse_retry_after(raw.headers.get("retry-after"), now)
    return error_type(raw.status)(problem, raw.status, request_id, retryable, after)


def _problem(raw: Raw) -> Problem:
    """What the body says, or what the status says: a proxy in between answers in its own way."""
    try:
        return Problem.model_validate_json(raw.content)
    except ValidationError:
        kind = raw.headers.get("content-type", "")
        text = raw.content[:400].decode(errors="replace") if kind.startswith("text/plain") else ""
        title = f"the server answered with status {raw.status}"
        return Problem(title=title, status=raw.status, detail=text.strip(), code=f"http_{raw.status}")
