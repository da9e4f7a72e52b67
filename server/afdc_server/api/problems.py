"""Every error as RFC 9457 problem details with a stable code."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from afdc.errors import (
    AdapterError,
    AfdcError,
    ConflictError,
    EngineError,
    InputError,
    ModelError,
    RequestRejectedError,
    StorageError,
    TrainerError,
    UsageError,
)
from afdc.wire.common import Fault, Problem
from afdc_server.service.errors import (
    BusyError,
    ForbiddenError,
    NotFoundError,
    NotRunningError,
    TooLargeError,
    TooManyError,
    UnauthorizedError,
    UnsupportedError,
)
from afdc_server.service.traffic import REASON_KEY

MEDIA_TYPE = "application/problem+json"
STATUS: Mapping[type[AfdcError], int] = {
    UnauthorizedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    UnsupportedError: 415,
    UsageError: 422,
    InputError: 422,
    ModelError: 422,
    AdapterError: 409,
    BusyError: 503,
    TooManyError: 429,
    EngineError: 503,
    StorageError: 503,
    TrainerError: 503,
}
HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_body",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}
OTHER_HTTP = "http_error"
NOWHERE = "There is nothing at this path. Check it, and the id in it"
STORAGE = "The server cannot read or write what it keeps. Try again; if that does not help, tell the operator"
ENGINE = "The engine cannot answer now. Try again; if that does not help, tell the operator"
"""What clients read of a StorageError or an EngineError: its own words name hosts and paths, and stand in the log."""
SHOWN_FAULTS = 100
INTERNAL = "internal"

request_id: ContextVar[str] = ContextVar("request_id", default="")
log = structlog.get_logger("afdc.api")


class RequestError(AfdcError):
    """Several faults of one request at once, each with its place."""

    code = "invalid_request"

    def __init__(self, message: str, faults: list[Fault], *, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.faults = faults
        self.code = code


def validation_error(exc: ValidationError, place: str = "", within: tuple[int | str, ...] = ()) -> RequestError:
    """What pydantic found in a body that was read by hand, or in the part of it that is at `within`."""
    found = exc.errors(include_url=False, include_input=False, include_context=False)[:SHOWN_FAULTS]
    faults = [_fault({**one, "loc": ("body", *within, *one["loc"])}) for one in found]
    shown = "; ".join(f"{fault.pointer or 'body'}: {fault.message}" for fault in faults[:3])
    return RequestError(place + shown, faults)


def status_of(exc: AfdcError) -> int:
    """The HTTP status of an error raised on purpose."""
    if isinstance(exc, RequestError):
        return 422
    return next((STATUS[kind] for kind in type(exc).__mro__ if kind in STATUS), 500)


def problem_of(exc: AfdcError) -> Problem:
    """The problem that tells of `exc`."""
    status = status_of(exc)
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_words(exc),
        code=exc.code,
        request_id=request_id.get(),
        retryable=status in {429, 503} or exc.code == "request_in_flight",
        errors=exc.faults if isinstance(exc, RequestError) else _place(exc),
    )


def _words(exc: AfdcError) -> str:
    if isinstance(exc, StorageError):
        return STORAGE
    is_away = isinstance(exc, EngineError) and not isinstance(exc, (RequestRejectedError, NotRunningError))
    return ENGINE if is_away else str(exc)


def _place(exc: AfdcError) -> list[Fault]:
    if isinstance(exc, InputError) and exc.line is not None:
        return [Fault(pointer=exc.path, code=exc.code, message=f"line {exc.line}: {exc.message}")]
    return []


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """As an HTTP response."""
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)


def retry_after(exc: AfdcError) -> dict[str, str]:
    """`Retry-After` of an error that passes; RFC 9110, 10.2.3: whole seconds."""
    if isinstance(exc, TooManyError):
        return {"Retry-After": str(max(1, math.ceil(exc.retry_after_s)))}
    return {"Retry-After": "5"} if status_of(exc) == 503 else {}


def install(app: FastAPI) -> None:
    """Answer every error of the app's endpoints in this form."""
    app.add_exception_handler(AfdcError, _on_afdc_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_afdc_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, AfdcError)  # noqa: S101 - registered for it alone
    problem = problem_of(exc)
    if problem.status in {429, 503}:
        request.scope[REASON_KEY] = exc.reason if isinstance(exc, TooManyError) else exc.code
    headers = retry_after(exc)
    if isinstance(exc, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status >= 500:
        log.warning("request failed", code=problem.code, detail=str(exc), request_id=problem.request_id)
    return respond(problem, headers)


async def _on_invalid(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - registered for it alone
    faults = [_fault(found) for found in exc.errors()[:SHOWN_FAULTS]]
    detail = "; ".join(f"{fault.pointer or 'request'}: {fault.message}" for fault in faults[:3])
    return respond(problem_of(RequestError(detail, faults)))


def _fault(found: Mapping[str, Any]) -> Fault:
    where, *path = found["loc"]
    pointer = "".join(f"/{_escape(part)}" for part in path) if where == "body" else ""
    place = "" if where == "body" else f"{where} {'.'.join(map(str, path))}: "
    return Fault(pointer=pointer, code=str(found["type"]), message=_printable(f"{place}{found['msg']}"))


def _escape(part: object) -> str:
    """RFC 6901, section 3."""
    return _printable(str(part)).replace("~", "~0").replace("/", "~1")


def _printable(text: str) -> str:
    return text[:500].encode("utf-8", "replace").decode()


async def _on_http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for it alone
    headers = dict(exc.headers or {})
    if exc.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return respond(http_problem(exc), headers)


def _methods(request: Request) -> list[str]:
    """Every method that the path takes; starlette names those of the first route alone."""
    found: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def http_problem(exc: HTTPException) -> Problem:
    """The problem that tells of an error of the HTTP layer."""
    return Problem(
        title=HTTPStatus(exc.status_code).phrase,
        status=exc.status_code,
        detail=str(exc.detail) if exc.detail != "Not Found" else NOWHERE,
        code=HTTP_CODES.get(exc.status_code, OTHER_HTTP),
        request_id=request_id.get(),
        retryable=exc.status_code == 408,
    )


async def _on_bug(_request: Request, exc: Exception) -> Response:
    return respond(bug_problem(exc))


def bug_problem(exc: Exception) -> Problem:
    """What we did not foresee: the reply says nothing of it, and the log all but the values of variables."""
    trace = "".join(traceback.format_exception(exc))
    log.error("unexpected error", request_id=request_id.get(), trace=trace)
    return Problem(
        title="Internal Server Error",
        status=500,
        detail="An unexpected error: give the operator the request id",
        code=INTERNAL,
        request_id=request_id.get(),
    )
