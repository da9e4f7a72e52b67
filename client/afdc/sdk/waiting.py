"""Waiting for a job by long polls, through restarts of the server."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from afdc.sdk.core import Call, Raw, get, reply_as, route
from afdc.sdk.exceptions import (
    JobCancelledError,
    JobFailedError,
    RateLimitedError,
    ServerFailedError,
    UnreachableError,
    WaitTimeoutError,
)
from afdc.sdk.sending import Sender, send
from afdc.wire.jobs import Job

POLL_S = 30.0
LIVE_POLL_S = 5.0
MIN_POLL_S = 1.0
OUTAGE_S = 300.0
"""Seconds that a server may be away before a wait gives up."""


@dataclass(frozen=True)
class Look:
    """A job, and the tag by which the server knows whether it has changed."""

    job: Job
    etag: str | None = None


def look_call(id: str, wait: float = 0.0, last: Look | None = None) -> Call[Look]:
    """`GET /jobs/{id}`. The server may take `wait` seconds to see a change from the `last` look."""
    params = {"wait": math.ceil(wait)} if wait > 0 else {}
    headers = {"If-None-Match": last.etag} if last and last.etag and last.etag.isascii() else {}

    def parse(raw: Raw) -> Look:
        if raw.status == 304 and last is not None:
            return last
        return Look(reply_as(Job)(raw), raw.headers.get("etag"))

    return get(parse, route("jobs", id), params, headers=headers, patience_s=wait)


async def wait_until_over(
    sender: Sender,
    id: str,
    timeout: float | None = None,
    watch: Callable[[Job], None] | None = None,
    poll_s: float = POLL_S,
) -> Job:
    """The job once it is in a terminal state, whichever. A paused job is waited for, too.

    Args:
        timeout: seconds, or None for no limit.
        watch: called with every state that is seen.

    Raises:
        WaitTimeoutError: the time is over.
        UnreachableError, ServerFailedError, RateLimitedError: the server was away for more than five minutes.
    """
    now = sender.clock.now
    end = math.inf if timeout is None else now() + timeout
    look = await send(sender, look_call(id))
    while True:
        if watch is not None:
            watch(look.job)
        if look.job.is_terminal:
            return look.job
        started = now()
        if timeout is not None and started >= end:
            raise WaitTimeoutError(look.job, timeout)
        look = await _next_look(sender, look, min(poll_s, end - started), end)
        if not look.job.is_terminal:  # a server that does not hold a poll is not asked in a tight loop
            await sender.sleep(max(min(started + MIN_POLL_S, end) - now(), 0.0))


async def _next_look(sender: Sender, last: Look, wait: float, end: float) -> Look:
    """The present state. An outage is sat out."""
    away_since: float | None = None
    while True:
        try:
            return await send(sender, look_call(last.job.id, wait, last))
        except (UnreachableError, ServerFailedError, RateLimitedError):
            now = sender.clock.now()
            away_since = now if away_since is None else away_since
            if now - away_since > OUTAGE_S or now >= end:
                raise
        await sender.sleep(min(sender.retry.cap_s, end - now))


def require_success(job: Job) -> Job:
    """The job, if it succeeded.

    Raises:
        JobFailedError: it failed or expired.
        JobCancelledError: it was cancelled.
    """
    if job.status == "cancelled":
        raise JobCancelledError(job)
    if job.status in {"failed", "expired"}:
        raise JobFailedError(job)
    return job
