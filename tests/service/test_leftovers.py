"""Files of jobs that have ended: they go when nobody needs them any more, and whoever needs them later is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from afdc_server.db.schema import service_jobs
from afdc_server.jobs.runner import DAY_S
from tests.fakes.engine import FakeEngine
from tests.service.faults import SETTINGS
from tests.service.test_storage_faults import left_unpublished
from tests.service.test_sweep import sweeper, tree
from tests.service.world import (
    World,
    events_of,
    fake_parts,
    finished,
    make_settings,
    post_job,
    post_seeds,
    running,
    wait_for,
)

KEEP_DAYS = 30


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path) as world:
        yield world


def succeeded(world: World, client: httpx.Client) -> dict[str, Any]:
    """A job that has ended, its thread too."""
    job = finished(client, post_job(client, post_seeds(client), settings=SETTINGS)["id"])
    assert job["status"] == "succeeded"
    wait_for(lambda: not world.services.runner.running)
    return job


def work_of(world: World, job: str) -> Path:
    return world.services.settings.work / job


def is_small(path: str) -> bool:
    return path in {"report.html", "result.json"} or path.startswith("state/logs/")


def test_a_job_that_has_succeeded_keeps_its_report_alone(world: World) -> None:
    with world.client() as client:
        job = succeeded(world, client)
        left = tree(work_of(world, job["id"]))
        assert {"report.html", "result.json"} <= left
        assert all(is_small(path) for path in left), left
        checkpoints = client.get(f"/jobs/{job['id']}/checkpoints").json()["data"]
        assert len(checkpoints) > 1
        for one in checkpoints:
            assert client.post("/predict", json={"adapter": one["id"], "texts": ["a"]}).status_code == 200
        row = client.get(f"/datasets/{job['dataset']}/rows").json()["data"][0]["id"]
        body = {"reviews": [{"row": row, "decision": "accept"}]}
        reviewed = client.post(f"/datasets/{job['dataset']}/reviews", json=body).json()["id"]
        again = client.post(f"/jobs/{job['id']}/retry", json={"reviews": [reviewed]}).json()["id"]
        assert finished(client, again)["status"] == "succeeded"


def test_what_a_kill_has_left_of_it_is_swept(world: World) -> None:
    with world.client() as client:
        job = succeeded(world, client)["id"]
    before = tree(work_of(world, job))
    for name in (
        "state/adapters/a/adapter_model.safetensors",
        "state/chunks/00/1.parquet",
        "dataset/README.md",
        "loose",
    ):
        path = work_of(world, job) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert sweeper(world, 0).sweep() == [f"work/{job}"]
    assert tree(work_of(world, job)) == before
    assert sweeper(world, 0).sweep() == []


def test_the_rest_goes_when_the_operators_time_is_up(world: World) -> None:
    with world.client() as client:
        job = succeeded(world, client)["id"]
        folder = work_of(world, job)
        sweeper(world, (KEEP_DAYS - 1) * DAY_S).sweep()
        assert (folder / "report.html").exists()
        assert f"work/{job}" in sweeper(world, (KEEP_DAYS + 1) * DAY_S).sweep()
        assert not folder.exists()
        assert list(folder.parent.glob(f"*{job}*")) == []
        assert client.get(f"/jobs/{job}").json()["status"] == "succeeded"
        assert client.get(f"/jobs/{job}/checkpoints").json()["data"]


def test_a_failed_job_begins_anew_once_its_files_are_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.client() as client:
        with left_unpublished(world, client, monkeypatch) as (job, layout):
            before = tree(layout.root)
            sweeper(world, (KEEP_DAYS - 1) * DAY_S).sweep()
            assert tree(layout.root) == before, "a retry goes on from them"
            sweeper(world, (KEEP_DAYS + 1) * DAY_S).sweep()
            assert not layout.root.exists()
        told = [one["data"]["reason"] for one in events_of(client, job) if one["kind"] == "job_restarted"]
        assert len(told) == 1
        assert "removed after its end" in told[0]


def test_a_failed_job_goes_on_from_its_files_until_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.client() as client:
        with left_unpublished(world, client, monkeypatch) as (job, _layout):
            sweeper(world, (KEEP_DAYS - 1) * DAY_S).sweep()
        assert "job_restarted" not in [one["kind"] for one in events_of(client, job)]


def test_a_job_that_was_tried_again_keeps_its_files(tmp_path: Path) -> None:
    world = World(make_settings(tmp_path, keep_work_days=0), fake_parts(FakeEngine()))
    world.start(with_runner=False)
    try:
        with world.client() as client:
            seeds = post_seeds(client)
            jobs = [post_job(client, seeds)["id"] for _ in range(3)]
            for job in jobs:
                (work_of(world, job) / "state").mkdir(parents=True)
            for job in jobs[:2]:
                client.post(f"/jobs/{job}/cancel")
            long_ago = time.time() - 365 * DAY_S
            with world.services.db.write() as connection:
                connection.execute(update(service_jobs).values(created_at=long_ago, updated_at=long_ago))
            assert client.post(f"/jobs/{jobs[0]}/retry").status_code == 200
            assert sweeper(world, 1).sweep() == [f"work/{jobs[1]}"]
            assert [work_of(world, job).exists() for job in jobs] == [True, False, True]
    finally:
        world.stop()
