"""Why a job failed, in words for its owner."""

from __future__ import annotations

from typing import Any

from afdc.errors import (
    AdapterError,
    AfdcError,
    ConflictError,
    EngineError,
    InputError,
    ModelError,
    StorageError,
    TrainerError,
    UsageError,
)
from afdc_server.api.problems import INTERNAL, RequestError
from afdc_server.service.errors import NotFoundError, TokenBudgetError

USER_ERRORS = (UsageError, InputError, ModelError, RequestError, NotFoundError, TokenBudgetError)
SERVER_FAULTS = (
    (StorageError, "the server could not read or write what it keeps"),
    (EngineError, "the engine did not answer"),
    (AdapterError, "the engine refused an adapter that the job cannot do without"),
    (TrainerError, "training failed"),
    (AfdcError, "the server failed"),
)
"""What is told of them; the first kind that fits."""
SHOWN_CHARS = 4000


def describe_error(exc: Exception) -> dict[str, Any]:
    """`JobError` of the job. The server's own faults are told in full to its log alone: their words name hosts, paths
    and lines of logs."""
    exc = _translated(exc)
    is_user = isinstance(exc, USER_ERRORS)
    return {
        "code": exc.code if isinstance(exc, AfdcError) else INTERNAL,
        "message": _words(exc),
        "category": "user" if is_user else "server",
        "retryable": not is_user,
    }


def _translated(exc: Exception) -> Exception:
    """Whatever a job reads or writes is the server's store. A connection that breaks is none of it."""
    if isinstance(exc, OSError) and not isinstance(exc, (ConnectionError, TimeoutError)):
        return StorageError(str(exc))
    return exc


def _words(exc: Exception) -> str:
    if isinstance(exc, (*USER_ERRORS, ConflictError)):
        return str(exc)[:SHOWN_CHARS]
    unforeseen = f"an unexpected error ({type(exc).__name__})"
    what = next((told for kind, told in SERVER_FAULTS if isinstance(exc, kind)), unforeseen)
    return f"{what}; the operator finds the reason in the server's log"
