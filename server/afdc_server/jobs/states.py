"""The states of a job and what moves it from one to another. Pure: no clock, no database.

queued ──claim──> running ──export──> finalizing ──finish──> succeeded
  ^  ^               │ pause            │
  │  └────resume── paused <──stopped── pausing
  │                  │ cancel
  └──retry── failed, cancelled, expired <──stopped── cancelling
"""

from __future__ import annotations

from typing import Literal

from afdc.errors import ConflictError
from afdc.wire.jobs import TERMINAL, JobStatus

Action = Literal[
    "claim", "export", "finish", "fail", "stopped", "release", "cancel", "pause", "resume", "retry", "expire"
]

MOVES: dict[Action, dict[str, JobStatus]] = {
    "claim": {"queued": "running"},
    "export": {"running": "finalizing", "pausing": "finalizing"},
    "finish": {"finalizing": "succeeded"},
    "fail": {"running": "failed", "pausing": "failed", "finalizing": "failed", "cancelling": "cancelled"},
    "stopped": {"pausing": "paused", "cancelling": "cancelled", "running": "queued", "finalizing": "queued"},
    "release": {"running": "queued", "finalizing": "queued", "pausing": "paused", "cancelling": "cancelled"},
    "cancel": {
        "queued": "cancelled",
        "paused": "cancelled",
        "running": "cancelling",
        "pausing": "cancelling",
        "finalizing": "cancelling",
        "cancelling": "cancelling",
        "cancelled": "cancelled",
    },
    "pause": {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
    "resume": {"paused": "queued", "pausing": "running", "queued": "queued", "running": "running"},
    "retry": {"failed": "queued", "cancelled": "queued", "expired": "queued"},
    "expire": {"queued": "expired", "paused": "expired"},
}
"""`stopped`: the worker has let go on request; `release`: its lease ran out or its process ended."""

ACTIVE: frozenset[str] = frozenset({"running", "pausing", "finalizing", "cancelling"})
"""A worker holds the job, and its lease says for how long."""
STOPPING: frozenset[str] = frozenset({"pausing", "cancelling"})


class StateError(ConflictError):
    """The action has no meaning in the job's present state."""

    code = "job_state"


def move(status: str, action: Action) -> JobStatus:
    """The state after `action`.

    Raises:
        StateError: the action has no meaning in this state; says which have.
    """
    after = MOVES[action].get(status)
    if after is None:
        steps = sorted(name for name in ("cancel", "pause", "resume", "retry") if status in MOVES[name])
        allowed = ", ".join([*steps, *(["retry with reviews", "delete"] if status in TERMINAL else [])])
        raise StateError(
            f"a job that is {status} cannot take {action!r}", remedy=f"Now possible: {allowed or 'nothing'}"
        )
    return after
