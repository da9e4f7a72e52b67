"""The device is lent to the trainer: nothing is sent to the engine, nothing is taken for a hang, and health says so."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from afdc.engine_config import EngineConfig
from afdc.errors import EngineError, RequestRejectedError
from tests.fakes.backend import World
from tests.fakes.served import TASK, started

SHARED = EngineConfig(max_loras=2, sleep_mode=True, hang_timeout_s=0.5)


async def test_requests_wait_for_the_device_and_no_watchdog_fires() -> None:
    world = World()
    async with started(world, SHARED, "cuda") as engine:
        await engine.lend_device()
        waiting = asyncio.ensure_future(engine.score(["x", "y"], TASK))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        assert await asyncio.wait_for(engine.health(), 1) == "lent"
        await engine.reclaim_device()
        assert np.isfinite((await asyncio.wait_for(waiting, 5)).logprobs).all()
        assert await engine.health() == "ready"
        assert engine.usage().restarts == 0
    assert (world.lent, world.asked_while_lent) == (1, 0)


async def test_the_device_is_lent_once_what_runs_is_done() -> None:
    world = World(seconds=0.1)
    async with started(world, SHARED, "cuda") as engine:
        scoring = asyncio.ensure_future(engine.score(["x", "y", "z"], TASK))
        await asyncio.sleep(0.05)
        await engine.lend_device()
        assert world.lent == 1
        assert world.answered
        await asyncio.sleep(0.3)
        await engine.reclaim_device()
        assert np.isfinite((await scoring).logprobs).all()
    assert world.asked_while_lent == 0


async def test_a_death_while_the_device_is_lent_costs_a_restart_when_it_comes_back() -> None:
    world = World()
    async with started(world, SHARED, "cuda") as engine:
        await engine.lend_device()
        assert engine.supervisor.backend is not None
        engine.supervisor.backend.kill()
        await asyncio.sleep(0.6)
        assert world.started == 1
        assert await engine.health() == "lent"
        await engine.reclaim_device()
        assert np.isfinite((await engine.score(["x"], TASK)).logprobs).all()
        assert engine.usage().restarts == 1


async def test_an_engine_that_does_not_take_the_device_back_is_replaced() -> None:
    world = World(reclaiming=RequestRejectedError("no memory"))
    async with started(world, SHARED, "cuda") as engine:
        await engine.lend_device()
        await engine.reclaim_device()
        assert np.isfinite((await engine.score(["x"], TASK)).logprobs).all()
        assert engine.usage().restarts == 1


async def test_a_device_that_cannot_be_lent_stays_in_use() -> None:
    world = World(lending=EngineError("this vLLM cannot"))
    async with started(world, SHARED, "cuda") as engine:
        with pytest.raises(EngineError, match="cannot"):
            await engine.lend_device()
        assert await engine.health() == "ready"
        assert np.isfinite((await engine.score(["x"], TASK)).logprobs).all()


async def test_a_cancelled_loan_is_none() -> None:
    world = World(seconds=0.2)
    async with started(world, SHARED, "cuda") as engine:
        scoring = asyncio.ensure_future(engine.score(["x", "y"], TASK))
        await asyncio.sleep(0.05)
        lending = asyncio.ensure_future(engine.lend_device())
        await asyncio.sleep(0.05)
        lending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lending
        assert np.isfinite((await scoring).logprobs).all()


async def test_the_end_reaches_what_waits_for_the_device() -> None:
    async with started(World(), SHARED, "cuda") as engine:
        await engine.lend_device()
        waiting = asyncio.ensure_future(engine.score(["x"], TASK))
        await asyncio.sleep(0.05)
    with pytest.raises(EngineError, match="closed"):
        await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(("device", "sleep_mode"), [("cpu", True), ("cuda", False)])
async def test_an_engine_with_memory_of_its_own_goes_on(device: str, sleep_mode: bool) -> None:
    world = World()
    async with started(world, EngineConfig(sleep_mode=sleep_mode), device) as engine:
        await engine.lend_device()
        assert np.isfinite((await engine.score(["x"], TASK)).logprobs).all()
        await engine.reclaim_device()
    assert world.lent == 0
