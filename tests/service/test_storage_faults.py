"""Disks that fail and files that are damaged: a declared error or success afterwards, and never half a thing."""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from afdc.errors import StorageError
from afdc.layout import RunLayout
from afdc_server.db import schema
from afdc_server.jobs import checkpoints, work
from afdc_server.jobs.rebuild import PUBLISHED, published_locations
from afdc_server.ledger import SqlLedger
from afdc_server.service.ids import ADAPTER, DATASET, new_id
from tests.service.faults import SETTINGS, check_files, read_split
from tests.service.world import (
    World,
    events_of,
    finished,
    post_job,
    post_seeds,
    running,
)

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
STEPS = 130  # durable calls of a job's own thread, about
LEASE_S = 1.0


class Disk:
    """Fails the durable calls of jobs from the Nth on, as often as it is told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._lock = threading.Lock()
        self.heal()
        for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "copyfile")):
            patch.setattr(module, name, self._wrap(getattr(module, name)))

    def break_at(self, call: int, error: int, times: int) -> None:
        self.calls, self.at, self.error, self.left, self.hits = 0, call, error, times, 0

    def heal(self) -> None:
        self.break_at(0, 0, 0)

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if threading.current_thread().name.startswith("afdc-job_"):
                self._maybe_fail()
            return real(*args, **options)

        return wrapped

    def _maybe_fail(self) -> None:
        with self._lock:
            self.calls += 1
            if not self.at or self.calls < self.at or not self.left:
                return
            self.left -= 1
            self.hits += 1
        raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def check_whole(world: World, client: httpx.Client, job: str) -> None:
    """A finished job: its events without a gap, one data set, and every file as the database lists it."""
    ids = [one["id"] for one in events_of(client, job)]
    assert ids == list(range(1, len(ids) + 1))
    store = world.services.settings.data / "artifacts"
    with world.services.db.read() as connection:
        dataset = connection.execute(select(schema.datasets).where(schema.datasets.c.job == job)).one()
        adapters = connection.execute(select(schema.adapters).where(schema.adapters.c.job == job)).all()
    for one in (dataset, *adapters):
        check_files(store / one.location, one.files)
    assert len(read_split(store / dataset.location / "data")) == dataset.rows > 12
    assert sum(one.final for one in adapters) == 1


def check_recovery(world: World, client: httpx.Client, disk: Disk, seeds: str, codes: set[str], what: str) -> int:
    """A job with the disk as it is: it succeeds, or fails by one of these codes and succeeds when tried again.

    Returns how many of its calls failed.
    """
    job = post_job(client, seeds, settings=SETTINGS)["id"]
    ended = finished(client, job)
    hits = disk.hits
    disk.heal()
    if ended["status"] != "succeeded":
        assert (ended["status"], ended["error"]["retryable"], ended["dataset"]) == ("failed", True, None), what
        assert ended["error"]["code"] in codes, f"{what}: {ended['error']}"
        client.post(f"/jobs/{job}/retry")
        assert finished(client, job)["status"] == "succeeded", what
    check_whole(world, client, job)
    return hits


def check_calls(root: Path, disk: Disk, error: int, calls: Iterable[int]) -> int:
    """Jobs with a fault from each of these durable calls on, one call or all that follow; returns how many were met."""
    met = 0
    with running(root, running_jobs=1) as world, world.client() as client:
        seeds = post_seeds(client)
        for number, call in enumerate(calls):
            disk.break_at(call, error, times=1 if number % 2 else 1000)
            met += check_recovery(world, client, disk, seeds, {"storage"}, f"call {call}") > 0
    return met


@pytest.mark.parametrize("error", ERRORS, ids=[errno.errorcode[one] for one in ERRORS])
def test_a_disk_that_fails_at_any_call_fails_the_job_which_then_goes_on(tmp_path: Path, disk: Disk, error: int) -> None:
    assert check_calls(tmp_path, disk, error, range(1 + ERRORS.index(error) * 5, STEPS, 23)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=[errno.errorcode[one] for one in ERRORS])
def test_the_same_at_every_call(tmp_path: Path, disk: Disk, error: int) -> None:
    assert check_calls(tmp_path, disk, error, range(1, STEPS)) > STEPS / 2


class Opening(Disk):
    """Files cannot be opened, to be read or to be written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__(patch)
        patch.setattr(io, "open", self._wrap(io.open))


def test_a_file_that_cannot_be_opened_once_fails_the_job_which_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Opening(monkeypatch)
    with running(tmp_path, running_jobs=1) as world, world.client() as client:
        seeds = post_seeds(client)
        disk.break_at(1 << 30, errno.EIO, times=1)
        finished(client, post_job(client, seeds, settings=SETTINGS)["id"])
        for call in range(20, disk.calls, 60):
            disk.break_at(call, errno.EIO, times=1)
            check_recovery(world, client, disk, seeds, {"storage", "adapter", "trainer"}, f"call {call}")


@contextmanager
def left_unpublished(world: World, client: httpx.Client, patch: pytest.MonkeyPatch) -> Iterator[tuple[str, RunLayout]]:
    """A job that has finished everything but could not publish it. At the end of the block it is tried again."""

    def fail(*_: Any) -> None:
        raise StorageError("the store is away")

    with patch.context() as broken:
        broken.setattr(work, "publish_dataset", fail)
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        assert finished(client, job)["error"]["code"] == "storage"
    yield job, RunLayout(world.services.settings.work / job)
    client.post(f"/jobs/{job}/retry")
    done = finished(client, job)
    assert done["status"] == "succeeded", done["error"]
    check_whole(world, client, job)


def truncate(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def torn_result(layout: RunLayout) -> None:
    truncate(layout.result)


def torn_rows(layout: RunLayout) -> None:
    truncate(next((layout.dataset / "data").glob("*.parquet")))


def torn_chunk(layout: RunLayout) -> None:
    layout.result.unlink()
    truncate(next(layout.chunks.rglob("*.parquet")))


def torn_adapter(layout: RunLayout) -> None:
    truncate(next(layout.adapters.glob("*-m0-*")) / "adapter_model.safetensors")


def lost_folder(layout: RunLayout) -> None:
    shutil.rmtree(layout.root)


@pytest.mark.parametrize(
    ("damage", "restarts"),
    [(torn_result, 0), (torn_rows, 0), (torn_chunk, 1), (torn_adapter, 1), (lost_folder, 1)],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_torn_or_lost_files_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[RunLayout], None], restarts: int
) -> None:
    with running(tmp_path) as world, world.client() as client:
        with left_unpublished(world, client, monkeypatch) as (job, layout):
            damage(layout)
        kinds = [one["kind"] for one in events_of(client, job)]
        assert kinds.count("job_restarted") == restarts
        assert kinds.count("job_succeeded") == 1


def test_ids_that_another_server_settled_for_its_own_adapters_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where that server took the job over, began it anew and died while it published."""
    theirs = {"dataset": new_id(DATASET), "job-r1-000000000000": new_id(ADAPTER)}
    with running(tmp_path) as world, world.client() as client:
        with left_unpublished(world, client, monkeypatch) as (job, _layout):
            SqlLedger(world.services.db.engine, job).set_value(PUBLISHED, theirs)
            for location in published_locations(theirs):
                (tmp_path / "artifacts" / location).mkdir(parents=True)
        for location in published_locations(theirs):
            assert not (tmp_path / "artifacts" / location).exists()


def test_a_job_that_is_deleted_before_it_was_published_whole_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: Any, name: str) -> None:
        real = getattr(module, name)

        def publish(*given: Any) -> None:
            real(*given)
            raise StorageError("the store is away")

        monkeypatch.setattr(module, name, publish)

    with running(tmp_path) as world, world.client() as client:
        stored = world.services.settings.data / "artifacts"
        fail(work, "publish_dataset")
        whole = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        assert finished(client, whole)["status"] == "failed"
        adapters = len(list((stored / "adapters").iterdir()))
        fail(checkpoints, "publish_adapter")
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        assert finished(client, job)["status"] == "failed"
        assert len(list((stored / "datasets").iterdir())) == 1
        assert len(list((stored / "adapters").iterdir())) == adapters + 1
        for one in (whole, job):
            assert client.delete(f"/jobs/{one}").status_code == 200
        assert [*(stored / "datasets").iterdir(), *(stored / "adapters").iterdir()] == []
        assert not (world.services.settings.work / job).exists()


@pytest.mark.parametrize("part", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_corrupt_adapter_is_refused_and_the_other_one_answers(tmp_path: Path, part: str) -> None:
    with running(tmp_path) as world, world.client() as client:
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        assert finished(client, job)["status"] == "succeeded"
        final, other = (
            next(one for one in client.get(f"/jobs/{job}/checkpoints").json()["data"] if one["final"] == is_final)["id"]
            for is_final in (True, False)
        )
        path = tmp_path / "artifacts" / "adapters" / final / part
        whole = path.read_bytes()
        truncate(path)
        wanted = {"texts": ["river lamp ALPHA"]}
        refused = client.post("/predict", json={**wanted, "adapter": final})
        assert refused.status_code >= 400
        assert refused.json()["code"] == "adapter"
        assert client.post("/predict", json={**wanted, "adapter": other}).status_code == 200
        path.write_bytes(whole)
        found = client.post("/predict", json={**wanted, "job": job})
        assert found.json()["adapter"] == final, found.text
