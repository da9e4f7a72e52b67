"""An engine for the tests of what jobs share: slow at every step, and strict about its slots and adapters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from afdc.adapter import AdapterManifest
from afdc.errors import AdapterError
from afdc.task import Task
from afdc_pipeline.seams import Completion, Engine, EngineInfo, EngineUsage, Generated, Health, Scores
from afdc_server.jobs.pool import AdapterPool

TASK = Task.model_validate({"labels": ["a", "b"]})
SLOTS = 3
SECONDS = 60.0  # within which nothing here can still be under way


class SlowEngine:
    """Waits at every step, and is strict: few slots, no request without its adapter, no unload under a request."""

    def __init__(self, slots: int = SLOTS, seed: int = 0) -> None:
        self.slots = slots
        self.loaded: set[str] = set()
        self.users: Counter[str] = Counter()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.refused: set[str] = set()
        self.lent = False
        self.closed = False
        self.hold_back = asyncio.Event()
        self.hold_back.set()
        self._random = random.Random(seed)

    async def start(self) -> EngineInfo:
        return EngineInfo("m", Path("m"), "r", "0", "cpu", "float32", 64, False, 1)

    async def close(self) -> None:
        self.closed = True

    async def _wait(self) -> None:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)

    async def load_adapter(self, folder: Path) -> AdapterManifest:
        name = folder.name
        if name not in self.loaded:
            await self._wait()
            await self.hold_back.wait()
            if name in self.refused:
                raise AdapterError(f"{name} is damaged")
            assert len(self.loaded) < self.slots, "more adapters than slots"
            self.loaded.add(name)
            self.loads.append(name)
        return manifest_of(name)

    async def unload_adapter(self, name: str) -> None:
        assert not self.users[name], f"{name} is unloaded under a request"
        await self._wait()
        self.loaded.discard(name)
        self.unloads.append(name)

    @contextmanager
    def _using(self, name: str | None) -> Iterator[None]:
        if name is None:
            yield
            return
        if name not in self.loaded:
            raise AdapterError(f"no adapter {name!r} is loaded")
        self.users[name] += 1
        try:
            yield
        finally:
            self.users[name] -= 1

    async def score(self, texts: Any, task: Task, adapter: str | None = None) -> Scores:
        with self._using(adapter):
            await self._wait()
            return Scores(np.full((len(texts), 2), float(len(adapter or ""))))

    async def generate(self, requests: Any, task: Task | None = None) -> AsyncIterator[Generated]:
        for request in requests:
            with self._using(request.adapter):
                await self._wait()
                yield Generated(request.id, (Completion(f"{request.adapter} {request.prompt}", 1, True),))

    async def health(self) -> Health:
        return "ready"

    async def lend_device(self) -> None:
        assert not self.lent, "lent twice"
        self.lent = True
        await self._wait()

    async def reclaim_device(self) -> None:
        await self._wait()
        self.lent = False

    def template_hash(self, task: Task) -> str:
        return ""

    def usage(self) -> EngineUsage:
        return EngineUsage()


def manifest_of(name: str) -> AdapterManifest:
    fields = {"name": name, "job": "j", "round": 0, "base_model": "m", "base_revision": "r", "rank": 8, "task": TASK}
    return AdapterManifest.model_validate({**fields, "template_hash": "", "files": {}})


def folder(name: str) -> Path:
    return Path("/adapters") / name


def make_pool(engine: SlowEngine, slots: int = SLOTS) -> AdapterPool:
    return AdapterPool(cast(Engine, engine), slots)


def check_at_rest(pool: AdapterPool, engine: SlowEngine) -> None:
    """Nothing is held, and the pool knows what the engine has."""
    entries = pool.entries()
    assert {name: one.users for name, one in entries.items() if one.users} == {}
    assert {name for name, one in entries.items() if one.loaded} | {one.name for one in pool._leaving} >= engine.loaded
    assert {name for name, one in entries.items() if one.loaded} <= engine.loaded
    assert not pool._waiting
    assert not pool._changing.locked()
    assert len(engine.loaded) <= engine.slots
