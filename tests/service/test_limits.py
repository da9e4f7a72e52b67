"""Every limit answers with the right status, and with the time after which it is worth asking again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from afdc_server.db.schema import service_jobs
from afdc_server.service.errors import TooManyError
from afdc_server.service.rates import RateLimit
from tests.fakes.engine import FakeEngine
from tests.service.world import SETTINGS, World, fake_parts, make_settings, post_job, post_seeds, running


@contextmanager
def idle(data: Path, **limits: Any) -> Iterator[World]:
    """A server whose jobs wait: nobody runs them."""
    world = World(make_settings(data, limits=limits), fake_parts(FakeEngine()))
    world.start(with_runner=False)
    try:
        yield world
    finally:
        world.stop()


def refused(reply: httpx.Response, status: int, code: str) -> int:
    """Checks the refusal; returns its Retry-After."""
    assert reply.status_code == status, reply.text
    problem = reply.json()
    assert (problem["code"], problem["retryable"]) == (code, True)
    return int(reply.headers["Retry-After"])


def post(client: httpx.Client, seeds: str, **headers: str) -> httpx.Response:
    return client.post("/jobs", json={"seeds": seeds, "settings": SETTINGS}, headers=headers)


def test_requests_a_minute(tmp_path: Path) -> None:
    with idle(tmp_path, requests_per_minute=30) as world, world.client() as client, world.client() as other:
        replies = [client.get("/jobs") for _ in range(40)]
        assert [reply.status_code for reply in replies[:30]] == [200] * 30
        wait = refused(replies[-1], 429, "too_many_requests")
        assert 1 <= wait <= 3
        assert other.get("/jobs").status_code == 200
        assert client.post("/jobs", content=b"x" * 100_000).status_code == 429
        assert httpx.get(f"{world.address}/healthz").status_code == 200
        time.sleep(wait)
        assert client.get("/jobs").status_code == 200


def test_a_retry_needs_room_as_a_new_job_does(tmp_path: Path) -> None:
    with idle(tmp_path, tenant_jobs=2, queued_jobs=100) as world, world.client() as client:
        seeds = post_seeds(client)
        jobs = []
        for _ in range(3):
            jobs.append(post(client, seeds).json()["id"])
            client.post(f"/jobs/{jobs[-1]}/cancel")
        assert [client.post(f"/jobs/{job}/retry").status_code for job in jobs] == [200, 200, 429]


def test_spent_tokens_stay_spent_when_the_job_is_deleted(tmp_path: Path) -> None:
    with idle(tmp_path, tenant_tokens=100) as world, world.client() as client:
        seeds = post_seeds(client)
        job = post(client, seeds).json()["id"]
        with world.services.db.write() as connection:
            connection.execute(update(service_jobs).values(usage={"prompt_tokens": 90, "completion_tokens": 10}))
        client.post(f"/jobs/{job}/cancel")
        refused(post(client, seeds), 429, "too_many_requests")
        assert client.delete(f"/jobs/{job}").status_code == 200
        refused(post(client, seeds), 429, "too_many_requests")


def test_a_request_counts_once(tmp_path: Path) -> None:
    """The key is looked at before the body and again by the endpoint."""
    with idle(tmp_path, requests_per_minute=10) as world, world.client() as client:
        statuses = [client.post("/predict", json={"texts": []}).status_code for _ in range(10)]
        assert statuses == [422] * 10
        assert client.post("/predict", json={"texts": []}).status_code == 429


def test_buckets_fill_up_again_and_are_forgotten() -> None:
    now = 0.0
    rates = RateLimit(60, clock=lambda: now)
    for _ in range(60):
        rates.take("a")
    with pytest.raises(TooManyError) as caught:
        rates.take("a")
    assert caught.value.retry_after_s == pytest.approx(1)
    now = 2.5
    rates.take("a")
    rates.take("a")
    with pytest.raises(TooManyError):
        rates.take("a")
    for number in range(20_000):
        rates.take(str(number))
    assert len(rates._buckets) <= 10_001


def test_a_flood_of_keys_frees_nobody() -> None:
    now = 0.0
    rates = RateLimit(60, clock=lambda: now)
    for _ in range(60):
        rates.take("spent")
    for number in range(10_100):
        rates.take(str(number))
    with pytest.raises(TooManyError):
        rates.take("spent")


def test_jobs_of_a_tenant(tmp_path: Path) -> None:
    with idle(tmp_path, tenant_jobs=2) as world, world.client() as client, world.client("other") as other:
        seeds = post_seeds(client)
        jobs = [post(client, seeds).json()["id"] for _ in range(2)]
        assert refused(post(client, seeds), 429, "too_many_requests") >= 1
        assert post(other, post_seeds(other)).status_code == 202
        assert client.post(f"/jobs/{jobs[0]}/cancel").status_code == 200
        assert post(client, seeds).status_code == 202


def test_a_full_queue(tmp_path: Path) -> None:
    with idle(tmp_path, queued_jobs=2) as world, world.client() as client, world.client("other") as other:
        seeds = post_seeds(client)
        assert [post(client, seeds).status_code for _ in range(2)] == [202, 202]
        theirs = post_seeds(other)
        assert refused(post(other, theirs, **{"Idempotency-Key": "k"}), 503, "busy") >= 1
        client.post(f"/jobs/{client.get('/jobs').json()['data'][0]['id']}/cancel")
        assert post(other, theirs, **{"Idempotency-Key": "k"}).status_code == 202  # a refusal is not kept


def test_the_token_budget(tmp_path: Path) -> None:
    with idle(tmp_path, tenant_tokens=1000) as world, world.client() as client, world.client("other") as other:
        job = post_job(client, post_seeds(client))["id"]
        with world.services.db.write() as connection:
            spent = {"prompt_tokens": 900, "completion_tokens": 100}
            connection.execute(update(service_jobs).where(service_jobs.c.id == job).values(usage=spent))
        refused(post(client, post_seeds(client)), 429, "too_many_requests")
        assert post(other, post_seeds(other)).status_code == 202


def test_streams_and_waits(tmp_path: Path) -> None:
    with idle(tmp_path, streams=2) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        as_stream = {"Accept": "text/event-stream"}
        with (
            client.stream("GET", f"/jobs/{job}/events", headers=as_stream) as first,
            client.stream("GET", f"/jobs/{job}/events", headers=as_stream) as second,
        ):
            assert first.status_code == second.status_code == 200
            pieces = second.iter_text()  # kept: a generator that is dropped closes its stream
            next(pieces)
            assert refused(client.get(f"/jobs/{job}/events", headers=as_stream), 503, "busy") >= 1
            refused(client.get(f"/jobs/{job}", params={"wait": 5}), 503, "busy")
            assert client.get(f"/jobs/{job}").status_code == 200
            assert client.get(f"/jobs/{job}/events").status_code == 200
        end = time.monotonic() + 5
        while world.services.hub.watchers and time.monotonic() < end:
            time.sleep(0.02)
        with client.stream("GET", f"/jobs/{job}/events", headers=as_stream) as third:
            assert third.status_code == 200


class SlowEngine(FakeEngine):
    """Scores after a while."""

    async def score(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(1.0)
        return await super().score(*args, **options)


def test_texts_of_direct_requests(tmp_path: Path) -> None:
    with running(tmp_path, SlowEngine(), limits={"engine_texts": 8}) as world, world.client() as client:
        task = {"labels": [{"name": "A"}, {"name": "B"}]}
        too_many = client.post("/score", json={"task": task, "texts": ["a"] * 9})
        assert (too_many.status_code, too_many.json()["code"]) == (413, "too_large")
        draws = client.post("/generate", json={"prompts": [{"prompt": "a", "n": 9}]})
        assert draws.status_code == 413
        first: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: first.append(client.post("/score", json={"task": task, "texts": ["a"] * 6}))
        )
        thread.start()
        time.sleep(0.4)
        assert refused(client.post("/score", json={"task": task, "texts": ["a"] * 6}), 503, "busy") == 1
        thread.join()
        assert first[0].status_code == 200
        assert client.post("/score", json={"task": task, "texts": ["a"] * 6}).status_code == 200


def test_rows_and_draws(tmp_path: Path) -> None:
    with idle(tmp_path, seed_rows=10, draws=100) as world, world.client() as client:
        reply = client.post("/seeds", json={"examples": [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(11)]})
        assert (reply.status_code, reply.json()["code"]) == (413, "too_large")
        few = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(4)]
        seeds = client.post("/seeds", json={"examples": few}).json()["id"]
        reply = client.post("/jobs", json={"seeds": seeds, "settings": {"augment": {"variants": 100}}})
        assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/settings/augment/variants")


def test_previews_at_once(tmp_path: Path) -> None:
    engine = FakeEngine(on_call=lambda what: time.sleep(0.5) if what.startswith("generate") else None)
    with running(tmp_path, engine) as world, world.client() as client:
        body = {"seeds": post_seeds(client), "settings": SETTINGS}
        statuses: list[int] = []

        def preview() -> None:
            with suppress(httpx.HTTPError):
                statuses.append(client.post("/jobs/preview", params={"rows": 2}, json=body, timeout=60).status_code)

        threads = [threading.Thread(target=preview) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        begun = time.monotonic()
        assert client.get("/jobs").status_code == 200
        assert time.monotonic() - begun < 3
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 4
