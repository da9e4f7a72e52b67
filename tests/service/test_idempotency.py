"""The same request twice: over several servers, and where the database's answer is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import Response

from afdc.errors import ConflictError, StorageError
from afdc_server.api.idempotency import Once, answer_once, keep_reply
from afdc_server.db.database import Database
from tests.service.world import finished, post_job, running, seed_body


def test_whoever_comes_second_over_another_server_gets_the_first_ones_reply(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        db, once = world.services.db, Once.of("default", "k", "POST /jobs", {})

        def keep(reply: str) -> Response:
            with db.write() as connection:
                return keep_reply(connection, once, 202, reply, "/v1/jobs/x")

        def work() -> Response:
            keep("first")  # the other server, in the moment between our look and our word
            return keep("second")

        reply = answer_once(db, once, work)
        assert (bytes(reply.body), reply.headers["Idempotency-Replayed"]) == (b"first", "true")


def test_a_conflict_of_another_kind_stays_one(tmp_path: Path) -> None:
    def work() -> Response:
        raise ConflictError("something else")

    with running(tmp_path) as world, pytest.raises(ConflictError, match="something else"):
        answer_once(world.services.db, Once.of("default", "k", "POST /jobs", {}), work)


def test_a_commit_whose_answer_is_lost_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Database.write
    lost: list[str] = []

    @contextmanager
    def write(self: Database) -> Iterator[Any]:
        with real(self) as connection:
            yield connection
        if not lost:
            lost.append("the answer")
            raise StorageError("the connection broke behind the commit")

    with running(tmp_path) as world, world.client() as client:
        client.get("/jobs")  # notes the key's use
        monkeypatch.setattr(Database, "write", write)
        headers = {"Idempotency-Key": "k"}
        assert client.post("/seeds", json=seed_body(), headers=headers).status_code == 503
        again = client.post("/seeds", json=seed_body(), headers=headers)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
        id = again.json()["id"]
        assert client.get(f"/seeds/{id}/examples").json()["data"]
        assert finished(client, post_job(client, id)["id"])["status"] == "succeeded"
