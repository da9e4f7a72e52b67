"""Two small gates: how much runs at once, and who may run beside whom after a crash."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class WeightedLimit:
    """At most `capacity` units are out at once; waiters are served in order. A larger weight counts as all of it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, weight: int) -> int:
        """Wait for room and take it. Returns the units taken, to be given back with `release`."""
        units = min(weight, self.capacity)
        if not self._waiting and units <= self.free:
            self.free -= units
            return units
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((units, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(units)
            raise
        return units

    def release(self, units: int) -> None:
        """Give units back and wake those who now fit."""
        self.free += units
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= wanted
                turn.set_result(None)


class SuspicionGate:
    """Lets requests of one suspicion level at a time into the engine, the most suspected first.

    Args:
        widths: requests of each level that may run together; index 0 is the level of requests that saw no crash.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = tuple(widths)
        self._running = [0] * len(self.widths)
        self._waiting: list[deque[asyncio.Future[None]]] = [deque() for _ in self.widths]

    @asynccontextmanager
    async def enter(self, level: int) -> AsyncIterator[None]:
        """Hold a place at `level` for the length of the block."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[level].append(turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            self._leave(level, turn)

    def _leave(self, level: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._running[level] -= 1
        elif turn in self._waiting[level]:
            self._waiting[level].remove(turn)
        self._admit()

    def _admit(self) -> None:
        for level in reversed(range(len(self.widths))):
            if sum(self._running) > self._running[level]:
                if self._waiting[level]:
                    return
                continue
            while self._waiting[level] and self._running[level] < self.widths[level]:
                turn = self._waiting[level].popleft()
                if not turn.done():
                    self._running[level] += 1
                    turn.set_result(None)
            if self._running[level]:
                return
