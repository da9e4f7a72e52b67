"""Canaries: all secrets that the server is given, and the engine's host, are planted and looked for everywhere."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from afdc.engine_config import EngineConfig
from afdc.errors import AfdcError, EngineDiedError, StorageError, UsageError
from afdc_server.api import jobs as api_jobs
from afdc_server.artifacts import ArtifactStore
from afdc_server.db import database
from afdc_server.db.migrate import upgrade
from afdc_server.db.open import open_database
from afdc_server.db.schema import service_jobs
from afdc_server.jobs import store
from afdc_server.redact import redact
from afdc_server.remote.server import API_KEY_VARIABLE
from afdc_server.service.serve import configure_logging
from tests.service.cluster import NEEDED, cluster
from tests.service.world import SETTINGS, SlottedEngine, World, events_of, finished, post_job, post_seeds, running

SECRET = hashlib.sha256(b"canary").digest()
PASSWORD = "canary-of-the-database"  # noqa: S105 - planted to be looked for
ENGINE_KEY = "canary-of-the-remote-engine"
STORE_ID, STORE_KEY = "CANARYOFTHESTORE", "canary/of+the@store"
HOST = "canary-host.internal"
PLANTED = (PASSWORD, ENGINE_KEY, STORE_ID, STORE_KEY)
FAILING, AWAY = "boom", f"http://{HOST}:8000 does not answer"


class MoodyEngine(SlottedEngine):
    """Fails when it is told to, once with a bug and once on purpose."""

    mood = ""

    def _call(self, what: str) -> None:
        super()._call(what)
        if self.mood == FAILING:
            raise RuntimeError("a bug in the engine")
        if self.mood == AWAY:
            raise EngineDiedError(AWAY)
        if self.mood:
            raise StorageError(self.mood)


class Haystack:
    """Everything that came out of the server, by where it came from. The engine's host is for the operator."""

    def __init__(self, *needles: bytes) -> None:
        self.needles = needles
        self.searched: list[str] = []

    def search(self, where: str, text: str | bytes, *, for_operator: bool = False) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.searched.append(where)
        for needle in self.needles if for_operator else (*self.needles, HOST.encode()):
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


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings and environment of a server with a remote engine, a bucket and PostgreSQL, where its programs are."""
    monkeypatch.setenv(API_KEY_VARIABLE, ENGINE_KEY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", STORE_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", STORE_KEY)
    engine = EngineConfig(url=f"http://{HOST}:8000", served_model=HOST)
    url = cluster().make().replace("afdc@", f"afdc:{PASSWORD}@") if all(map(shutil.which, NEEDED)) else ""
    return {"config": engine, "artifacts": "memory://afdc-canary", "database_url": url}


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_canary_comes_out(
    tmp_path: Path,
    log: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    planted: dict[str, Any],
    log_format: str,
) -> None:
    data, engine = tmp_path / "data", MoodyEngine()
    data.mkdir()
    (data / "secret").write_bytes(SECRET)
    with running(data, engine, log_format=log_format, **planted) as world:
        configure_logging(world.services.settings)
        key, revoked = world.key(), world.key("gone", "read")
        hay = Haystack(key[10:].encode(), revoked[10:].encode(), *forms(SECRET), *map(str.encode, PLANTED))
        hay.search("settings", repr(world.services), for_operator=True)
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
    hay.search("stderr", captured.err, for_operator=True)
    hay.search("stdout", captured.out)
    for path in sorted(data.rglob("*")):
        if path.is_file() and path != world.services.settings.secret_path:
            hay.search(str(path), path.read_bytes(), for_operator=True)
    assert "unexpected error" in captured.err
    assert "a bug in the engine" in captured.err
    assert AWAY in captured.err
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
    engine.mood = AWAY
    away = client.post("/predict", json={"adapter": done["adapter"], "texts": ["x"]})
    assert (away.status_code, away.json()["code"]) == (503, "engine_died")
    yield "predict", away
    yield "preview", client.post("/jobs/preview", json={"seeds": seeds, "settings": SETTINGS})
    for mood in (FAILING, AWAY, "the disk is full"):
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
    for broken in (
        f"postgresql//someone:{PASSWORD}@h/none",
        f"mysql://someone:{PASSWORD}@h/none",
        f"postgresql://someone:at@{PASSWORD}@h/none",
    ):
        with pytest.raises(AfdcError) as caught:
            open_database(broken)
        told.append(str(caught.value))
    assert not [one for one in [*told, log.getvalue()] if PASSWORD in one]


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{STORE_ID}:{STORE_KEY}@bucket/prefix",
        f"memory://{STORE_ID}:{STORE_KEY}@bucket",
        f"nothing://{STORE_ID}:{STORE_KEY}@bucket",
    ],
)
def test_a_store_whose_url_carries_credentials_is_refused_without_telling_them(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        ArtifactStore(url, tmp_path)
    assert not [one for one in (STORE_ID, STORE_KEY) if one in f"{caught.value} {caught.value!r}"]


def test_errors_name_a_url_without_its_credentials() -> None:
    url = f"ftp://someone:{STORE_KEY}@host/folder@2?token={PASSWORD}"
    told = redact(f"cannot open {url}", url)
    assert (STORE_KEY in told, PASSWORD in told) == (False, False)
    assert redact("no file in s3://bucket/a@b", "s3://bucket/a@b") == "no file in s3://bucket/a@b"


def test_where_the_engine_is_stays_with_the_operator(tmp_path: Path) -> None:
    """Also for jobs that an earlier version has put into the database."""
    engine = EngineConfig(url=f"http://{HOST}:8000", served_model=HOST)
    with running(tmp_path, config=engine) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        finished(client, job)
        with world.services.db.write() as connection:
            config = store.get(connection, "default", job).config
            config["engine"]["url"] = f"http://{HOST}:8000"
            connection.execute(update(service_jobs).where(service_jobs.c.id == job).values(config=config))
        found = client.get(f"/jobs/{job}").json()["config"]["engine"]
        assert "max_loras" in found
        assert not {"url", "served_model", "patience_s"} & set(found)


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
