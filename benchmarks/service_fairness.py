"""A small job beside large ones: seconds from its POST to its first rows, on one real engine.

    python -m benchmarks.service_fairness [--large 1 4] [--repeats 3]

The real server in one process with the real engine; training is left out (rounds = 0, no members). First the small job
alone, then beside so many large jobs of other tenants as are under way and have the engine's batch filled. "In turn" is
what it would wait if jobs were served in the order in which they came: the time that one large job takes by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from afdc.engine_config import EngineConfig
from afdc_server.engine.build import make_engine
from afdc_server.models import resolve_model
from tests.fakes.engine import FakeEngine
from tests.service.world import World, fake_parts, make_settings, post_seeds, wait_for

PATIENCE_S = 1800
SMALL, LARGE = 4, 60  # variants a seed
LOOP: dict[str, Any] = {"rounds": 0, "members": 0, "folds": 0, "ensemble": False, "average": False}


def submit(client: httpx.Client, seeds: str, variants: int) -> str:
    """Post a job that generates; returns its id."""
    settings = {"augment": {"variants": variants, "rounds": 1, "max_tokens": 24}, "loop": LOOP}
    reply = client.post("/jobs", json={"seeds": seeds, "settings": {**settings, "encoder": {"labeller": False}}})
    return str(reply.raise_for_status().json()["id"])


def has_rows(client: httpx.Client, job: str) -> bool:
    """Whether some of the job's texts have come out of the engine."""
    usage = client.get(f"/jobs/{job}").raise_for_status().json()
    if usage["status"] == "failed":
        raise SystemExit(f"a job failed: {usage['error']}")
    return bool(usage["progress"]["counts"].get("done") or usage["usage"]["completion_tokens"])


def first_rows_s(client: httpx.Client, seeds: str) -> float:
    """Seconds until the small job's first rows."""
    begun = time.monotonic()
    job = submit(client, seeds, SMALL)
    wait_for(lambda: has_rows(client, job), PATIENCE_S)
    seconds = time.monotonic() - begun
    wait_for(lambda: client.get(f"/jobs/{job}").json()["finished_at"], PATIENCE_S)
    return seconds


def measure(world: World, args: argparse.Namespace) -> dict[str, Any]:
    with world.client("small") as small:
        seeds = post_seeds(small)
        first_rows_s(small, seeds)  # the first one of all warms the engine up
        alone = statistics.median(first_rows_s(small, seeds) for _ in range(args.repeats))
        found: dict[str, Any] = {"alone_s": round(alone, 2)}
        for count in args.large:
            found[f"beside_{count}"] = beside(world, small, seeds, count, args.repeats, alone)
    return found


def beside(world: World, small: httpx.Client, seeds: str, count: int, repeats: int, alone: float) -> dict[str, float]:
    """The same while `count` large jobs generate."""
    clients = [world.client(f"large-{number}") for number in range(count)]
    jobs = [submit(client, post_seeds(client), LARGE) for client in clients]
    for client, job in zip(clients, jobs, strict=True):
        wait_for(lambda client=client, job=job: has_rows(client, job), PATIENCE_S)  # type: ignore[misc]
    seconds = statistics.median(first_rows_s(small, seeds) for _ in range(repeats))
    left = sum(
        client.get(f"/jobs/{job}").json()["status"] == "running" for client, job in zip(clients, jobs, strict=True)
    )
    for client, job in zip(clients, jobs, strict=True):
        client.post(f"/jobs/{job}/cancel")
        wait_for(lambda client=client, job=job: client.get(f"/jobs/{job}").json()["finished_at"], PATIENCE_S)  # type: ignore[misc]
        client.close()
    return {"first_rows_s": round(seconds, 2), "over_alone": round(seconds / alone, 2), "large_still_running": left}


def in_turn_s(world: World) -> float:
    """What one large job takes by itself."""
    with world.client("large") as client:
        begun = time.monotonic()
        job = submit(client, post_seeds(client), LARGE)
        wait_for(lambda: client.get(f"/jobs/{job}").json()["finished_at"], PATIENCE_S)
        return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = resolve_model("", "cpu")
    config = EngineConfig(device="cpu", max_model_len=512, max_loras=3)
    with tempfile.TemporaryDirectory(prefix="afdc-fair-") as name:
        folder = Path(name)
        parts = replace(
            fake_parts(FakeEngine()), model=lambda: model, engine=lambda one: make_engine(one, config, folder / "logs")
        )
        world = World(make_settings(folder / "data", engine=config, lease_s=60.0), parts)
        world.start(patience_s=300)
        try:
            found = measure(world, args)
            found["in_turn_s"] = round(in_turn_s(world), 1)
        finally:
            world.stop()
    print(json.dumps(found, indent=2))
    for count in args.large:
        one = found[f"beside_{count}"]
        print(
            f"first rows of a small job beside {count} large: {one['first_rows_s']} s, {one['over_alone']}x of alone; "
            f"in turn it would have waited {count * found['in_turn_s']:.0f} s"
        )


if __name__ == "__main__":
    main()
