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
from tests.service.test_limits import idle
from tests.service.world import finished, post_job, post_seeds, running, seed_body


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


def test_a_retry_that_is_sent_twice_is_one_retry(tmp_path: Path) -> None:
    with idle(tmp_path) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        client.post(f"/jobs/{job}/cancel")
        first, second = (client.post(f"/jobs/{job}/retry", headers={"Idempotency-Key": "k"}) for _ in range(2))
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json() == second.json()
        assert "Idempotency-Replayed" not in first.headers
        assert second.headers["Idempotency-Replayed"] == "true"
        assert client.post(f"/jobs/{job}/retry", headers={"Idempotency-Key": "other"}).status_code == 409
        assert client.post(f"/jobs/{job}/retry").status_code == 409
        reused = client.post(f"/jobs/{job}/cancel", headers={"Idempotency-Key": "k"})
        assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")


def test_steering_tells_a_repeat_what_it_told_first(tmp_path: Path) -> None:
    """Although the job has moved on: a reply that was lost is no reason to be told of a conflict."""
    with running(tmp_path) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        told = {}
        for action in ("pause", "resume", "cancel"):
            reply = client.post(f"/jobs/{job}/{action}", headers={"Idempotency-Key": action})
            assert reply.status_code == 200, reply.text
            told[action] = reply.json()
            assert "Location" not in reply.headers
        finished(client, job)
        for action, before in told.items():
            again = client.post(f"/jobs/{job}/{action}", headers={"Idempotency-Key": action})
            assert (again.status_code, again.json()) == (200, before)
        assert client.post(f"/jobs/{job}/resume").status_code == 409
