"""What a killed server leaves is removed once it is old, and nothing that anybody knows of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from afdc_server.db.schema import idempotency
from afdc_server.jobs.rebuild import PUBLISHED
from afdc_server.jobs.runner import DAY_S
from afdc_server.jobs.sweep import OLD_S, REPLIES_S, Sweeper
from afdc_server.ledger import SqlLedger
from afdc_server.service.ids import ADAPTER, DATASET, JOB, SEED, new_id
from tests.service.world import SETTINGS, World, finished, post_job, post_seeds, running, wait_for


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path) as world:
        yield world


def sweeper(world: World, later_s: float) -> Sweeper:
    services = world.services
    keep_work_s = services.settings.keep_work_days * DAY_S
    return Sweeper(services.db, services.artifacts, services.settings.data, keep_work_s, lambda: time.time() + later_s)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def leave(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"x")
    return folder


def test_what_is_old_and_unknown_goes_and_the_rest_stays(world: World) -> None:
    artifacts, work = world.services.settings.data / "artifacts", world.services.settings.work
    with world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        finished(client, job)
    wait_for(lambda: not world.services.runner.running)  # it tidies its folder at the end
    before = tree(artifacts) | tree(work)
    places = [artifacts / "seeds" / new_id(SEED), artifacts / "datasets" / new_id(DATASET)]
    places += [artifacts / "adapters" / f".{new_id(ADAPTER)}.0.tmp", work / ".review-1", work / new_id(JOB)]
    left = [leave(place) for place in places]
    assert sweeper(world, OLD_S / 2).sweep() == []
    assert len(sweeper(world, 2 * OLD_S).sweep()) == len(left)
    assert tree(artifacts) | tree(work) == before
    assert not any(path.exists() for path in left)


def test_what_a_job_is_about_to_publish_stays(world: World) -> None:
    with world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        finished(client, job)
    made = new_id(DATASET)
    SqlLedger(world.services.db.engine, job).set_value(PUBLISHED, {"dataset": made})
    place = leave(world.services.settings.data / "artifacts" / "datasets" / made)
    sweeper(world, 2 * OLD_S).sweep()
    assert place.exists()


def test_replies_are_kept_for_a_week(world: World) -> None:
    def post(client: httpx.Client, seeds: str) -> Any:
        return client.post("/jobs", json={"seeds": seeds, "settings": SETTINGS}, headers={"Idempotency-Key": "k"})

    def kept() -> int:
        with world.services.db.read() as connection:
            return int(connection.execute(select(func.count()).select_from(idempotency)).scalar_one())

    with world.client() as client:
        post(client, post_seeds(client))
    sweeper(world, REPLIES_S - 60).sweep()
    assert kept() == 1
    sweeper(world, REPLIES_S + 60).sweep()
    assert kept() == 0
