"""A small job beside a large one: its first rows come after a few requests, however many the large one has waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from afdc.engine_config import EngineConfig
from afdc.task import Task
from afdc_pipeline.seams import Engine, Generated, GenerateRequest, Sampling
from afdc_server.engine.engine import SupervisedEngine
from afdc_server.engine.limits import WeightedLimit
from afdc_server.engine.metering import Tally, current_tally
from afdc_server.engine.settings import resolve_settings
from afdc_server.engine.tasks import finish_bounded
from afdc_server.jobs.host import EngineHost
from afdc_server.jobs.shared import JobEngine, SharedEngine
from tests.fakes.backend import FakeBackend
from tests.fakes.backend import World as BackendWorld
from tests.fakes.served import INFO, Letters
from tests.service.world import SlottedEngine, events_of, finished, post_job, post_seeds, running, wait_for

WIDTH = 12  # draws in flight: two requests of six
BEHIND = 4 * WIDTH // 6  # requests: what is in flight, and as many again
LOOP: dict[str, Any] = {"rounds": 0, "members": 1, "folds": 0}


class BoundedEngine(SlottedEngine):
    """The fake engine behind the real one's limit on what is in flight. `answered`: whose request, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = WeightedLimit(WIDTH)
        self.answered: list[Tally | None] = []

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        answer = super().generate

        async def one(request: GenerateRequest) -> Generated:
            await asyncio.sleep(0.004)
            found = [generated async for generated in answer([request], task)]
            self.answered.append(current_tally.get())
            return found[0]

        jobs = ((max(1, request.n), request) for request in requests)
        async with aclosing(finish_bounded(self._limit, jobs, one)) as done:
            async for generated in done:
                yield generated


def test_a_small_job_gets_its_first_rows_soon(tmp_path: Path) -> None:
    engine = BoundedEngine()
    with running(tmp_path, engine) as world, world.client() as client, world.client("another") as other:
        mine, theirs = post_seeds(client), post_seeds(other)
        large = post_job(client, mine, settings={"augment": {"variants": 300, "rounds": 1}, "loop": LOOP})["id"]
        wait_for(lambda: len(engine.answered) > 30)
        small = post_job(other, theirs, settings={"augment": {"variants": 6, "rounds": 1}, "loop": LOOP})["id"]
        done = finished(other, small)
        assert done["status"] == "succeeded", done["error"]
        still = client.get(f"/jobs/{large}").json()
        assert still["status"] == "running", "the small job has waited for the large one"
        assert [one for one in events_of(other, small) if one["kind"] == "stage_finished"]
        client.post(f"/jobs/{large}/cancel")
        finished(client, large)
    owner = engine.answered[0]
    first = next(place for place, one in enumerate(engine.answered) if one is not owner)
    last = max(place for place, one in enumerate(engine.answered) if one is not owner)
    small_requests = sum(one is not owner for one in engine.answered)
    assert small_requests == 12
    assert last - first < 2 * small_requests + BEHIND, "half of the engine was the small job's"


@contextmanager
def hosted(world: BackendWorld) -> Iterator[SharedEngine]:
    """The real engine over a backend without a model, one request in flight."""
    settings = replace(resolve_settings(EngineConfig(max_loras=2), 64, "cpu"), max_in_flight=1)

    def create() -> Engine:
        return SupervisedEngine(lambda: FakeBackend(world), Letters(), INFO, settings, Path("engine.log"))

    host = EngineHost(create)
    host.start().result(30)
    try:
        yield SharedEngine(host, 2)
    finally:
        host.close()


def requests(count: int) -> list[GenerateRequest]:
    return [GenerateRequest(str(number), "ab", 1, Sampling(max_tokens=4)) for number in range(count)]


async def test_the_real_engine_serves_its_callers_in_turn() -> None:
    world = BackendWorld(seconds=0.001)
    with hosted(world) as shared:
        large, small = JobEngine(shared), JobEngine(shared)

        async def ask(job: JobEngine, count: int) -> list[int]:
            """How many requests of all jobs were answered when each of this job's was."""
            return [len(world.answered) async for _ in job.generate(requests(count))]

        behind = asyncio.create_task(ask(large, 2000))
        while len(world.answered) < 20:
            await asyncio.sleep(0.01)
        begun = len(world.answered)
        seen = await asyncio.wait_for(ask(small, 20), 60)
        assert not behind.done()
        assert seen[-1] - begun < 20 * 4
        behind.cancel()
        await asyncio.gather(behind, return_exceptions=True)
        for job in (large, small):
            await job.close()
