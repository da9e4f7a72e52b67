"""Run many small jobs with a bound on how much is out at once, and yield results as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from afdc_server.engine.limits import WeightedLimit

Job = TypeVar("Job")
Result = TypeVar("Result")


async def finish_bounded(
    limit: WeightedLimit, jobs: Iterable[tuple[int, Job]], work: Callable[[Job], Awaitable[Result]]
) -> AsyncGenerator[Result, None]:
    """Do `work` on each (weight, job) once `limit` has room for its weight; yield results in the order they finish.

    The first exception ends everything: what still runs is cancelled, and the exception rises. So does an early close.
    """
    done: asyncio.Queue[asyncio.Task[Result] | asyncio.Task[int]] = asyncio.Queue()
    running: set[asyncio.Task[Result]] = set()

    async def run(job: Job) -> Result:
        return await work(job)

    def finish(task: asyncio.Task[Result], units: int) -> None:
        limit.release(units)  # here and not in `run`: a task cancelled before its first step never runs a line
        done.put_nowait(task)

    async def feed() -> int:
        count = 0
        for weight, job in jobs:
            units = await limit.acquire(weight)
            task = asyncio.create_task(run(job))
            running.add(task)
            task.add_done_callback(partial(finish, units=units))
            count += 1
        return count

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(done.put_nowait)
    total, seen = -1, 0
    try:
        while seen != total:
            task = await done.get()
            if task is feeder:
                total = feeder.result()
                continue
            running.discard(task)
            seen += 1
            yield task.result()  # type: ignore[misc]  # as above
    finally:
        feeder.cancel()
        for left in running:
            left.cancel()
        await asyncio.gather(feeder, *running, return_exceptions=True)


async def all_or_none(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results of all, in order. The first exception rises as it is, once the others are cancelled and have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:  # also a cancellation: no task may outlive the call
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def see_through(work: Coroutine[Any, Any, Result]) -> Result:
    """Finish `work` also when the caller is cancelled; the cancellation rises after its end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
