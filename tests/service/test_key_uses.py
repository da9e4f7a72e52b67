"""When a key was last used is told later, and no request waits for a writer of the database over it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import event

from afdc_server.accounts import uses
from tests.fakes.engine import FakeEngine
from tests.service.cluster import cluster
from tests.service.world import World, fake_parts, make_settings, wait_for

SOON_S = 0.05


@contextmanager
def serving(data: Path, **options: Any) -> Iterator[World]:
    """A server whose runner, which writes too, is not started."""
    world = World(make_settings(data, **options), fake_parts(FakeEngine()))
    world.start(with_runner=False)
    try:
        yield world
    finally:
        world.stop()


@contextmanager
def locked(data: Path, url: str) -> Iterator[None]:
    """Somebody else's transaction that holds the keys until the end of the block."""
    if url:
        with psycopg.connect(url) as other:
            other.execute("SELECT * FROM api_keys FOR UPDATE")
            yield
            other.rollback()
    else:
        with closing(sqlite3.connect(data / "afdc.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


def used(client: httpx.Client) -> dict[str, str]:
    """Times of use by name, of the keys that have one."""
    listed = client.get("/keys", params={"limit": 100}).json()["data"]
    return {one["name"]: one["last_used_at"] for one in listed if one["last_used_at"]}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_locked_database_holds_up_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A writer would wait for 20 s and more: the lock ends after the answers, and the answers come all the same."""
    monkeypatch.setattr(uses, "EVERY_S", SOON_S)
    url = cluster().make() if kind == "postgresql" else ""
    with serving(tmp_path, database_url=url) as world, world.client() as operator, ExitStack() as stack:
        made = [operator.post("/keys", json={"name": f"user {n}"}).json()["key"] for n in range(3)]
        clients = [stack.enter_context(client_of(world, key)) for key in made]
        wait_for(lambda: used(operator))  # its own
        with locked(tmp_path, url):
            begun = time.time()
            for client in clients:
                assert client.get("/jobs").status_code == 200
            time.sleep(4 * SOON_S)  # so that the first try meets the lock
            assert not [name for name in used(operator) if name.startswith("user")]
        found = wait_for(lambda: times if len(times := used(operator)) >= 4 else None)
        assert {f"user {n}" for n in range(3)} <= found.keys()
        assert all(time.time() >= stamp(one) >= begun - 1 for name, one in found.items() if name.startswith("user"))


def client_of(world: World, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=f"{world.address}/v1", headers=headers, timeout=10)


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_lock_that_outlasts_a_try_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "EVERY_S", SOON_S)
    monkeypatch.setattr("afdc_server.db.open.BUSY_TIMEOUT_S", 0.1)
    with serving(tmp_path) as world, world.client() as operator:
        with locked(tmp_path, ""):
            assert operator.get("/jobs").status_code == 200
            time.sleep(0.5)
            assert not used(operator)
        wait_for(lambda: used(operator))


def test_all_keys_are_written_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "EVERY_S", 1.0)
    written: list[int] = []

    def count(*arguments: Any) -> None:
        statement, values = arguments[2], arguments[3]
        if statement.startswith("UPDATE api_keys"):
            written.append(len(values))

    with serving(tmp_path) as world, ExitStack() as stack:
        clients = [stack.enter_context(world.client()) for _ in range(20)]
        event.listen(world.services.db.engine, "before_cursor_execute", count)
        for client in [*clients, *clients]:
            assert client.get("/jobs").status_code == 200
        wait_for(lambda: sum(written) >= 20)
        assert len(written) < 5


def test_an_orderly_end_writes_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "EVERY_S", 3600.0)
    with serving(tmp_path) as world, world.client() as client:
        assert client.get("/jobs").status_code == 200
        assert not used(client)
    with closing(sqlite3.connect(tmp_path / "afdc.db")) as database:
        assert database.execute("SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL").fetchone() == (1,)


def test_an_end_does_not_wait_for_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "STOP_S", 0.2)
    with ExitStack() as stack:
        with serving(tmp_path) as world, world.client() as client:
            assert client.get("/jobs").status_code == 200
            stack.enter_context(locked(tmp_path, ""))
            begun = time.monotonic()
        assert time.monotonic() - begun < 15
