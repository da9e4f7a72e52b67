"""The engine through HTTP against the engine in the process, and what a swap of adapters costs under load.

    python -m benchmarks.service_engine [--texts 256] [--prompts 48] [--repeats 3] [--swaps 6]

One real engine, the real API over it in the same process, clients on loopback. HTTP and in-process calls alternate, the
prefix cache emptied before each; the ratio is of their throughputs. Then streams of scores of the base model and of an
adapter go on without a pause while other adapters are loaded and unloaded: every answer is compared with the one that
its adapter gave before, and the time is taken from the request to load a folder until its name can be used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from afdc.engine_config import EngineConfig
from afdc.prompting import PromptCodec
from afdc.task import Task
from afdc_pipeline.seams import GenerateRequest, Sampling
from afdc_server.datasets.publish import insert_adapter, publish_adapter
from afdc_server.engine.build import load_tokenizer, make_engine
from afdc_server.models import resolve_model
from afdc_server.service.ids import ADAPTER, JOB, new_id
from afdc_server.service.wiring import HeavyParts
from tests.fakes.engine import FakeEngine
from tests.reference import load_base, save_adapter, sentiment_task
from tests.service.world import World, fake_parts, make_settings

ADAPTERS = 4
CLOSE = 2e-3  # nats: one adapter's answers differ by this much at most with the batch that they come in


def words(count: int) -> list[str]:
    """Texts that share no beginning."""
    return [f"{number * 7919 % 10007} people said that number {number} was fine by them" for number in range(count)]


async def rate(units: int, work: Coroutine[Any, Any, Any]) -> float:
    """Units a second."""
    begun = time.monotonic()
    await work
    return units / (time.monotonic() - begun)


class Sides:
    """The same work on both sides."""

    def __init__(self, world: World, client: httpx.AsyncClient, task: Task, args: argparse.Namespace) -> None:
        self.host = world.services.engine.host
        self.client = client
        self.task = task
        self.texts = words(args.texts)
        self.prompts = [f"Number {number}: once upon a time" for number in range(args.prompts)]

    async def score_inside(self) -> Any:
        return await self.host.run(self.host.engine.score(self.texts, self.task))

    async def score_http(self) -> Any:
        body = {"task": self.task.model_dump(mode="json"), "texts": self.texts}
        return (await self.client.post("/score", json=body)).raise_for_status()

    async def generate_inside(self) -> Any:
        sampling = Sampling(max_tokens=32, seed=1)
        requests = [GenerateRequest(str(i), prompt, 4, sampling) for i, prompt in enumerate(self.prompts)]
        return [one async for one in self.host.stream(lambda: self.host.engine.generate(requests))]

    async def generate_http(self) -> Any:
        prompts = [{"prompt": prompt, "n": 4} for prompt in self.prompts]
        body = {"prompts": prompts, "sampling": {"max_tokens": 32, "seed": 1}}
        return (await self.client.post("/generate", json=body)).raise_for_status()

    async def empty_cache(self) -> None:
        engine: Any = self.host.engine
        await self.host.run(engine.supervisor.run(lambda backend: backend.llm.reset_prefix_cache()))


async def compare(sides: Sides, args: argparse.Namespace) -> dict[str, Any]:
    """Throughput of both sides, alternating; the median of the pairs' ratios."""
    pairs: dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]] = {
        "score": (args.texts, sides.score_inside, sides.score_http),
        "generate": (args.prompts * 4, sides.generate_inside, sides.generate_http),
    }
    found: dict[str, Any] = {}
    for name, (units, inside, over_http) in pairs.items():
        await inside()
        ratios = []
        for repeat in range(args.repeats):
            both: dict[str, float] = {}
            order = [("inside", inside), ("http", over_http)]
            for side, work in order if repeat % 2 else reversed(order):
                await sides.empty_cache()
                both[side] = await rate(units, work())
            ratios.append(both["http"] / both["inside"])
            print(
                f"{name}: inside {both['inside']:.1f}/s, HTTP {both['http']:.1f}/s, ratio {ratios[-1]:.3f}", flush=True
            )
        found[name] = round(statistics.median(ratios), 3)
    return found


async def swaps(sides: Sides, ids: dict[str, str], count: int) -> dict[str, Any]:
    """Load and unload adapters while others answer; every answer is checked."""
    texts, task = sides.texts[:4], sides.task.model_dump(mode="json")
    names = list(ids)

    async def ask(adapter: str | None) -> Any:
        body = {"task": task, "texts": texts, "adapter": adapter}
        return (await sides.client.post("/score", json=body)).raise_for_status().json()["logprobs"]

    async def load(name: str) -> float:
        begun = time.monotonic()
        (await sides.client.post("/engine/adapters", json={"adapter": ids[name]})).raise_for_status()
        return time.monotonic() - begun

    await load(names[0])
    expected = {None: await ask(None), names[0]: await ask(names[0])}
    idle = []
    for name in names[1:]:
        idle.append(await load(name))
        expected[name] = await ask(name)
        await sides.client.delete(f"/engine/adapters/{name}")
    checked, wrong, stop = [0], [0], asyncio.Event()

    def check(name: str | None, answer: Any) -> None:
        checked[0] += 1
        wrong[0] += int(np.abs(np.array(answer) - np.array(expected[name])).max() > CLOSE)

    async def keep_asking(name: str | None) -> None:
        while not stop.is_set():
            check(name, await ask(name))

    asking = [asyncio.create_task(keep_asking(name)) for name in (None, names[0], None, names[0])]
    seconds = []
    for number in range(count):
        name = names[1 + number % (len(names) - 1)]
        seconds.append(await load(name))
        check(name, await ask(name))
        await sides.client.delete(f"/engine/adapters/{name}")
    stop.set()
    await asyncio.gather(*asking)
    gap = min(
        float(np.abs(np.array(expected[one]) - np.array(expected[two])).max())
        for one in expected
        for two in expected
        if one != two
    )
    return {
        "swap_idle_s": round(statistics.median(idle), 3),
        "swap_under_load_s": round(statistics.median(seconds), 3),
        "answers": checked[0],
        "wrong": wrong[0],
        "smallest_difference_between_adapters": round(gap, 3),
    }


def add_adapters(world: World, folder: Path, model: Any, task: Task) -> dict[str, str]:
    """Random adapters, published as a job's would be: name -> id."""
    network, codec = load_base(model), PromptCodec(load_tokenizer(model.path), task)
    ids: dict[str, str] = {}
    for seed in range(ADAPTERS):
        made = save_adapter(folder / f"a{seed}", network, model, codec, ("My card is gone.",), seed=seed)
        id = new_id(ADAPTER)
        facts = publish_adapter(world.services.artifacts, made, id)
        with world.services.db.write() as connection:
            insert_adapter(connection, "default", new_id(JOB), id, facts, final=True, activated=True)
        ids[facts.name] = id
    return ids


async def measure(world: World, ids: dict[str, str], task: Task, args: argparse.Namespace) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {world.key()}"}
    async with httpx.AsyncClient(base_url=f"{world.address}/v1", headers=headers, timeout=600) as client:
        sides = Sides(world, client, task, args)
        found = await compare(sides, args)
        return {**found, **await swaps(sides, ids, args.swaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=6)
    args = parser.parse_args()
    model, task = resolve_model("", "cpu"), sentiment_task()
    config = EngineConfig(device="cpu", dtype="float32", max_model_len=512, max_loras=3)
    with tempfile.TemporaryDirectory(prefix="afdc-http-") as name:
        folder = Path(name)
        fakes = fake_parts(FakeEngine())
        parts: HeavyParts = replace(
            fakes, model=lambda: model, engine=lambda one: make_engine(one, config, folder / "logs")
        )
        world = World(make_settings(folder / "data", engine=config), parts)
        world.start(with_runner=False, patience_s=300)
        try:
            ids = add_adapters(world, folder, model, task)
            found = asyncio.run(measure(world, ids, task, args))
        finally:
            world.stop()
    print(json.dumps(found, indent=2))
    for name in ("score", "generate"):
        print(f"{name} through HTTP: {found[name]} of in-process (at least 0.95)")
    print(f"swap: {found['swap_idle_s']} s (at most 1), beside a saturated engine {found['swap_under_load_s']} s")
    print(f"{found['wrong']} of {found['answers']} answers wrong (0)")


if __name__ == "__main__":
    main()
