"""The adapter pool: many users at once, more adapters than slots, cut off anywhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from afdc.adapter import MANIFEST_FILE
from afdc.errors import AdapterError
from afdc_server.jobs.pool import AdapterPool
from tests.service.slow_engine import SECONDS, SLOTS, TASK, SlowEngine, check_at_rest, folder, make_pool, manifest_of


async def use(pool: AdapterPool, engine: SlowEngine, *names: str) -> None:
    async with pool.hold(names):
        for name in names:
            await engine.score(["x"], TASK, name)


async def test_the_one_not_used_for_longest_makes_room() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    for name in ("a", "b", "c"):
        await pool.add(folder(name))
    await use(pool, engine, "a")
    await pool.add(folder("d"))
    assert engine.unloads == ["b"]
    await use(pool, engine, "b")
    assert engine.unloads == ["b", "c"]
    assert set(pool.entries()) == {"a", "b", "c", "d"}
    check_at_rest(pool, engine)


async def test_a_refused_adapter_leaves_the_others_and_can_be_mended() -> None:
    engine = SlowEngine(slots=1)
    pool = make_pool(engine, 1)
    await pool.add(folder("a"))
    engine.refused.add("b")
    with pytest.raises(AdapterError, match="damaged"):
        await pool.add(folder("b"))
    assert set(pool.entries()) == {"a"}
    await use(pool, engine, "a")
    engine.refused.clear()
    await pool.add(folder("b"))
    check_at_rest(pool, engine)


async def test_a_name_stands_for_one_folder() -> None:
    pool = make_pool(SlowEngine())
    await pool.add(folder("a"))
    with pytest.raises(AdapterError, match="another adapter"):
        await pool.add(Path("/elsewhere/a"))
    with pytest.raises(AdapterError, match="no adapter"):
        await use(pool, SlowEngine(), "never-added")
    with pytest.raises(AdapterError, match="slots"):
        await use(pool, SlowEngine(), "a", "b", "c", "d")


def two_folders(root: Path) -> tuple[Path, Path]:
    """Of adapter "a": a job's own, and the published copy."""
    mine, published = root / "mine" / "a", root / "published" / "a"
    for place in (mine, published):
        place.mkdir(parents=True)
        (place / MANIFEST_FILE).write_text(manifest_of("a").model_dump_json())
    return mine, published


async def test_two_folders_with_the_same_files_are_one_adapter_until_both_are_removed(tmp_path: Path) -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    mine, published = two_folders(tmp_path)
    await pool.add(mine)
    await pool.add(published, "a")
    await pool.remove("a", mine)
    await use(pool, engine, "a")
    await pool.remove("a", mine)
    assert (engine.loads, set(pool.entries())) == (["a", "a"], {"a"}), "the engine does not read a folder that goes"
    await pool.add(mine)
    await pool.remove("a", published)
    await pool.remove("a", mine)
    assert engine.loaded == set()
    check_at_rest(pool, engine)


async def test_a_folder_that_goes_waits_for_the_requests_and_new_ones_get_the_other(tmp_path: Path) -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    mine, published = two_folders(tmp_path)
    await pool.add(mine)
    await pool.add(published)
    async with pool.hold(["a"]):
        removing = asyncio.ensure_future(pool.remove("a", mine))
        await asyncio.sleep(0.01)
        using = asyncio.ensure_future(use(pool, engine, "a"))
        await asyncio.sleep(0.01)
        assert not removing.done()
        assert not using.done()
        assert not engine.unloads
    await asyncio.wait_for(asyncio.gather(removing, using), SECONDS)
    assert (engine.loads, engine.unloads) == (["a", "a"], ["a"])
    check_at_rest(pool, engine)


async def test_two_who_add_the_same_one_do_not_depend_on_each_other() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    engine.hold_back.clear()
    first, second = (asyncio.create_task(pool.add(folder("a"))) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    engine.hold_back.set()
    assert (await asyncio.wait_for(second, SECONDS)).name == "a"
    await use(pool, engine, "a")
    check_at_rest(pool, engine)


async def test_removing_waits_for_the_requests_and_for_nothing_else() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    await pool.add(folder("a"))
    async with pool.hold(["a"]):
        leaving = asyncio.create_task(pool.remove("a"))
        await asyncio.sleep(0.01)
        assert not leaving.done()
        assert "a" in engine.loaded
        await use(pool, engine)  # the base model
        with pytest.raises(AdapterError, match="no adapter"):
            await use(pool, engine, "a")
    await asyncio.wait_for(leaving, SECONDS)
    assert engine.loaded == set()
    check_at_rest(pool, engine)


async def test_a_place_is_free_although_nobody_waited_for_the_end_of_its_adapter() -> None:
    engine = SlowEngine(slots=1)
    pool = make_pool(engine, 1)
    await pool.add(folder("a"))
    async with pool.hold(["a"]):
        leaving = asyncio.create_task(pool.remove("a"))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.wait_for(pool.add(folder("b")), SECONDS)
    assert engine.loaded == {"b"}
    await asyncio.wait_for(pool.add(folder("a")), SECONDS)
    check_at_rest(pool, engine)


async def test_one_that_leaves_and_comes_again_is_another_one() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    await pool.add(folder("a"))
    async with pool.hold(["a"]):
        leaving = asyncio.create_task(pool.remove("a"))
        await asyncio.sleep(0)
        again = asyncio.create_task(pool.add(folder("a")))
        await asyncio.sleep(0.01)
        assert not again.done()
    await asyncio.wait_for(asyncio.gather(leaving, again), SECONDS)
    await use(pool, engine, "a")
    check_at_rest(pool, engine)


async def test_who_waits_is_served_although_others_keep_the_slots_busy_by_turns() -> None:
    engine = SlowEngine(slots=1)
    pool = make_pool(engine, 1)
    await pool.add(folder("a"))
    done = asyncio.Event()

    async def keep_busy(number: int) -> int:
        turns = 0
        while not done.is_set():
            await use(pool, engine, "a")
            turns += 1
        return turns

    busy = [asyncio.create_task(keep_busy(number)) for number in range(4)]
    await asyncio.sleep(0.01)
    await asyncio.wait_for(pool.add(folder("b")), 5)
    done.set()
    assert min(await asyncio.gather(*busy)) > 0
    check_at_rest(pool, engine)


async def test_the_base_model_waits_for_no_adapter() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    engine.hold_back.clear()
    adding = asyncio.create_task(pool.add(folder("a")))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(use(pool, engine), 5)
    engine.hold_back.set()
    await adding


async def test_what_an_engine_lost_in_a_restart_is_put_back_at_the_next_use() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    await pool.add(folder("a"))
    engine.loaded.clear()
    with pytest.raises(AdapterError):
        await use(pool, engine, "a")
    await use(pool, engine, "a")
    assert engine.loads == ["a", "a"]


@pytest.mark.parametrize("seed", range(60))
async def test_random_schedules_with_cancellations_end_at_rest(seed: int) -> None:
    """Eight callers add, use and remove seven adapters over three slots, and are cancelled at any await."""
    source = random.Random(seed)
    engine = SlowEngine(seed=seed)
    pool = make_pool(engine)
    names = [f"n{number}" for number in range(7)]
    engine.refused = {"n6"}

    async def act() -> None:
        for _ in range(30):
            chosen = source.sample(names, source.randint(1, SLOTS))
            kind = source.random()
            with suppress(AdapterError):
                if kind < 0.4:
                    await pool.add(folder(chosen[0]))
                elif kind < 0.85:
                    await use(pool, engine, *chosen)
                else:
                    await pool.remove(chosen[0])

    tasks = [asyncio.create_task(act()) for _ in range(8)]
    while any(not task.done() for task in tasks):
        for _ in range(source.randrange(12)):
            await asyncio.sleep(0)
        victim = source.choice(tasks)
        if source.random() < 0.3 and victim.cancel():
            tasks.append(asyncio.create_task(act())) if len(tasks) < 40 else None
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SECONDS)
    assert [one for one in ended if not isinstance(one, asyncio.CancelledError | None)] == []
    check_at_rest(pool, engine)
    for name in names[:-1]:  # it still works, whatever happened
        await asyncio.wait_for(pool.add(folder(name)), SECONDS)
    check_at_rest(pool, engine)


async def cut_at_every_await(make: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
    """Run the work again and again, cancelled one step later each time, until it gets through."""
    for steps in range(1, 500):
        task = asyncio.ensure_future(make())
        for _ in range(steps):
            await asyncio.sleep(0)
        ended = not task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        yield
        if ended:
            return
    raise AssertionError("it never got through")


async def test_a_cut_at_any_await_leaves_nothing_held() -> None:
    engine = SlowEngine(slots=2, seed=4)
    pool = make_pool(engine, 2)

    async def work() -> None:
        await pool.add(folder("a"))
        await pool.add(folder("b"))
        await use(pool, engine, "a", "b")
        await pool.add(folder("c"))
        await pool.remove("a")
        await use(pool, engine, "b", "c")
        await pool.remove("b")

    async for _ in cut_at_every_await(work):
        check_at_rest(pool, engine)


async def test_what_the_operator_unloads_comes_back_when_it_is_used() -> None:
    engine = SlowEngine()
    pool = make_pool(engine)
    await pool.add(folder("a"))
    async with pool.hold(["a"]):
        unloading = asyncio.create_task(pool.unload("a"))
        await asyncio.sleep(0.05)
        assert not unloading.done(), "a request still uses it"
    assert await unloading
    assert engine.unloads == ["a"]
    assert not await pool.unload("a")
    await use(pool, engine, "a")
    assert pool.entries()["a"].loaded
    check_at_rest(pool, engine)
