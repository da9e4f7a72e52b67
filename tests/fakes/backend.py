"""A Backend without a model, which dies, hangs and refuses on cue. For the supervisor's tests only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from afdc.errors import EngineDiedError, RequestRejectedError
from afdc_pipeline.seams import Completion, Sampling
from afdc_server.engine.backend import AdapterSlot, DrawAnswer, ReadAnswer

POISON, REFUSED = 666, 400


@dataclass
class World:
    """What outlives a backend: the cues, and what was seen."""

    seconds: float = 0.005
    kill_at_step: int = 0
    hang_at_step: int = 0
    fail_starts: int = 0
    start_seconds: float = 0
    slow_starts: int = 0
    lending: Exception | None = None
    reclaiming: Exception | None = None
    likely: set[int] = field(default_factory=set)
    refused_adapters: set[str] = field(default_factory=set)
    deadly_adapters: set[str] = field(default_factory=set)
    broken_start: Exception | None = None
    started: int = 0
    live: int = 0
    loaded: list[list[str]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    most_at_once: int = 0
    lent: int = 0
    asked_while_lent: int = 0


class FakeBackend:
    """Answers a read of prompt [.., x] after a moment. Prompts that end in POISON kill it, in REFUSED are refused."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._dead = asyncio.Event()
        self._steps = 0
        self._at_once = 0
        self.adapters: list[str] = []
        self.lent = False

    async def start(self) -> None:
        self.world.started += 1
        self.world.live += 1
        self.world.loaded.append(self.adapters)
        await asyncio.sleep(self.world.start_seconds)
        if self.world.slow_starts:
            self.world.slow_starts -= 1
            await self._dead.wait()
            raise EngineDiedError("killed while it started")
        if self.world.broken_start is not None:
            raise self.world.broken_start
        if self.world.fail_starts:
            self.world.fail_starts -= 1
            raise EngineDiedError("no start")

    async def close(self) -> None:
        self.world.live -= 1
        self._dead.set()

    def alive(self) -> bool:
        return not self._dead.is_set()

    def steps(self) -> int:
        return self._steps

    def kill(self) -> None:
        self._dead.set()

    async def read(self, prompt: Sequence[int], ids: Sequence[int], adapter: AdapterSlot | None) -> ReadAnswer:
        self.world.asked_while_lent += self.lent
        self._at_once += 1
        self.world.most_at_once = max(self.world.most_at_once, self._at_once)
        try:
            await self._step(prompt[-1])
        finally:
            self._at_once -= 1
        self.world.answered.append(prompt[-1])
        return ReadAnswer(tuple(-0.01 if token in self.world.likely else -float(token) for token in ids), 0)

    async def _step(self, token: int) -> None:
        if token == REFUSED:
            raise RequestRejectedError("refused")
        await asyncio.sleep(self.world.seconds)
        if token == POISON:
            self.kill()
        if self._dead.is_set():
            raise EngineDiedError("gone")
        self._steps += 1
        total = len(self.world.answered) + 1
        if total == self.world.kill_at_step:
            self.world.kill_at_step = 0
            self.kill()
            raise EngineDiedError("gone")
        if total == self.world.hang_at_step:
            self.world.hang_at_step = 0
            await asyncio.Event().wait()

    async def draw(
        self,
        prompt: Sequence[int],
        n: int,
        sampling: Sampling,
        adapter: AdapterSlot | None,
        ends: Sequence[int] = (),
    ) -> DrawAnswer:
        await self.read(prompt, [1], adapter)
        return DrawAnswer(tuple(Completion(f"draw {i}", 2, True) for i in range(n)), 0)

    async def add_adapter(self, adapter: AdapterSlot) -> None:
        if adapter.name in self.world.refused_adapters:
            raise RequestRejectedError("unknown module")
        if adapter.name in self.world.deadly_adapters:
            self.kill()
            raise EngineDiedError("gone")
        self.adapters.append(adapter.name)

    async def remove_adapter(self, adapter: AdapterSlot) -> None:
        if adapter.name in self.adapters:  # as in vLLM, an unknown adapter is no error
            self.adapters.remove(adapter.name)

    async def lend_device(self) -> None:
        await self._utility(self.world.lending)
        self.lent = True
        self.world.lent += 1

    async def reclaim_device(self) -> None:
        await self._utility(self.world.reclaiming)
        self.lent = False

    async def _utility(self, failure: Exception | None) -> None:
        await asyncio.sleep(0.01)
        if failure is not None:
            raise failure
        if self._dead.is_set():
            raise EngineDiedError("gone")
