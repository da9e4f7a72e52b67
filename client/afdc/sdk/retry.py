"""When a request is sent again, and after how long. Pure: clock and chance come from outside.

Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): a wait is uniform between
nothing and a doubling limit, so that clients which failed together do not come back together.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from afdc.errors import AfdcError
from afdc.sdk.exceptions import ApiError, UnreachableError

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
MAX_DOUBLINGS = 16


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """Time and chance.

    Attributes:
        now: seconds that only grow.
        utc: the time of day, for Retry-After dates.
        draw: uniform in [0, 1).
    """

    now: Callable[[], float] = time.monotonic
    utc: Callable[[], datetime] = _utc
    draw: Callable[[], float] = random.random


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long. Seconds.

    Attributes:
        attempts: repeats of one request, or attempts without progress of a stream or a download.
        retry_after_cap_s: longest wait that a server is granted.
    """

    attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 8.0
    retry_after_cap_s: float = 60.0
    draw: Callable[[], float] = field(default=random.random, repr=False)

    def delay(self, error: AfdcError, failures: int) -> float | None:
        """Seconds to wait after the failure number `failures` (from 1), or None: give up.

        A time that the server asked for is waited in full, up to the cap, and a little jitter on top.
        """
        if failures > self.attempts:
            return None
        asked = error.retry_after if isinstance(error, ApiError) else None
        if asked is not None:
            return min(asked, self.retry_after_cap_s) + self.draw() * self.base_s
        return self.draw() * min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, MAX_DOUBLINGS))


def may_repeat(error: AfdcError, *, idempotent: bool) -> bool:
    """Whether sending the same request again can help and cannot do harm.

    A connection that was never made is tried again for every request: nothing was sent.
    """
    if isinstance(error, UnreachableError):
        return idempotent or not error.sent
    return idempotent and isinstance(error, ApiError) and error.retryable


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3): a count, or an HTTP date. None for anything else.

    A date that has passed is 0 seconds. Fractions of a second are accepted.
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        date = date.replace(tzinfo=UTC) if date.tzinfo is None else date
        return max((date - now).total_seconds(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):  # what email.utils raises for what is no date
        return None
