"""A tenant's own limits: how they are set, that each is obeyed, and what happens when its tokens are spent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from afdc.errors import StorageError
from afdc.task import Task
from afdc_pipeline.seams import Generated, GenerateRequest, Scores
from afdc_server.accounts.limits import spent_tokens
from afdc_server.engine.metering import charge
from afdc_server.service.main import app
from tests.service.test_limits import idle, refused
from tests.service.world import SETTINGS, SlottedEngine, events_of, finished, post_job, post_seeds, running, wait_for

EACH = 20  # tokens of a text that is scored, or of a prompt that is continued
TEXTS = ["river lamp ALPHA"]


class Charging(SlottedEngine):
    """Tells who pays what, as the real engine does."""

    async def score(self, texts: Sequence[str], task: Task, adapter: str | None = None) -> Scores:
        charge(EACH * len(texts), 0, 0)
        return await super().score(texts, task, adapter)

    async def generate(self, requests: Sequence[GenerateRequest], task: Task | None = None) -> AsyncIterator[Generated]:
        async for one in super().generate(requests, task):
            charge(EACH, 0, 0)
            yield one


def put(client: httpx.Client, tenant: str, **limits: Any) -> dict[str, Any]:
    reply = client.put(f"/tenants/{tenant}/limits", json=limits)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def tokens(job: dict[str, Any]) -> int:
    return int(job["usage"]["prompt_tokens"] + job["usage"]["completion_tokens"])


def test_they_are_set_read_and_taken_back(tmp_path: Path) -> None:
    with idle(tmp_path, tenant_jobs=7) as world, world.client() as admin:
        assert admin.get("/tenants/team").status_code == 404
        made = put(admin, "team", tenant_tokens=5, draws=100)
        assert admin.get("/tenants/team").json() == made
        assert {name: value for name, value in made["limits"].items() if value} == {"tenant_tokens": 5, "draws": 100}
        effective = made["effective"]
        assert (effective["tenant_tokens"], effective["draws"], effective["tenant_jobs"]) == (5, 100, 7)
        assert put(admin, "team", tenant_jobs=1)["effective"]["tenant_tokens"] is None
        with world.client("team", "read", "jobs") as client:
            assert client.get("/tenants/team").status_code == 403
            assert client.put("/tenants/team/limits", json={}).status_code == 403


@pytest.mark.parametrize("limits", [{"tenant_tokens": 0}, {"draws": "many"}, {"queued_jobs": 5}, {"json_bytes": 2000}])
def test_what_is_no_limit_of_a_tenant_is_refused(tmp_path: Path, limits: dict[str, Any]) -> None:
    with idle(tmp_path) as world, world.client() as admin:
        reply = admin.put("/tenants/team/limits", json=limits)
        assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, f"/{next(iter(limits))}")
        assert admin.put("/tenants/Not a name/limits", json={}).status_code == 422
        assert admin.get("/tenants/team").status_code == 404


def test_the_operators_command(tmp_path: Path) -> None:
    def run(*given: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["set-limits", "--data", str(tmp_path), "--tenant", "team", *given])
        return done.exit_code, done.output

    assert run("tenant_tokens=500", "draws=9") == (0, "draws=9\ntenant_tokens=500\n")
    assert run("draws=none") == (0, "tenant_tokens=500\n")
    assert run() == (0, "tenant_tokens=500\n")
    for wrong in ("draws", "draws=x", "queued_jobs=1"):
        code, told = run(wrong)
        assert (code, wrong.partition("=")[0] in told) == (5 if "=" in wrong else 2, True)
    with idle(tmp_path) as world, world.client() as admin:
        assert admin.get("/tenants/team").json()["limits"]["tenant_tokens"] == 500


def test_limits_of_requests_and_jobs(tmp_path: Path) -> None:
    with idle(tmp_path) as world, world.client() as admin, world.client("team") as client:
        seeds = post_seeds(client)
        wanted = {"seeds": seeds, "settings": SETTINGS}
        put(admin, "team", draws=100)
        reply = client.post("/jobs", json=wanted)
        assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/settings/augment/variants")
        assert admin.post("/jobs", json={**wanted, "seeds": post_seeds(admin)}).status_code == 202
        put(admin, "team", tenant_jobs=1)
        assert client.post("/jobs", json=wanted).status_code == 202
        refused(client.post("/jobs", json=wanted), 429, "too_many_requests")
        put(admin, "team", seed_rows=3, unlabeled_rows=1)
        rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(4)]
        assert client.post("/seeds", json={"examples": rows}).status_code == 413
        lines = {"content": b"one\ntwo\n", "headers": {"Content-Type": "text/plain"}}
        assert client.post("/seeds", params={"kind": "unlabeled"}, **lines).status_code == 413
        assert admin.post("/seeds", params={"kind": "unlabeled"}, **lines).status_code == 201


def test_requests_a_minute(tmp_path: Path) -> None:
    with idle(tmp_path, requests_per_minute=60) as world, world.client() as admin, world.client("team") as client:
        put(admin, "team", requests_per_minute=2)
        statuses = [client.get("/jobs").status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert admin.get("/jobs").status_code == 200


def test_jobs_at_once(tmp_path: Path) -> None:
    engine = SlottedEngine(on_call=lambda _: time.sleep(0.05))
    with running(tmp_path, engine) as world, world.client() as admin, world.client("team") as client:
        put(admin, "team", tenant_running=1)
        seeds = post_seeds(client)
        jobs = [post_job(client, seeds)["id"] for _ in range(2)]
        seen: set[tuple[str, ...]] = set()

        def ended() -> bool:
            found = sorted(client.get(f"/jobs/{job}").json()["status"] for job in jobs)
            seen.add(tuple(found))
            return found == ["succeeded", "succeeded"]

        wait_for(ended, 120)
        assert ("queued", "running") in seen
        assert ("running", "running") not in seen


def test_a_running_job_stops_when_the_tokens_are_spent_and_keeps_what_is_finished(tmp_path: Path) -> None:
    with running(tmp_path, Charging()) as world, world.client() as admin, world.client("team") as client:
        seeds = post_seeds(client)
        whole = tokens(finished(client, post_job(client, seeds)["id"]))
        spent = admin.get("/tenants/team").json()["spent_tokens"]
        assert spent == whole > 1000
        put(admin, "team", tenant_tokens=spent + whole * 3 // 4)
        job = post_job(client, seeds)["id"]
        failed = finished(client, job)
        assert failed["status"] == "failed"
        error = failed["error"]
        assert (error["code"], error["category"], error["retryable"]) == ("token_budget", "user", False)
        assert f"{spent + whole * 3 // 4:,} are allowed" in error["message"]
        assert whole * 3 // 4 <= tokens(failed) < whole
        rounds = client.get(f"/jobs/{job}/rounds").json()["data"]
        kept = client.get(f"/jobs/{job}/checkpoints").json()["data"]
        assert {one["adapter"] for one in rounds} <= {one["name"] for one in kept}
        assert rounds
        refused(client.post(f"/jobs/{job}/retry"), 429, "too_many_requests")
        put(admin, "team")
        assert client.post(f"/jobs/{job}/retry").status_code == 200
        assert finished(client, job)["status"] == "succeeded"
        starts = [one["data"]["stage"] for one in events_of(client, job) if one["kind"] == "stage_finished"]
        assert starts.count("generate") == 2, "what is finished is not done again"


def test_direct_requests_and_previews_count_and_are_refused_when_nothing_is_left(tmp_path: Path) -> None:
    with running(tmp_path, Charging()) as world, world.client() as admin, world.client("team") as client:
        seeds = post_seeds(client)
        job = finished(client, post_job(client, seeds)["id"])["id"]
        task = {"labels": [{"name": "A"}, {"name": "B"}]}
        asked: dict[str, dict[str, Any]] = {
            "/predict": {"job": job, "texts": TEXTS},
            "/score": {"task": task, "texts": TEXTS},
            "/generate": {"prompts": [{"prompt": "a"}]},
            "/jobs/preview": {"seeds": seeds, "settings": SETTINGS},
        }

        def spent() -> int:
            world.services.budgets.save()
            return int(admin.get("/tenants/team").json()["spent_tokens"])

        for path, body in asked.items():
            before = spent()
            reply = client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            assert spent() - before == EACH if path != "/jobs/preview" else spent() > before
        put(admin, "team", tenant_tokens=spent() + 1)
        assert client.post("/predict", json=asked["/predict"]).status_code == 200  # the last one
        for path, body in asked.items():
            refused(client.post(path, json=body), 429, "too_many_requests")


def test_a_kept_count_outlives_the_server(tmp_path: Path) -> None:
    with running(tmp_path, Charging()) as world, world.client() as client:
        job = finished(client, post_job(client, post_seeds(client))["id"])
        assert client.post("/predict", json={"job": job["id"], "texts": TEXTS}).status_code == 200
    with idle(tmp_path) as world, world.client() as client:
        assert client.get("/tenants/default").json()["spent_tokens"] == tokens(job) + EACH


def test_a_save_returns_when_what_another_thread_is_writing_is_written(tmp_path: Path) -> None:
    with idle(tmp_path) as world, ThreadPoolExecutor() as threads:
        budgets, database = world.services.budgets, world.services.db
        world.key()  # makes the tenant
        budgets.spend("default", EACH)
        with database.write():
            saves = [threads.submit(budgets.save) for _ in range(2)]  # one has the count, and waits for the database
            assert not wait(saves, timeout=0.5, return_when=FIRST_COMPLETED).done
        for save in saves:
            save.result(timeout=30)
        with database.read() as connection:
            assert spent_tokens(connection, "default") == EACH


def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StorageError("the database is away")

    with idle(tmp_path) as world:
        budgets, database = world.services.budgets, world.services.db
        world.key()
        budgets.spend("default", EACH)
        with monkeypatch.context() as broken:
            broken.setattr(database, "write", away)
            with pytest.raises(StorageError):
                budgets.save()
        for _ in range(2):  # and once
            budgets.save()
        with database.read() as connection:
            assert spent_tokens(connection, "default") == EACH
