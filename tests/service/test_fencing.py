"""Workers that are frozen, ended, or fail: whoever comes after them goes on, and they themselves publish nothing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from afdc_server.accounts.keys import load_secret
from afdc_server.accounts.store import create_key
from afdc_server.db.database import Database
from afdc_server.db.migrate import upgrade
from afdc_server.db.open import open_database
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.ledger import FencedError
from afdc_server.ledger.events import raise_fence, read_events
from tests.service.cluster import database_url
from tests.service.faults import JOB, REPOSITORY, Outcome, examine, find_job, stages_of
from tests.service.world import (
    SlottedEngine,
    events_of,
    finished,
    make_settings,
    post_job,
    post_seeds,
    running,
    wait_for,
)

KINDS = ("sqlite", "postgresql")
LEASE_S = 1.5
STOP_S = 30.0
FROZEN_AT = 14  # engine call in which the first server stops: the first scores


class Servers:
    """Two server programs with a data folder each, over one database, one artifact store and one secret."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.url = database_url(kind, folder)
        self.artifacts = folder / "artifacts"
        self.database = Database(open_database(self.url))
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        shared = ["--database-url", self.url, "--artifacts", self.artifacts.as_uri(), "--lease", str(LEASE_S)]
        shared += ["--secret", str(self.folder / "secret")]
        command = [sys.executable, "-m", "tests.service.faults", str(self.folder / name), *shared, *more]
        child = subprocess.Popen(command, cwd=REPOSITORY)
        self._started.append(child)
        return child

    def close(self) -> None:
        for child in self._started:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()
        self.database.close()


@pytest.fixture(params=KINDS)
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path, request.param)
    yield found
    found.close()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "T"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([sys.executable, "-m", "tests.service.faults", str(root)], cwd=REPOSITORY, check=True)
    return examine(root)


def test_a_frozen_server_whose_job_was_taken_over_publishes_nothing(
    servers: Servers, tmp_path: Path, undisturbed: Outcome
) -> None:
    first = servers.start("first", "--stop-at", str(FROZEN_AT))
    wait_for(lambda: is_stopped(first.pid))
    assert find_job(servers.database).status == "running"
    second = servers.start("second")
    assert second.wait(60) == 0
    outcome, version = examine(tmp_path, servers.url, servers.artifacts), find_job(servers.database).version
    assert outcome == undisturbed

    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0  # it sees that the job is done, by another hand
    assert find_job(servers.database).version == version
    assert examine(tmp_path, servers.url, servers.artifacts) == outcome
    assert "job_restarted" in kinds_of(servers.database), "the second server had none of the first one's files"


def test_a_server_that_died_for_good_is_followed_by_another(servers: Servers, tmp_path: Path) -> None:
    first = servers.start("first", "--kill-at", "150")
    assert first.wait(60) == -signal.SIGKILL
    assert servers.start("second").wait(60) == 0
    examine(tmp_path, servers.url, servers.artifacts)


def kinds_of(database: Database) -> list[str]:
    with database.read() as connection:
        return [event.kind for event in read_events(connection, JOB)]


def test_sigterm_stops_the_work_keeps_it_and_ends_with_zero(tmp_path: Path) -> None:
    """The engine is stopped in mid-job first, so that the signal meets a running job however slow the machine is."""
    data = tmp_path / "data"
    with serving(data, "--slow", "0.05") as (child, client):
        job = post_job(client, post_seeds(client))["id"]
        wait_for(lambda: stages_of(data, job) > 2)
        assert client.get(f"/jobs/{job}").json()["status"] == "running"
        assert httpx.get(f"{root_of(client)}/readyz").status_code == 200
        child.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert child.wait(STOP_S) == 0
        assert time.monotonic() - begun < STOP_S
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{root_of(client)}/readyz")
    row = only_job(data)
    assert (row.status, row.worker, row.lease_until, row.error) == ("queued", None, None, None)
    kept = stages_of(data, job)
    assert kept > 2
    with serving(data) as (child, client):
        assert finished(client, job)["status"] == "succeeded"
        ids = [event["id"] for event in events_of(client, job)]
        assert ids == list(range(1, len(ids) + 1))
        child.send_signal(signal.SIGTERM)
        assert child.wait(STOP_S) == 0


def test_sigterm_while_nothing_runs_or_the_engine_still_starts_ends_with_zero(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--never-ready") as (child, _client):
        child.send_signal(signal.SIGTERM)
        assert child.wait(STOP_S) == 0


def test_requests_under_way_at_a_sigterm_are_told_and_leave_no_traceback(tmp_path: Path) -> None:
    """The engine is deaf for longer than the server waits for requests: readiness is gone at once all the same."""
    data = tmp_path / "data"
    with serving(data, "--slow", "9") as (child, client), ThreadPoolExecutor(2) as pool:
        generating = pool.submit(client.post, "/generate", json={"prompts": [{"prompt": "x"}]})
        time.sleep(1)
        asking = pool.submit(httpx.get, f"{root_of(client)}/readyz", timeout=30)
        time.sleep(1)
        assert not asking.done()
        child.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        unready = asking.result()
        assert time.monotonic() - begun < 3
        assert (unready.status_code, unready.json()["status"]) == (503, "unready")
        assert unready.json()["checks"]["queue"] == "closing"
        assert child.poll() is None, "readiness went before the process"
        cut = generating.result()
        assert (cut.status_code, cut.json()["code"], cut.headers["Retry-After"]) == (503, "busy", "5")
        assert child.wait(STOP_S) == 0
    told = (data / "server.log").read_text()
    assert "Traceback" not in told
    assert "Exception in ASGI" not in told
    assert [line for line in told.splitlines() if not line.startswith("{")] == []


@contextlib.contextmanager
def serving(data: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The real server process over fakes, and a client with a key."""
    settings = make_settings(data)
    data.mkdir(parents=True, exist_ok=True)
    database = Database(open_database(settings.database))
    upgrade(database.engine)
    with database.write() as connection:
        _, key = create_key(connection, load_secret(settings.secret_path), "default", ("read", "jobs", "admin"))
    database.close()
    command = [sys.executable, "-m", "tests.service.faults", str(data), "--serve", *more]
    with (data / "server.log").open("a") as log:
        child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers=headers, timeout=30) as client:
            if "--never-ready" not in more:
                wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
            yield child, client
    finally:
        child.kill()
        child.communicate()


def root_of(client: httpx.Client) -> str:
    return str(client.base_url).removesuffix("/v1/")


def only_job(data: Path) -> Any:
    database = Database(open_database(make_settings(data).database))
    with database.read() as connection:
        row = connection.execute(select(service_jobs)).one()
    database.close()
    return row


def test_a_lease_that_was_taken_away_ends_the_thread_and_its_words(tmp_path: Path) -> None:
    """Between the loss of the lease and the next claim nothing can be committed any more."""
    reached, go_on = threading.Event(), threading.Event()

    def on_call(what: str) -> None:
        if what.startswith("score:") and not go_on.is_set():
            reached.set()
            go_on.wait(30)

    with running(tmp_path, SlottedEngine(on_call=on_call), running_jobs=1) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        assert reached.wait(30)
        runner = world.services.runner
        thread = runner._running[job]
        with world.services.db.write() as connection:  # what another server does once the lease has run out
            raise_fence(connection, job)
            store.act(connection, job, "release")
            store.act(connection, job, "pause")
        events = len(events_of(client, job))
        with pytest.raises(FencedError):
            thread._ledger.add_event("note", {})
        go_on.set()
        thread.join(30)
        assert not thread.is_alive()
        assert (client.get(f"/jobs/{job}").json()["status"], len(events_of(client, job))) == ("paused", events)
        client.post(f"/jobs/{job}/resume")
        assert finished(client, job)["status"] == "succeeded"
