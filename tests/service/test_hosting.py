"""What jobs see of the engine on its own loop: several at once, stopped anywhere, and its own start and end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from afdc.errors import EngineDiedError
from afdc_pipeline.seams import Engine, EngineInfo, GenerateRequest, Sampling
from afdc_server.jobs.host import EngineHost
from afdc_server.jobs.shared import JobEngine, SharedEngine
from tests.service.slow_engine import SECONDS, SLOTS, TASK, SlowEngine, check_at_rest, folder


@contextmanager
def hosted(engine: SlowEngine, slots: int = SLOTS) -> Iterator[SharedEngine]:
    host = EngineHost(lambda: cast(Engine, engine))
    host.start().result(30)
    try:
        yield SharedEngine(host, slots)
    finally:
        host.close()
    assert engine.closed


def requests_of(name: str | None, count: int) -> list[GenerateRequest]:
    return [GenerateRequest(str(number), str(number), 1, Sampling(), name) for number in range(count)]


async def test_a_job_that_is_cut_off_anywhere_gives_back_device_slots_and_counts() -> None:
    engine = SlowEngine(slots=2, seed=3)
    with hosted(engine, 2) as shared:
        stopped_early = True
        for pause in range(60):
            job = JobEngine(shared)

            async def work(job: JobEngine = job) -> None:
                await job.load_adapter(folder("a"))
                await job.lend_device()
                await asyncio.sleep(0)
                await job.reclaim_device()
                await job.score(["x"], TASK, "a")
                async for _ in job.generate(requests_of("a", 5)):
                    await asyncio.sleep(0)
                await job.lend_device()
                await job.load_adapter(folder("b"))

            task = asyncio.create_task(work())
            await asyncio.sleep(pause / 10_000)
            stopped_early = task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.wait_for(job.close(), SECONDS)
            assert (engine.lent, shared.turn.locked(), engine.loaded) == (False, False, set()), f"after {pause}"
            assert job._tasks == set()
            check_at_rest(shared.pool, engine)
        assert not stopped_early or engine.loads


async def test_jobs_take_turns_with_the_device() -> None:
    engine = SlowEngine(seed=1)
    with hosted(engine) as shared:

        async def train(number: int) -> int:
            job = JobEngine(shared)
            for _ in range(10):
                await job.lend_device()
                await asyncio.sleep(0)
                await job.reclaim_device()
            await job.close()
            return number

        assert await asyncio.wait_for(asyncio.gather(*map(train, range(6))), SECONDS) == list(range(6))
        assert not engine.lent


async def test_two_tenants_under_load_get_their_own_answers_while_adapters_come_and_go() -> None:
    """Not one request fails or is answered by another adapter."""
    engine = SlowEngine(slots=SLOTS, seed=2)
    with hosted(engine) as shared:
        done = asyncio.Event()

        async def ask(name: str) -> int:
            job, asked = JobEngine(shared), 0
            await job.load_adapter(folder(name))
            while not done.is_set():
                scores = await job.score(["x", "y"], TASK, name)
                assert scores.logprobs.tolist() == [[float(len(name))] * 2] * 2
                async for answer in job.generate(requests_of(name, 3)):
                    assert answer.completions[0].text == f"{name} {answer.id}"
                asked += 4
            await job.close()
            return asked

        async def swap() -> int:
            job = JobEngine(shared)
            for number in range(60):
                await job.load_adapter(folder(f"swap-{number}"))
                assert (await job.score(["x"], TASK, f"swap-{number}")).logprobs[0, 0] == len(f"swap-{number}")
                await job.unload_adapter(f"swap-{number}")
            await job.close()
            done.set()
            return 60

        tenants = ("tenant-one-r1", "the-second-tenant-r1")
        asked = await asyncio.wait_for(asyncio.gather(*map(ask, tenants), swap(), swap()), SECONDS)
        assert min(asked) > 20
        assert engine.loaded == set()
        check_at_rest(shared.pool, engine)


async def test_an_engine_that_dies_while_it_starts_leaves_nothing() -> None:
    class Broken(SlowEngine):
        async def start(self) -> EngineInfo:
            raise EngineDiedError("no")

    engine = Broken()
    host = EngineHost(lambda: cast(Engine, engine))
    with pytest.raises(EngineDiedError):
        host.start().result(30)
    assert engine.closed
    host.close()


async def test_a_server_that_ends_while_its_engine_starts_ends_the_engine() -> None:
    class Slow(SlowEngine):
        async def start(self) -> EngineInfo:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    engine = Slow()
    host = EngineHost(lambda: cast(Engine, engine))
    starting = host.start()
    await asyncio.sleep(0.05)
    await asyncio.to_thread(host.close)
    assert engine.closed
    assert starting.cancelled()


async def test_whoever_waits_for_an_engine_that_is_closed_hears_of_it() -> None:
    engine = SlowEngine()
    host = EngineHost(lambda: cast(Engine, engine))
    host.start().result(30)
    job = JobEngine(SharedEngine(host, SLOTS))
    engine.hold_back.clear()
    waiting = asyncio.create_task(job.load_adapter(folder("a")))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(host.close)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, SECONDS)
