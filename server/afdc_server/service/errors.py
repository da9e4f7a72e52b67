"""Errors of the service that have no place below the command line.

AfdcError
├── NotFoundError       404  no such object, or another tenant's
├── UnauthorizedError   401  no key, or one that is not known
├── ForbiddenError      403  the key lacks the scope
├── TooLargeError       413  a body, or a count, past a limit
├── UnsupportedError    415  a body of a type that is not read here
├── TooManyError        429  a tenant's limit, with the seconds until it is worth asking again
├── BusyError           503  the server's limit, likewise
├── TokenBudgetError    ends a running job: its tenant has spent its tokens
└── EngineDiedError
    └── NotRunningError 503  the engine is still starting, or has ended
"""

from __future__ import annotations

from afdc.errors import AfdcError, EngineDiedError


class NotFoundError(AfdcError):
    code = "not_found"


class UnauthorizedError(AfdcError):
    code = "unauthorized"


class ForbiddenError(AfdcError):
    code = "forbidden"


class TooLargeError(AfdcError):
    code = "too_large"


class UnsupportedError(AfdcError):
    code = "unsupported_media_type"


class TooManyError(AfdcError):
    code = "too_many_requests"

    def __init__(self, message: str, *, reason: str, remedy: str = "", retry_after_s: float = 1.0) -> None:
        """`reason`: one of `traffic.REASONS`, as metrics count it."""
        super().__init__(message, remedy=remedy)
        self.reason = reason
        self.retry_after_s = retry_after_s


class BusyError(TooManyError):
    code = "busy"


class TokenBudgetError(AfdcError):
    code = "token_budget"


class NotRunningError(EngineDiedError):
    def __init__(self) -> None:
        super().__init__("the engine is not running yet", remedy="Wait for GET /readyz")


def missing(kind: str, id: str) -> NotFoundError:
    """The error for an id that the caller's tenant does not have. What it says does not tell whether another has it."""
    return NotFoundError(f"there is no {kind} {id[:80]!r}", remedy="Check the id")
