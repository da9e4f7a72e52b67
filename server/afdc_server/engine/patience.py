"""Deadlines in time that this process was there to see.

A process that is stopped (Ctrl-Z, SIGSTOP, a debugger, a suspended virtual machine) finds afterwards that minutes have
gone by in which nobody could have answered it. That is no delay of the other side, whose time begins anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.25
LATE_SECONDS = 2.0  # a look that comes this long after the last one says that this process stood still


class Patience:
    """Seconds waited so far. Asked every POLL_SECONDS; an answer that was asked for late starts from zero.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Begin to wait again."""
        self._waited, self._last = 0.0, self._clock()

    def waited(self) -> float:
        now = self._clock()
        gap, self._last = now - self._last, now
        self._waited = 0.0 if gap > LATE_SECONDS else self._waited + gap
        return self._waited


async def within(limit_s: float, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled once it has taken `limit_s` seconds.

    Raises:
        TimeoutError: it took longer.
    """
    task, patience = asyncio.ensure_future(work), Patience()
    try:
        while not task.done() and patience.waited() < limit_s:
            await asyncio.wait({task}, timeout=min(POLL_SECONDS, limit_s))
        if task.done():
            return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    raise TimeoutError(f"not done within {limit_s:g} s")
