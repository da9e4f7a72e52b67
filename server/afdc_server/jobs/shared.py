"""The Engine seam for one job, over the engine that all jobs share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from afdc.adapter import AdapterManifest
from afdc.errors import EngineError
from afdc.task import Task
from afdc_pipeline.seams import EngineInfo, EngineUsage, Generated, GenerateRequest, Health, Scores
from afdc_server.engine.metering import Tally, current_tally
from afdc_server.engine.tasks import see_through
from afdc_server.jobs.host import EngineHost
from afdc_server.jobs.pool import AdapterPool
from afdc_server.models import Device


@dataclass
class SharedEngine:
    """The engine with what its users share: adapter slots, and whose turn it is on the trainer's device.

    `turn` is held by the job that trains; the others queue in order. Used on the engine's loop.
    """

    host: EngineHost
    slots: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _pool: AdapterPool | None = field(default=None, init=False)

    @property
    def pool(self) -> AdapterPool:
        """The adapters; used on the engine's loop. Raises EngineDiedError before the engine has started."""
        if self._pool is None:
            self._pool = AdapterPool(self.host.engine, self.slots)
        return self._pool

    @property
    def device(self) -> Device:
        """Where the engine runs. Raises EngineDiedError before it has started."""
        return "cuda" if self.host.info.device.startswith("cuda") else "cpu"


class JobEngine:
    """Implements `afdc_pipeline.seams.Engine`. Its caller's loop is another than the engine's.

    What a job asks for is counted for this job alone, and its adapters leave the engine with it.
    """

    def __init__(self, shared: SharedEngine, may_go_on: Callable[[int], None] = lambda _: None) -> None:
        """`may_go_on` is asked before anything is generated or scored: what it raises ends the job there.

        It is told the tokens that were spent since it was last asked.
        """
        self._shared = shared
        self._may_go_on = may_go_on
        self._host = shared.host
        self._tally = Tally()
        self._told = 0
        self._folders: dict[str, Path] = {}  # of its adapters, by name
        self._tasks: set[asyncio.Task[Any]] = set()  # of this job on the engine's loop
        self._has_turn = False
        self._busy_s = 0.0
        self._active = 0
        self._since = 0.0

    async def start(self) -> EngineInfo:
        return self._host.info

    async def close(self) -> None:
        """Give back the device and the adapters' slots."""
        await self._host.run(self._leave())

    async def _leave(self) -> None:
        """What a cancelled caller left behind ends first: it may still be giving back what is given back here."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))
        try:
            await self._reclaim()
        finally:
            while self._folders:
                with suppress(EngineError):  # an engine that has ended holds none
                    await self._shared.pool.remove(*self._folders.popitem())

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        self._ask()
        async for item in self._host.stream(lambda: self._generate(requests, task)):
            yield item

    async def _generate(
        self, requests: Sequence[GenerateRequest], task: Task | None
    ) -> AsyncGenerator[Generated, None]:
        with self._metered():
            async with self._shared.pool.hold({request.adapter for request in requests}):
                answers = cast("AsyncGenerator[Generated, None]", self._host.engine.generate(requests, task))
                async with aclosing(answers):  # its requests end before their adapters may leave
                    async for item in answers:
                        yield item

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        self._ask()
        return await self._host.run(self._score(texts, task, adapter))

    async def _score(self, texts: Sequence[str], task: Task, adapter: str | None) -> Scores:
        with self._metered():
            async with self._shared.pool.hold({adapter}):
                return await self._host.engine.score(texts, task, adapter)

    def _ask(self) -> None:
        spent = self._tally.tokens
        new, self._told = spent - self._told, spent
        self._may_go_on(new)

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        self._folders[folder.name] = folder
        return await self._host.run(self._add(folder))

    async def _add(self, folder: Path) -> AdapterManifest:
        with self._metered():
            return await self._shared.pool.add(folder)

    async def unload_adapter(self, name: str) -> None:
        folder = self._folders.pop(name, None)
        if folder is not None:
            await self._host.run(self._remove(name, folder))

    async def _remove(self, name: str, folder: Path) -> None:
        with self._tracked():
            await self._shared.pool.remove(name, folder)

    async def health(self) -> Health:
        return await self._host.run(self._host.engine.health())

    async def lend_device(self) -> None:
        """Wait for the turn to train, then make room on the device."""
        await self._host.run(self._lend())

    async def _lend(self) -> None:
        with self._tracked():
            await self._shared.turn.acquire()
            self._has_turn = True
            try:
                await self._host.engine.lend_device()
            except BaseException:  # also a cancellation, in which the engine may have lent it already
                with suppress(EngineError):
                    await self._reclaim()
                raise

    async def reclaim_device(self) -> None:
        await self._host.run(self._give_back())

    async def _give_back(self) -> None:
        with self._tracked():
            await self._reclaim()

    async def _reclaim(self) -> None:
        """Seen through to its end when the job is stopped meanwhile: the others wait for the device."""
        if not self._has_turn:
            return
        try:
            await see_through(self._host.engine.reclaim_device())
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        self._has_turn = False
        self._shared.turn.release()

    def template_hash(self, task: Task) -> str:
        async def ask() -> str:
            return self._host.engine.template_hash(task)

        return self._host.submit(ask()).result()

    def usage(self) -> EngineUsage:
        """What this job has used. `busy_seconds`: time in which it had requests in the engine."""
        running = time.monotonic() - self._since if self._active else 0.0
        return EngineUsage(
            prompt_tokens=self._tally.prompt_tokens,
            completion_tokens=self._tally.completion_tokens,
            cached_tokens=self._tally.cached_tokens,
            busy_seconds=self._busy_s + running,
        )

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Count what the block starts. On the engine's loop, in a task that does nothing else."""
        current_tally.set(self._tally)
        if not self._active:
            self._since = time.monotonic()
        self._active += 1
        try:
            with self._tracked():
                yield
        finally:
            self._active -= 1
            if not self._active:
                self._busy_s += time.monotonic() - self._since
