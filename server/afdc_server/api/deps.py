"""What endpoints ask for: the services, who calls, and a page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from afdc.wire.common import DEFAULT_PAGE, MAX_PAGE
from afdc_server.accounts.store import Caller, find_caller, note_use
from afdc_server.service.errors import ForbiddenError, UnauthorizedError
from afdc_server.service.services import Services

bearer = HTTPBearer(auto_error=False, description="An API key: afdc_…")


async def get_services(request: Request) -> Services:  # async: FastAPI runs a plain def in a thread
    """The services that the app was built on."""
    services: Services = request.app.state.services
    return services


Held = Annotated[Services, Depends(get_services)]


def authenticate(
    services: Held, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> Caller:
    """Who calls.

    Raises:
        UnauthorizedError: no key, an unknown or a revoked one.
        TooManyError: the key has used up its requests of this minute.
    """
    if credentials is None:
        raise UnauthorizedError("no API key", remedy="Send it as Authorization: Bearer afdc_…")
    with services.db.read() as connection:
        found = find_caller(connection, services.secret, credentials.credentials)
    if found is None:
        raise UnauthorizedError("this API key is not valid", remedy="Check the key, or ask for a new one")
    caller, is_due = found
    services.rates.take(caller.key)
    if is_due:
        with services.db.write() as connection:
            note_use(connection, caller.key)
    return caller


def require(scope: str) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency that lets keys with the scope pass. Raises ForbiddenError for the others."""

    async def check(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if not caller.may(scope):
            raise ForbiddenError(f"this key lacks the scope {scope!r}", remedy="Ask for a key that has it")
        return caller

    return check


ReadCaller = Annotated[Caller, Depends(require("read"))]
JobsCaller = Annotated[Caller, Depends(require("jobs"))]
AdminCaller = Annotated[Caller, Depends(require("admin"))]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Newest first; `after` is the last id of the page before."""

    after: str
    limit: int


async def page_query(
    after: Annotated[str, Query(max_length=64, description="last_id of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> PageQuery:
    """Parameters of a list."""
    return PageQuery(after, limit)


Paged = Annotated[PageQuery, Depends(page_query)]
