"""What a new engine takes back: only what still is the adapter that was loaded; one bad folder harms nobody else."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from afdc.adapter import MANIFEST_FILE, WEIGHTS_FILE
from afdc.errors import AdapterError
from afdc_pipeline.seams import Generated, GenerateRequest, Sampling
from afdc_server.engine.engine import SupervisedEngine
from tests.fakes.backend import World
from tests.fakes.served import TASK, started, write_adapter


def remove(folder: Path, engine: SupervisedEngine, world: World) -> None:
    shutil.rmtree(folder)


def damage(folder: Path, engine: SupervisedEngine, world: World) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def exchange(folder: Path, engine: SupervisedEngine, world: World) -> None:
    shutil.rmtree(folder)
    write_adapter(folder, engine, seed=2.0)


def retask(folder: Path, engine: SupervisedEngine, world: World) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text().replace('"name":"b"', '"name":"c"'))


def refuse(folder: Path, engine: SupervisedEngine, world: World) -> None:
    world.refused_adapters.add(folder.name)


def kill(folder: Path, engine: SupervisedEngine, world: World) -> None:
    world.deadly_adapters.add(folder.name)


FAULTS: dict[str, tuple[Callable[[Path, SupervisedEngine, World], None], str, int]] = {
    "gone": (remove, "missing", 1),
    "damaged": (damage, "hash", 1),
    "exchanged": (exchange, "no longer holds", 1),
    "another task": (retask, "no longer holds", 1),
    "refused": (refuse, "unknown module", 1),
    "deadly": (kill, "died twice", 3),
}


@pytest.mark.parametrize(("fault", "reason", "restarts"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_bad_adapter_is_dropped_and_the_others_come_back(
    tmp_path: Path, fault: Callable[[Path, SupervisedEngine, World], None], reason: str, restarts: int
) -> None:
    world = World()
    async with started(world) as engine:
        for name in ("bad", "good"):
            write_adapter(tmp_path / name, engine)
            await engine.load_adapter(tmp_path / name)
        fault(tmp_path / "bad", engine, world)
        assert engine.supervisor.backend is not None
        engine.supervisor.backend.kill()
        scores = await engine.score(["x", "y"], TASK, "good")
        assert np.isfinite(scores.logprobs).all()
        assert world.loaded[-1] == ["good"]
        assert engine.usage().restarts == restarts
        with pytest.raises(AdapterError, match=reason):
            await engine.score(["x"], TASK, "bad")
        assert np.isfinite((await engine.score(["x"], TASK)).logprobs).all()


async def test_an_adapter_that_answers_otherwise_after_a_restart_is_dropped(tmp_path: Path) -> None:
    world = World()
    async with started(world) as engine:
        write_adapter(tmp_path / "one", engine)
        await engine.load_adapter(tmp_path / "one")
        world.likely = {ord("b")}
        assert engine.supervisor.backend is not None
        engine.supervisor.backend.kill()
        await engine.score(["x"], TASK)
        assert world.loaded[-1] == []
        with pytest.raises(AdapterError, match="differently"):
            await engine.score(["x"], TASK, "one")


async def test_requests_under_way_for_a_dropped_adapter_fail_and_the_others_are_answered(tmp_path: Path) -> None:
    world = World()
    asks = [
        GenerateRequest(str(i), "x", 1, Sampling(max_tokens=1), adapter)
        for i, adapter in enumerate(["bad", None, "bad", None])
    ]
    answers: list[Generated] = []
    async with started(world) as engine:
        write_adapter(tmp_path / "bad", engine)
        await engine.load_adapter(tmp_path / "bad")
        world.kill_at_step = len(world.answered) + 1
        shutil.rmtree(tmp_path / "bad")
        stream = engine.generate(asks)
        answers += [await anext(stream), await anext(stream)]
        with pytest.raises(AdapterError, match="missing"):
            await anext(stream)
    assert sorted(answer.id for answer in answers if not answer.error) == ["1", "3"]


async def test_a_dropped_adapter_leaves_its_place_and_can_be_mended(tmp_path: Path) -> None:
    world = World()
    async with started(world) as engine:
        for name in ("one", "two"):
            write_adapter(tmp_path / name, engine)
            await engine.load_adapter(tmp_path / name)
        (tmp_path / "one").rename(tmp_path / "away")
        assert engine.supervisor.backend is not None
        engine.supervisor.backend.kill()
        await engine.score(["x"], TASK)
        (tmp_path / "away").rename(tmp_path / "one")
        await engine.load_adapter(tmp_path / "one")
        assert np.isfinite((await engine.score(["x"], TASK, "one")).logprobs).all()


async def test_an_adapter_that_is_being_unloaded_serves_its_last_requests_after_a_restart(tmp_path: Path) -> None:
    world = World(seconds=0.05)
    async with started(world) as engine:
        write_adapter(tmp_path / "one", engine)
        await engine.load_adapter(tmp_path / "one")
        world.kill_at_step = len(world.answered) + 2
        scoring = asyncio.ensure_future(engine.score(["x", "y", "z"], TASK, "one"))
        await asyncio.sleep(0.02)
        unloading = asyncio.ensure_future(engine.unload_adapter("one"))
        assert np.isfinite((await scoring).logprobs).all()
        await asyncio.wait_for(unloading, 5)
        assert engine.usage().restarts == 1
        assert world.loaded[-1] == []


async def test_a_cancelled_load_does_not_wait_for_the_engine_that_it_killed(tmp_path: Path) -> None:
    world = World()
    async with started(world) as engine:
        write_adapter(tmp_path / "bad", engine)
        loading = asyncio.ensure_future(engine.load_adapter(tmp_path / "bad"))
        world.deadly_adapters.add("bad")
        world.start_seconds = 60
        while engine.supervisor.backend is not None:
            await asyncio.sleep(0.01)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(loading, 5)
    assert world.live == 0
