"""What endpoints ask for: the services, who calls, and a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor

from afdc.wire.common import DEFAULT_PAGE, MAX_PAGE
from afdc_server.accounts.store import Caller, find_caller
from afdc_server.service.errors import ForbiddenError, UnauthorizedError, missing
from afdc_server.service.ids import JOB, VALID, is_id
from afdc_server.service.services import Services

bearer = HTTPBearer(auto_error=False, description="An API key: afdc_…")
HEAVY_AT_ONCE = 8
T = TypeVar("T")
P = ParamSpec("P")


async def get_services(request: Request) -> Services:
    """The services that the app was built on. A coroutine, as every dependency that never waits: no thread for it."""
    return _services(request)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Held = Annotated[Services, Depends(get_services)]


class Heavy:
    """Threads for work of seconds: uploads, plans, checks. They queue here, and short requests never wait for them."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(HEAVY_AT_ONCE)

    async def run(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """`work(...)` in one of the threads."""
        return await to_thread.run_sync(partial(work, *args, **options), limiter=self._limiter)


async def get_heavy(request: Request) -> Heavy:
    """The app's threads for long work."""
    heavy: Heavy = request.app.state.heavy
    return heavy


HeavyThreads = Annotated[Heavy, Depends(get_heavy)]


def identify(services: Services, key: str | None) -> Caller:
    """Whose key it is.

    Raises:
        UnauthorizedError: no key, an unknown or a revoked one.
        TooManyError: the key has used up its requests of this minute.
    """
    if key is None:
        raise UnauthorizedError("no API key", remedy="Send it as Authorization: Bearer afdc_…")
    with services.db.read() as connection:
        caller = find_caller(connection, services.secret, key)
    if caller is None:
        raise UnauthorizedError("this API key is not valid", remedy="Check the key, or ask for a new one")
    services.rates.take(caller.key, caller.own.get("requests_per_minute"))
    services.uses.note(caller.key)
    return caller


async def check_key(request: Request) -> None:
    """Refuse a request without a valid key before its body is read. Raises as `identify`."""
    credentials = await bearer(request)
    key = credentials.credentials if credentials is not None else None
    request.state.caller = await run_in_threadpool(identify, _services(request), key)


def authenticate(
    request: Request, services: Held, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> Caller:
    """Who calls; every endpoint but those of health depends on it. Raises as `identify`."""
    known: Caller | None = getattr(request.state, "caller", None)
    return known or identify(services, credentials.credentials if credentials is not None else None)


@dataclass(frozen=True)
class Require:
    """A dependency that lets keys with the scope pass."""

    scope: str

    async def __call__(self, caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        """The caller. Raises ForbiddenError for keys without the scope."""
        if not caller.may(self.scope):
            raise ForbiddenError(f"this key lacks the scope {self.scope!r}", remedy="Ask for a key that has it")
        return caller


ReadCaller = Annotated[Caller, Depends(Require("read"))]
JobsCaller = Annotated[Caller, Depends(Require("jobs"))]
AdminCaller = Annotated[Caller, Depends(Require("admin"))]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Newest first; `after` is the last id of the page before."""

    after: str
    limit: int


async def page_query(
    after: Annotated[str, Query(max_length=64, pattern="^[a-z0-9_]*$", description="last_id of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> PageQuery:
    """Parameters of a list."""
    return PageQuery(after, limit)


Paged = Annotated[PageQuery, Depends(page_query)]


class _IdConvertor(StringConvertor):
    """What can be an id, in the paths of routes beside which fixed names stand: `/jobs/{id:id}`, `/jobs/preview`."""

    regex = VALID.pattern


register_url_convertor("id", _IdConvertor())


def _is_job(id: str) -> str:
    if not is_id(id, JOB):
        raise missing("job", id)
    return id


JobId = Annotated[str, AfterValidator(_is_job)]
"""Of a path. What cannot be an id is not looked up: it is a job that is not there."""
