"""How often a key may ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from afdc_server.service.errors import TooManyError

FORGET_ABOVE = 10_000


class RateLimit:
    """A token bucket a key: `per_minute` requests, or the key's own number, all of which may come at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[
            str, tuple[float, float, int]
        ] = {}  # key -> tokens left, when they were counted, of how many

    def take(self, key: str, per_minute: int | None = None) -> None:
        """Count one request. `per_minute`: the key's own limit.

        Raises:
            TooManyError: none is left; says when the next one is.
        """
        per_minute = per_minute or self._per_minute
        rate = per_minute / 60
        with self._lock:
            now = self._clock()
            left, counted, _ = self._buckets.get(key, (float(per_minute), now, per_minute))
            left = min(per_minute, left + (now - counted) * rate)
            if left < 1:
                raise TooManyError(
                    f"more than {per_minute} requests a minute",
                    reason="requests",
                    remedy="Wait",
                    retry_after_s=(1 - left) / rate,
                )
            if len(self._buckets) >= FORGET_ABOVE:
                self._forget(now)
            self._buckets[key] = (left - 1, now, per_minute)

    def _forget(self, now: float) -> None:
        """Drop buckets that have filled up: they say nothing. Where there are none, those that are fullest."""
        full = {key: kept / most + (now - counted) / 60 for key, (kept, counted, most) in self._buckets.items()}
        emptiest = sorted(full, key=full.__getitem__)[: FORGET_ABOVE // 2]
        self._buckets = {key: self._buckets[key] for key in emptiest if full[key] < 1}
