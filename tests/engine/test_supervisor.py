"""Deaths, hangs and culprits, with a backend that fails on cue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from afdc.errors import EngineDiedError, RequestRejectedError
from afdc_server.engine.backend import Backend, ReadAnswer
from afdc_server.engine.limits import SuspicionGate, WeightedLimit
from afdc_server.engine.starting import Starter
from afdc_server.engine.supervisor import Supervisor
from afdc_server.engine.tasks import all_or_none, finish_bounded
from tests.fakes.backend import POISON, REFUSED, FakeBackend, World


async def nothing(backend: Backend) -> None:
    return None


def make_supervisor(
    world: World,
    hang_timeout_s: float = 30,
    max_restarts: int = 8,
    on_restart: Callable[[Backend], Awaitable[None]] = nothing,
    start_timeout_s: float = 90,
) -> Supervisor:
    starter = Starter(
        lambda: FakeBackend(world),
        on_restart,
        timeout_s=start_timeout_s,
        max_restarts=max_restarts,
        log=Path("engine.log"),
    )
    return Supervisor(starter, hang_timeout_s)


@asynccontextmanager
async def supervised(
    world: World,
    hang_timeout_s: float = 30,
    max_restarts: int = 8,
    on_restart: Callable[[Backend], Awaitable[None]] = nothing,
    start_timeout_s: float = 90,
) -> AsyncIterator[Supervisor]:
    made = make_supervisor(world, hang_timeout_s, max_restarts, on_restart, start_timeout_s)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def reads(supervisor: Supervisor, tokens: list[int]) -> Awaitable[list[ReadAnswer | BaseException]]:
    asked = [supervisor.run(lambda b, t=token: b.read([t], [t], None)) for token in tokens]  # type: ignore[misc]  # t has a default
    return asyncio.gather(*asked, return_exceptions=True)


async def test_a_death_is_survived_and_everything_is_answered() -> None:
    world = World(kill_at_step=10)
    async with supervised(world) as supervisor:
        answers = await reads(supervisor, list(range(40)))
    assert [a.logprobs[0] for a in answers if isinstance(a, ReadAnswer)] == [-float(i) for i in range(40)]
    assert (world.started, supervisor.restarts) == (2, 1)


async def test_the_poisoned_request_is_rejected_and_the_others_go_on() -> None:
    world = World()
    tokens = [*range(20), POISON, *range(20, 40)]
    async with supervised(world) as supervisor:
        answers = await reads(supervisor, tokens)
    bad = [token for token, a in zip(tokens, answers, strict=True) if isinstance(a, BaseException)]
    assert bad == [POISON]
    assert isinstance(answers[20], RequestRejectedError)
    assert supervisor.restarts == 3  # together, on probation, alone


async def test_two_poisoned_requests_are_both_found() -> None:
    tokens = [*range(20), POISON, *range(20, 40), POISON]
    async with supervised(World()) as supervisor:
        answers = await reads(supervisor, tokens)
    assert [t for t, a in zip(tokens, answers, strict=True) if isinstance(a, BaseException)] == [POISON, POISON]


async def test_a_refused_request_does_not_restart_anything() -> None:
    async with supervised(World()) as supervisor:
        answers = await reads(supervisor, [1, REFUSED, 2])
    assert isinstance(answers[1], RequestRejectedError)
    assert supervisor.restarts == 0


async def test_a_hang_counts_as_a_death() -> None:
    world = World(hang_at_step=5)
    async with supervised(world, hang_timeout_s=0.6) as supervisor:
        answers = await asyncio.wait_for(reads(supervisor, list(range(10))), 20)
    assert all(isinstance(a, ReadAnswer) for a in answers)
    assert supervisor.restarts == 1


async def test_a_silent_death_is_noticed() -> None:
    world = World(seconds=60)
    async with supervised(world) as supervisor:
        waiting = asyncio.ensure_future(reads(supervisor, [1, 2]))
        await asyncio.sleep(0.1)
        assert supervisor.backend is not None
        world.seconds = 0.005
        supervisor.backend.kill()
        answers = await asyncio.wait_for(waiting, 10)
    assert all(isinstance(a, ReadAnswer) for a in answers)


async def test_a_start_that_hangs_is_a_failed_start() -> None:
    world = World(slow_starts=1)
    supervisor = make_supervisor(world, start_timeout_s=0.3)
    with pytest.raises(EngineDiedError, match=r"within 0\.3 s.*start_timeout_s"):
        await asyncio.wait_for(supervisor.start(), 5)
    assert world.live == 0
    await supervisor.close()


async def test_a_restart_that_hangs_is_ended_and_repeated() -> None:
    world = World(kill_at_step=2)
    async with supervised(world, start_timeout_s=0.3) as supervisor:
        world.slow_starts = 2
        answers = await asyncio.wait_for(reads(supervisor, [1, 2, 3]), 10)
        assert world.live == 1
    assert all(isinstance(a, ReadAnswer) for a in answers)
    assert supervisor.restarts == 3


async def test_rare_deaths_do_not_add_up() -> None:
    world = World()
    async with supervised(world, max_restarts=2) as supervisor:
        for _ in range(6):
            world.kill_at_step = len(world.answered) + 2
            answers = await reads(supervisor, [1, 2, 3])
            assert all(isinstance(a, ReadAnswer) for a in answers)
    assert supervisor.restarts == 6


async def test_health_does_not_wait_behind_suspects() -> None:
    world = World(kill_at_step=1)
    async with supervised(world) as supervisor:
        world.seconds = 1.0
        waiting = asyncio.ensure_future(reads(supervisor, list(range(40))))
        while supervisor.restarts == 0:
            await asyncio.sleep(0.05)
        world.seconds = 0.3  # 40 suspects, 8 at a time, take far longer than one canary
        assert await asyncio.wait_for(supervisor.check(lambda b: b.read([7], [7], None)), 5) == "ready"
        assert not waiting.done()
        await waiting


async def test_health_of_a_full_engine_is_its_other_answers() -> None:
    async def queued(backend: Backend) -> None:
        await asyncio.sleep(60)

    async with supervised(World(seconds=0.01), hang_timeout_s=0.6) as supervisor:
        busy = asyncio.ensure_future(reads(supervisor, [1]))
        checking = asyncio.ensure_future(supervisor.check(queued))
        for token in range(60):
            await reads(supervisor, [token])
        assert await asyncio.wait_for(checking, 5) == "ready"
        await busy


async def test_health_without_any_answer_is_a_dead_engine() -> None:
    async def never(backend: Backend) -> None:
        await asyncio.sleep(60)

    async with supervised(World(), hang_timeout_s=0.5) as supervisor:
        with pytest.raises(EngineDiedError):
            await asyncio.wait_for(supervisor.check(never), 5)


async def test_health_finds_a_dead_engine_and_has_it_replaced() -> None:
    async with supervised(World()) as supervisor:
        assert supervisor.backend is not None
        supervisor.backend.kill()
        with pytest.raises(EngineDiedError):
            await supervisor.check(lambda b: b.read([7], [7], None))
        assert await supervisor.check(lambda b: b.read([7], [7], None)) == "ready"
    assert supervisor.restarts == 1


async def test_failed_restarts_are_repeated_up_to_the_limit() -> None:
    world = World(kill_at_step=2)
    async with supervised(world, max_restarts=3) as supervisor:
        await reads(supervisor, [1])
        world.fail_starts = 2
        answers = await reads(supervisor, [1, 2, 3])
    assert all(isinstance(a, ReadAnswer) for a in answers)
    assert supervisor.restarts == 3


async def test_too_many_deaths_end_the_run_for_everyone() -> None:
    world = World(kill_at_step=2)
    async with supervised(world, max_restarts=1) as supervisor:
        world.fail_starts = 0
        await reads(supervisor, [1])
        world.fail_starts = 5
        answers = await reads(supervisor, [1, 2, 3])
        late = await reads(supervisor, [4])
    errors = [a for a in [*answers, *late] if isinstance(a, EngineDiedError)]
    assert len(errors) >= 3
    assert all("engine.log" in str(error) for error in errors)


async def test_the_new_engine_gets_its_adapters_before_any_work() -> None:
    seen: list[int] = []
    world = World(kill_at_step=3)

    async def on_restart(backend: Backend) -> None:
        await asyncio.sleep(0.05)
        seen.append(len(world.answered))

    async with supervised(world, on_restart=on_restart) as supervisor:
        await reads(supervisor, list(range(8)))
    assert len(seen) == 1
    assert len(world.answered) == 8


async def test_a_cancelled_caller_is_cancelled_and_not_retried() -> None:
    world = World(seconds=60)
    async with supervised(world) as supervisor:
        waiting = asyncio.ensure_future(supervisor.run(lambda b: b.read([1], [1], None)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert world.started == 1


async def test_a_restart_outlives_the_caller_that_saw_the_death() -> None:
    world = World(kill_at_step=1, start_seconds=0.1)
    async with supervised(world) as supervisor:
        waiting = asyncio.ensure_future(reads(supervisor, [1]))
        await asyncio.sleep(0.05)
        assert supervisor.backend is None
        waiting.cancel()
        answers = await asyncio.wait_for(reads(supervisor, [2]), 10)
        assert isinstance(answers[0], ReadAnswer)
    assert (world.started, world.live, supervisor.restarts) == (2, 0, 1)


@pytest.mark.parametrize("slow_adapters", [False, True], ids=["while it starts", "while it takes adapters"])
async def test_a_close_during_a_restart_leaves_no_engine(slow_adapters: bool) -> None:
    async def on_restart(backend: Backend) -> None:
        await asyncio.sleep(60)

    world = World(kill_at_step=1)
    async with supervised(world, on_restart=on_restart if slow_adapters else nothing) as supervisor:
        world.start_seconds = 0 if slow_adapters else 60
        waiting = asyncio.ensure_future(reads(supervisor, [1, 2]))
        await asyncio.sleep(0.1)
    assert (world.started, world.live) == (2, 0)
    assert all(isinstance(answer, EngineDiedError) for answer in await asyncio.wait_for(waiting, 10))


async def test_any_error_of_a_restart_reaches_everyone() -> None:
    world = World(kill_at_step=1)
    async with supervised(world) as supervisor:
        world.broken_start = AssertionError("no such device")
        answers = [*await reads(supervisor, [1, 2]), *await reads(supervisor, [3])]
    assert all(isinstance(answer, EngineDiedError) and "no such device" in str(answer) for answer in answers)
    assert world.live == 0


async def test_any_error_of_the_start_stays() -> None:
    world = World(broken_start=AssertionError("no such device"))
    supervisor = make_supervisor(world)
    with pytest.raises(EngineDiedError, match="no such device"):
        await supervisor.start()
    [answer] = await reads(supervisor, [1])
    assert isinstance(answer, EngineDiedError)
    await supervisor.close()
    assert world.live == 0


async def test_one_refused_read_ends_its_siblings() -> None:
    backend = FakeBackend(World(seconds=0.05))
    with pytest.raises(RequestRejectedError):
        await all_or_none(backend.read([token], [token], None) for token in (1, REFUSED, 2))
    await asyncio.sleep(0.1)
    assert backend.world.answered == []


async def test_probation_lets_few_in_and_alone_means_alone() -> None:
    gate = SuspicionGate((100, 3, 1))
    inside = [0, 0, 0]
    peaks = [0, 0, 0]

    async def visit(level: int) -> None:
        async with gate.enter(level):
            inside[level] += 1
            assert sum(inside) == inside[level]
            peaks[level] = max(peaks[level], inside[level])
            await asyncio.sleep(0.001)
            inside[level] -= 1

    await asyncio.gather(*(visit(i % 3) for i in range(60)))
    assert peaks[0] > 3
    assert peaks[1:] == [3, 1]


async def test_a_cancelled_waiter_does_not_block_the_gate() -> None:
    gate = SuspicionGate((10, 1))
    async with gate.enter(0):
        waiting = asyncio.ensure_future(gate.enter(1).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with gate.enter(0):
            pass


async def test_the_limit_holds_and_serves_in_order() -> None:
    limit, order, out = WeightedLimit(4), [], 0

    async def job(index: int) -> int:
        nonlocal out
        out += 1
        assert out <= 4
        await asyncio.sleep(0.001)
        out -= 1
        order.append(index)
        return index

    done = [i async for i in finish_bounded(limit, ((1, i) for i in range(30)), job)]
    assert sorted(done) == list(range(30))
    assert limit.free == 4


async def test_a_job_wider_than_the_limit_still_runs() -> None:
    async def job(index: int) -> int:
        return index

    assert [i async for i in finish_bounded(WeightedLimit(4), [(9, 1), (9, 2)], job)] == [1, 2]


async def test_an_early_close_gives_everything_back() -> None:
    limit = WeightedLimit(4)

    async def job(index: int) -> int:
        await asyncio.sleep(index)
        return index

    results = finish_bounded(limit, ((1, i) for i in range(100)), job)
    assert await anext(results) == 0
    await results.aclose()
    assert limit.free == 4


async def test_the_first_error_rises_and_ends_the_rest() -> None:
    limit = WeightedLimit(4)

    async def job(index: int) -> int:
        await asyncio.sleep(0.001)
        if index == 3:
            raise EngineDiedError("gone")
        return index

    with pytest.raises(EngineDiedError):
        async for _ in finish_bounded(limit, ((1, i) for i in range(100)), job):
            pass
    assert limit.free == 4
