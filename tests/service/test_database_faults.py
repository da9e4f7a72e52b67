"""A database that is locked, full, gone or restarted under running jobs: they go on by themselves once it is back."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from afdc_server.db import open as opening
from afdc_server.jobs import work
from tests.service.cluster import cluster
from tests.service.faults import SETTINGS
from tests.service.test_storage_faults import check_whole
from tests.service.world import SlottedEngine, events_of, finished, post_job, post_seeds, running, wait_for

LEASE_S = 1.0


def starts_of(client: httpx.Client, job: str) -> int:
    return [one["kind"] for one in events_of(client, job)].count("job_running")


def half_done(client: httpx.Client, engine: SlottedEngine, job: str) -> None:
    wait_for(lambda: len(engine.calls) > 8 or client.get(f"/jobs/{job}").json()["status"] == "succeeded")


class Dawdling(SlottedEngine):
    """Takes a moment for each answer, so that a fault meets a running job."""

    def __init__(self) -> None:
        super().__init__(on_call=lambda _what: time.sleep(0.04))


def test_a_database_that_is_locked_for_seconds_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BUSY_TIMEOUT_S", 0.2)
    engine = Dawdling()
    with running(tmp_path, engine, lease_s=LEASE_S) as world, world.client() as client:
        jobs = [post_job(client, post_seeds(client), settings=SETTINGS)["id"] for _ in range(2)]
        half_done(client, engine, jobs[0])
        with closing(sqlite3.connect(tmp_path / "afdc.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(2.5)
            assert client.post(f"/jobs/{jobs[0]}/cancel").status_code == 503
            assert client.get(f"/jobs/{jobs[0]}").status_code == 200
            other.execute("ROLLBACK")
        for job in jobs:
            assert finished(client, job)["status"] == "succeeded"
            check_whole(world, client, job)
            assert "job_failed" not in [one["kind"] for one in events_of(client, job)]
        assert starts_of(client, jobs[0]) > 1, "the lock did not meet the job"


def test_a_database_without_room_fails_nothing_once_there_is_room(tmp_path: Path) -> None:
    """SQLite's own limit stands for the full disk: the error is the same SQLITE_FULL."""
    engine, full = Dawdling(), threading.Event()
    with running(tmp_path, engine, lease_s=LEASE_S) as world, world.client() as client:

        def limit(connection: Any, *_: Any) -> None:
            connection.execute(f"PRAGMA max_page_count={1 if full.is_set() else 1 << 30}").close()

        event.listen(world.services.db.engine, "checkout", limit)
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        half_done(client, engine, job)
        full.set()
        time.sleep(2.5)
        full.clear()
        done = finished(client, job)
        assert done["status"] == "succeeded", done["error"]
        assert starts_of(client, job) > 1, "the full disk did not meet the job"
        check_whole(world, client, job)


def test_a_slow_database_only_takes_longer(tmp_path: Path) -> None:
    """Every statement takes as long as one that crosses a poor network."""
    with running(tmp_path, lease_s=LEASE_S) as world, world.client() as client:
        event.listen(world.services.db.engine, "before_cursor_execute", lambda *_: time.sleep(0.02))
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        done = finished(client, job)
        assert done["status"] == "succeeded", done["error"]
        assert starts_of(client, job) == 1, "the lease ran out"
        check_whole(world, client, job)


def test_a_database_that_stays_away_is_told_and_ends_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner, the event hub and readiness all live through it."""
    monkeypatch.setattr(opening, "BUSY_TIMEOUT_S", 0.1)
    with running(tmp_path, lease_s=LEASE_S) as world, world.client() as client:
        seeds = post_seeds(client)
        os.rename(tmp_path / "afdc.db", tmp_path / "away.db")
        (tmp_path / "afdc.db").mkdir()
        world.services.db.engine.dispose()
        try:
            assert httpx.get(f"{world.address}/readyz").status_code == 503
            assert client.get("/jobs").status_code == 503
            time.sleep(2.5)
        finally:
            (tmp_path / "afdc.db").rmdir()
            os.rename(tmp_path / "away.db", tmp_path / "afdc.db")
            world.services.db.engine.dispose()
        assert httpx.get(f"{world.address}/readyz").status_code == 200
        assert finished(client, post_job(client, seeds, settings=SETTINGS)["id"])["status"] == "succeeded"


def test_a_job_whose_starts_are_all_in_vain_fails_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "STARTS_IN_VAIN", 2)

    def away(*_: Any) -> None:
        raise opening.DatabaseAwayError("disk I/O error")

    with running(tmp_path, lease_s=LEASE_S) as world, world.client() as client, monkeypatch.context() as broken:
        broken.setattr(work, "find_inputs", away)
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        failed = finished(client, job)
        assert (failed["error"]["code"], failed["error"]["retryable"]) == ("storage", True)
        assert [one["kind"] for one in events_of(client, job)].count("job_running") == 2
        broken.undo()
        client.post(f"/jobs/{job}/retry")
        assert finished(client, job)["status"] == "succeeded"


def test_a_postgresql_that_is_restarted_fails_nothing(tmp_path: Path) -> None:
    url, engine = cluster().make(), Dawdling()
    with running(tmp_path, engine, lease_s=LEASE_S, database_url=url) as world, world.client() as client:
        job = post_job(client, post_seeds(client), settings=SETTINGS)["id"]
        half_done(client, engine, job)
        cluster().stop()
        assert httpx.get(f"{world.address}/readyz").status_code == 503
        time.sleep(2.5)
        cluster().start()
        done = finished(client, job)
        assert done["status"] == "succeeded", done["error"]
        assert starts_of(client, job) > 1, "the restart did not meet the job"
        check_whole(world, client, job)
