"""What differs on PostgreSQL: several servers over one database, and transactions that nobody ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from afdc.errors import ConflictError
from afdc_server.db import open as opening
from afdc_server.db.database import Database
from afdc_server.db.migrate import upgrade
from afdc_server.db.open import DatabaseAwayError, open_database
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.jobs.states import StateError
from afdc_server.ledger import SqlLedger
from afdc_server.ledger.events import lock_job, read_events
from tests.service.cluster import cluster
from tests.service.faults import SETTINGS
from tests.service.test_storage_faults import check_whole
from tests.service.world import events_of, finished, post_job, post_seeds, running

JOB = "job_1"


@pytest.fixture
def url() -> str:
    return cluster().make()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    found = Database(open_database(url))
    upgrade(found.engine)
    yield found
    found.close()


def put_job(database: Database) -> None:
    values: dict[str, Any] = {"id": JOB, "tenant": "t", "name": "", "request": {}, "config": {}, "config_hash": ""}
    with database.write() as connection:
        store.create(connection, {**values, "model": "m", "model_revision": "r", "engine": "e"})


def test_a_job_over_postgresql(tmp_path: Path, url: str) -> None:
    with running(tmp_path, database_url=url) as world, world.client() as client:
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        assert finished(client, job)["status"] == "succeeded"
        check_whole(world, client, job)


def test_servers_that_start_at_once_bring_the_database_up_to_date_together(url: str) -> None:
    def start(_: int) -> None:
        engine = open_database(url)
        upgrade(engine)
        engine.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))


def test_two_servers_share_the_jobs_and_run_none_twice(tmp_path: Path, url: str) -> None:
    shared = {"database_url": url, "artifacts": (tmp_path / "artifacts").as_uri(), "secret_file": tmp_path / "secret"}
    with ExitStack() as stack:
        worlds = [stack.enter_context(running(tmp_path / name, **shared, running_jobs=2)) for name in ("one", "two")]
        clients = [stack.enter_context(world.client()) for world in worlds]
        seeds = post_seeds(clients[0])
        jobs = [post_job(clients[number % 2], seeds, settings=SETTINGS)["id"] for number in range(8)]
        for number, job in enumerate(jobs):
            watcher = clients[(number + 1) % 2]  # the one that did not take it
            assert finished(watcher, job)["status"] == "succeeded"
            kinds = [one["kind"] for one in events_of(watcher, job)]
            assert (kinds.count("job_running"), kinds.count("job_succeeded")) == (1, 1)
        done = [sum(1 for job in jobs if (world.services.settings.work / job).exists()) for world in worlds]
        assert sum(done) == len(jobs)
        assert min(done) > 0, "one server did everything"


def test_a_tenants_limit_holds_over_all_servers(tmp_path: Path, url: str) -> None:
    most = 0
    shared = {"database_url": url, "artifacts": (tmp_path / "artifacts").as_uri(), "secret_file": tmp_path / "secret"}
    limits = {"limits": {"tenant_running": 2}}
    with ExitStack() as stack:
        worlds = [stack.enter_context(running(tmp_path / name, **shared, **limits)) for name in ("one", "two")]
        client = stack.enter_context(worlds[0].client())
        seeds = post_seeds(client)
        jobs = [post_job(client, seeds, settings=SETTINGS)["id"] for _ in range(6)]
        query = select(service_jobs.c.id).where(service_jobs.c.status.in_(["running", "finalizing"]))
        open_jobs = set(jobs)
        while open_jobs:
            with worlds[0].services.db.read() as connection:
                most = max(most, len(connection.execute(query).all()))
                ended = select(service_jobs.c.id).where(service_jobs.c.status == "succeeded")
                open_jobs -= set(connection.execute(ended).scalars())
            time.sleep(0.02)
    assert most == 2


def test_a_writer_that_was_stopped_in_the_middle_holds_up_nobody_for_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process under SIGSTOP leaves it: a transaction that holds the job, and nobody who ends it."""
    monkeypatch.setattr(opening, "IDLE_TIMEOUT_S", 2)
    monkeypatch.setattr(opening, "LOCK_TIMEOUT_S", 1)
    put_job(database)
    frozen = SqlLedger(database.engine, JOB)
    stack = ExitStack()
    connection = stack.enter_context(frozen.transaction())
    connection.execute(text("SELECT 1"))
    with pytest.raises(DatabaseAwayError, match="lock"), database.write() as other:
        lock_job(other, JOB)
    time.sleep(1.5)
    after = SqlLedger(database.engine, JOB)
    after.add_event("note", {})
    with pytest.raises(DatabaseAwayError):
        stack.close()
    with pytest.raises(ConflictError, match="taken over"):
        frozen.add_event("note", {})
    with database.read() as connection:
        assert [event.kind for event in read_events(connection, JOB)] == ["job_queued", "note"]


def test_readers_may_take_their_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "IDLE_TIMEOUT_S", 1)
    put_job(database)
    with database.read() as connection:
        assert store.find(connection, JOB) is not None
        time.sleep(1.5)
        assert store.find(connection, JOB) is not None


def test_steering_never_meets_a_claim_in_a_deadlock(tmp_path: Path, url: str) -> None:
    """Everybody cancels, pauses, resumes and retries the same jobs while the runner claims them."""
    failed: list[Exception] = []
    with running(tmp_path, database_url=url, running_jobs=4) as world, world.client() as client:
        seeds = post_seeds(client)
        jobs = [post_job(client, seeds, settings=SETTINGS)["id"] for _ in range(6)]
        end = time.monotonic() + 6

        def steer(number: int) -> None:
            turn = number
            while time.monotonic() < end:
                turn += 1
                action = ("cancel", "retry", "pause", "resume")[turn % 4]
                try:
                    with world.services.db.write() as connection:
                        store.act(connection, jobs[turn % 5], action)  # type: ignore[arg-type]  # one of the actions
                except StateError:
                    continue
                except Exception as exc:
                    failed.append(exc)
                world.services.runner.wake()

        threads = [threading.Thread(target=steer, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        for job in jobs:
            status = client.get(f"/jobs/{job}").json()["status"]
            if status in {"paused", "pausing"}:
                client.post(f"/jobs/{job}/resume")
            finished(client, job)
            if client.get(f"/jobs/{job}").json()["status"] == "cancelled":
                client.post(f"/jobs/{job}/retry")
            assert finished(client, job)["status"] == "succeeded"
            check_whole(world, client, job)
