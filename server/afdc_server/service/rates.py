"""How often a key may ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from afdc_server.service.errors import TooManyError

FORGET_ABOVE = 10_000


class RateLimit:
    """A token bucket a key: `per_minute` requests, all of which may come at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # key -> tokens left, when they were counted

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            TooManyError: none is left; says when the next one is.
        """
        rate = self._per_minute / 60
        with self._lock:
            now = self._clock()
            left, counted = self._buckets.get(key, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - counted) * rate)
            if left < 1:
                raise TooManyError(
                    f"more than {self._per_minute} requests a minute", remedy="Wait", retry_after_s=(1 - left) / rate
                )
            if len(self._buckets) >= FORGET_ABOVE:
                self._forget(now, rate)
            self._buckets[key] = (left - 1, now)

    def _forget(self, now: float, rate: float) -> None:
        """Drop buckets that have filled up: they say nothing. Where there are none, those that are fullest."""
        left = {key: kept + (now - counted) * rate for key, (kept, counted) in self._buckets.items()}
        emptiest = sorted(left, key=left.__getitem__)[: FORGET_ABOVE // 2]
        self._buckets = {key: self._buckets[key] for key in emptiest if left[key] < self._per_minute}
