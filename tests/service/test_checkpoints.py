"""Adapters of finished rounds: there while the job runs, after its cancellation and its failure, and each once."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from afdc.errors import TrainerError
from afdc_server.db.schema import adapters
from tests.service.world import (
    CLEAR,
    SlottedEngine,
    World,
    events_of,
    fake_parts,
    finished,
    make_settings,
    post_job,
    post_seeds,
    wait_for,
)

TEXTS = ["river lamp ALPHA", "the stone BETA"]


class Gate:
    """Holds up the training of the second round until it is opened, or fails it."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def __call__(self, what: str) -> None:
        if not what.startswith("fit:") or "-r2" not in what:
            return
        self.reached.set()
        assert self.open.wait(60)
        error, self.error = self.error, None
        if error is not None:
            raise error


@contextmanager
def held(data: Path, gate: Gate) -> Iterator[tuple[World, httpx.Client, str]]:
    """A server whose one job has finished round 1 and waits before round 2."""
    world = World(make_settings(data), fake_parts(SlottedEngine(noise=CLEAR), gate))
    world.start()
    try:
        with world.client() as client:
            job = post_job(client, post_seeds(client))["id"]
            assert gate.reached.wait(60)
            yield world, client, job
    finally:
        gate.open.set()
        world.stop()


def checkpoints(client: httpx.Client, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/jobs/{job}/checkpoints").json()["data"]
    assert len({one["name"] for one in found}) == len(found)
    return found


def short(found: list[dict[str, Any]]) -> list[str]:
    """m0, m1, r1, …"""
    return sorted(one["name"].split("-")[-2] for one in found)


def check_use(client: httpx.Client, found: list[dict[str, Any]]) -> None:
    """Each can be downloaded whole, and answers."""
    for one in found:
        for file in client.get(f"/adapters/{one['id']}").json()["files"]:
            content = client.get(f"/adapters/{one['id']}/files/{file['path']}").content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        reply = client.post("/predict", json={"adapter": one["id"], "texts": TEXTS})
        assert reply.status_code == 200, reply.text
        assert [row["label"] for row in reply.json()["data"]] == ["ALPHA", "BETA"]


def stored(world: World) -> list[str]:
    folder = world.services.settings.data / "artifacts" / "adapters"
    return sorted(path.name for path in folder.iterdir())


def stop_running(client: httpx.Client, gate: Gate, job: str) -> None:
    assert client.post(f"/jobs/{job}/cancel").json()["status"] == "cancelling"
    gate.open.set()
    assert finished(client, job)["status"] == "cancelled"


def test_they_are_there_while_the_job_runs_and_stay_the_same_to_its_end(tmp_path: Path) -> None:
    gate = Gate()
    with held(tmp_path, gate) as (world, client, job):
        running = checkpoints(client, job)
        assert short(running) == ["m0", "m1", "r1"]
        assert not any(one["final"] for one in running)
        check_use(client, running)
        rounds = client.get(f"/jobs/{job}/rounds").json()["data"]
        assert {one["adapter"] for one in rounds} <= {one["name"] for one in running}
        gate.open.set()
        done = finished(client, job)
        assert done["status"] == "succeeded", done["error"]
        after = checkpoints(client, job)
        assert {one["id"] for one in running} < {one["id"] for one in after}
        assert [one["id"] for one in after if one["final"]] == [done["adapter"]]
        lost = {one["adapter"] for one in client.get(f"/jobs/{job}/rounds").json()["data"] if not one["activated"]}
        assert {one["name"] for one in after if not one["activated"]} == lost
        assert stored(world) == sorted(one["id"] for one in after)
        check_use(client, after)


def test_a_cancelled_job_keeps_them_and_goes_on_with_them(tmp_path: Path) -> None:
    gate = Gate()
    with held(tmp_path, gate) as (world, client, job):
        before = checkpoints(client, job)
        stop_running(client, gate, job)
        assert checkpoints(client, job) == before
        check_use(client, before)
        refused = client.post("/predict", json={"job": job, "texts": TEXTS})
        assert (refused.status_code, "checkpoints" in refused.json()["detail"]) == (422, True)
        client.post(f"/jobs/{job}/retry")
        assert finished(client, job)["status"] == "succeeded"
        after = checkpoints(client, job)
        assert {one["id"] for one in before} < {one["id"] for one in after}
        assert stored(world) == sorted(one["id"] for one in after)


def test_a_failed_job_keeps_them(tmp_path: Path) -> None:
    gate = Gate()
    gate.error = TrainerError("killed by SIGKILL")
    with held(tmp_path, gate) as (_world, client, job):
        before = checkpoints(client, job)
        gate.open.set()
        assert finished(client, job)["status"] == "failed"
        assert checkpoints(client, job) == before
        check_use(client, before)


def test_they_are_there_when_the_end_of_their_round_is_told(tmp_path: Path) -> None:
    gate = Gate()
    with held(tmp_path, gate) as (_world, client, job):
        told = {one["data"]["adapter"] for one in events_of(client, job) if one["kind"] == "round_finished"}
        assert told
        assert told <= {one["name"] for one in checkpoints(client, job)}


def test_they_go_with_their_job(tmp_path: Path) -> None:
    gate = Gate()
    with held(tmp_path, gate) as (world, client, job):
        stop_running(client, gate, job)
        assert stored(world)
        assert client.delete(f"/jobs/{job}").status_code == 200
        assert stored(world) == []


@pytest.mark.parametrize("other", [False, True], ids=["same", "other"])
def test_a_job_that_begins_anew_puts_others_in_their_place_or_finds_them_again(tmp_path: Path, *, other: bool) -> None:
    """`other`: as where training gives other weights than before, and so another name."""
    gate = Gate()
    with held(tmp_path, gate) as (world, client, job):
        stop_running(client, gate, job)
        before = checkpoints(client, job)
        first = next(one for one in before if "-r1-" in one["name"])
        if other:
            with world.services.db.write() as connection:
                name = f"{first['name'][:-12]}{'0' * 12}"
                connection.execute(update(adapters).where(adapters.c.id == first["id"]).values(name=name))
        shutil.rmtree(world.services.settings.work / job)
        gate.reached.clear()
        gate.open.clear()
        client.post(f"/jobs/{job}/retry")
        wait_for(gate.reached.is_set)
        assert "job_restarted" in [one["kind"] for one in events_of(client, job)]
        again = checkpoints(client, job)
        assert short(again) == ["m0", "m1", "r1"]
        assert (first["id"] in {one["id"] for one in again}) is not other
        assert stored(world) == sorted(one["id"] for one in again)
        check_use(client, again)
        gate.open.set()
        assert finished(client, job)["status"] == "succeeded"
