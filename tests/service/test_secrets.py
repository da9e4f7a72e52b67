"""Canaries: keys, the server's secret and a database password are planted and then looked for everywhere."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from afdc.errors import AfdcError, StorageError
from afdc_server.api import jobs as api_jobs
from afdc_server.db import database
from afdc_server.db.migrate import upgrade
from afdc_server.db.open import open_database
from afdc_server.service.serve import configure_logging
from tests.service.world import SETTINGS, SlottedEngine, World, events_of, finished, post_job, post_seeds, running

SECRET = hashlib.sha256(b"canary").digest()
PASSWORD = "canary-of-the-database"  # noqa: S105 - planted to be looked for
FAILING = "boom"


class MoodyEngine(SlottedEngine):
    """Fails when it is told to, once with a bug and once on purpose."""

    mood = ""

    def _call(self, what: str) -> None:
        super()._call(what)
        if self.mood == FAILING:
            raise RuntimeError("a bug in the engine")
        if self.mood:
            raise StorageError(self.mood)


class Haystack:
    """Everything that came out of the server, by where it came from."""

    def __init__(self, *needles: bytes) -> None:
        self.needles = needles
        self.searched: list[str] = []

    def search(self, where: str, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.searched.append(where)
        for needle in self.needles:
            assert needle not in data, f"a canary in {where}"


def forms(secret: bytes) -> list[bytes]:
    """How bytes show up in texts."""
    return [
        secret,
        secret.hex().encode(),
        base64.b64encode(secret),
        base64.urlsafe_b64encode(secret),
        repr(secret).encode()[2:-1],
    ]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the process says on stderr."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_canary_comes_out(
    tmp_path: Path,
    log: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
) -> None:
    data, engine = tmp_path / "data", MoodyEngine()
    data.mkdir()
    (data / "secret").write_bytes(SECRET)
    with running(data, engine, log_format=log_format) as world:
        configure_logging(world.services.settings)
        key, revoked = world.key(), world.key("gone", "read")
        hay = Haystack(key[10:].encode(), revoked[10:].encode(), *forms(SECRET))
        with httpx.Client(
            base_url=f"{world.address}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=30
        ) as client:
            for where, reply in replies(world, client, engine, monkeypatch, revoked):
                hay.search(where, reply.text)
                hay.search(f"{where}: headers", str(reply.headers))
            for job in client.get("/jobs").json()["data"]:
                hay.search("events", str(events_of(client, job["id"])))
            for path in ("/metrics", "/healthz", "/readyz", "/openapi.json"):
                hay.search(path, httpx.get(f"{world.address}{path}").text)
    captured = capfd.readouterr()
    structlog.reset_defaults()
    hay.search("stderr", captured.err)
    hay.search("stdout", captured.out)
    for path in sorted(data.rglob("*")):
        if path.is_file() and path != world.services.settings.secret_path:
            hay.search(str(path), path.read_bytes())
    assert "unexpected error" in captured.err
    assert "a bug in the engine" in captured.err
    assert any(where.endswith("README.md") for where in hay.searched)
    assert len(hay.searched) > 40


def replies(
    world: World, client: httpx.Client, engine: MoodyEngine, monkeypatch: pytest.MonkeyPatch, revoked: str
) -> Iterator[tuple[str, httpx.Response]]:
    """A whole job, jobs that fail in two ways, and every kind of problem."""
    seeds = post_seeds(client)
    done = finished(client, post_job(client, seeds)["id"])
    assert done["status"] == "succeeded", done["error"]
    for path in (
        f"/jobs/{done['id']}",
        f"/jobs/{done['id']}/rounds",
        f"/datasets/{done['dataset']}",
        f"/adapters/{done['adapter']}",
    ):
        yield path, client.get(path)
    for name in ("README.md", "report.html", "job.yaml", "manifest.json"):
        yield name, client.get(f"/datasets/{done['dataset']}/files/{name}")
    for mood in (FAILING, "the disk is full"):
        engine.mood = mood
        failed = finished(client, post_job(client, seeds)["id"])
        engine.mood = ""
        assert failed["status"] == "failed"
        yield "failed job", client.get(f"/jobs/{failed['id']}")
    yield "unauthorized", client.get("/jobs", headers={"Authorization": f"Bearer {revoked}x"})
    yield "basic", client.get("/jobs", headers={"Authorization": f"Basic {revoked}"})
    yield "in the path", client.get("/jobs/job_1")
    yield "invalid", client.post("/jobs", json={"seeds": 1, "settings": []})
    yield "keys", client.get("/keys")
    monkeypatch.setattr(api_jobs, "to_estimate", _bug)
    yield "bug", client.post("/jobs/estimate", json={"seeds": seeds, "settings": SETTINGS})


def _bug(*_: Any) -> Any:
    raise KeyError("a bug in the API")


def test_a_new_key_is_shown_once(tmp_path: Path) -> None:
    with running(tmp_path) as world, world.client() as client:
        made = client.post("/keys", json={"name": "n"})
        key = made.json()["key"]
        assert made.headers["Cache-Control"] == "no-store"
        assert key not in client.get("/keys").text
        assert key[:10] == client.get("/keys").json()["data"][0]["hint"]


def test_a_database_that_is_not_there_keeps_its_password(tmp_path: Path, log: io.StringIO) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql://someone:{PASSWORD}@127.0.0.1:1/none?connect_timeout=2"
    engine = open_database(url)
    told: list[str] = [repr(engine), str(engine.url)]
    for work in (lambda: upgrade(engine), lambda: _read(database.Database(engine))):
        with pytest.raises(AfdcError) as caught:
            work()
        told += [str(caught.value), repr(caught.value)]
    for broken in (f"postgresql//someone:{PASSWORD}@h/none", f"mysql://someone:{PASSWORD}@h/none"):
        with pytest.raises(AfdcError) as caught:
            open_database(broken)
        told.append(str(caught.value))
    assert not [one for one in [*told, log.getvalue()] if PASSWORD in one]


def _read(db: database.Database) -> None:
    with db.read():
        raise AssertionError("there is no such database")


def test_strangers_do_not_learn_where_the_database_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "connection to server at 10.9.8.7 failed for user someone"
    with running(tmp_path) as world, world.client() as client:
        job = f"/jobs/job_{'0' * 32}"

        def fail(_self: object) -> Any:
            raise StorageError(words)

        monkeypatch.setattr(database.Database, "read", fail)
        ready, problem = httpx.get(f"{world.address}/readyz"), client.get(job)
        metrics = httpx.get(f"{world.address}/metrics")
        monkeypatch.undo()
        time.sleep(0.1)
    assert ready.status_code == problem.status_code == 503
    assert ready.json()["checks"]["database"] == "does not answer"
    assert problem.headers["Retry-After"]
    assert metrics.status_code == 200
    assert not [reply for reply in (ready, problem, metrics) if "10.9.8.7" in reply.text]
