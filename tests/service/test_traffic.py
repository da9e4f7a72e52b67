"""What Prometheus hears of requests: routes and never ids, the beginning of an answer, reasons of refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.engine import FakeEngine
from tests.service.test_limits import idle
from tests.service.world import World, fake_parts, make_settings, post_job, post_seeds

JOB = f"job_{3:032x}"
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A server of its own, whose counts begin at zero; its jobs wait."""
    found = World(make_settings(tmp_path, limits={"streams": 1}), fake_parts(FakeEngine()))
    found.start(with_runner=False)
    yield found
    found.stop()


def scrape(world: World) -> Series:
    text = httpx.get(f"{world.address}/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}


def requests_of(world: World) -> dict[tuple[str, str, str], float]:
    """Counts by route, method and status."""
    found = {labels: count for (name, labels), count in scrape(world).items() if name == "afdc_http_requests_total"}
    return {(dict(one)["route"], dict(one)["method"], dict(one)["status"]): count for one, count in found.items()}


def refused_of(world: World) -> dict[str, float]:
    found = {dict(labels).get("reason", ""): n for (name, labels), n in scrape(world).items() if "refused" in name}
    return {reason: count for reason, count in found.items() if count}


def test_requests_are_counted_by_route_method_and_status(world: World) -> None:
    with world.client() as client:
        post_seeds(client)
        for number in range(30):
            assert client.get(f"/jobs/job_{number:032x}").status_code == 404
            client.get(f"/nothing-{number}")
        client.request("BREW", "/jobs")
        client.post("/seeds", content=b"{", headers={"Content-Type": "application/json"})
        httpx.get(f"{world.address}/v1/jobs")
    counts = requests_of(world)
    assert counts["/v1/seeds", "POST", "201"] == 1
    assert counts["/v1/seeds", "POST", "422"] == 1
    assert counts["/v1/jobs/{id}", "GET", "404"] == 30
    assert counts["other", "GET", "404"] == 30
    assert counts["/v1/jobs", "GET", "401"] == 1
    assert not [key for key in counts if "BREW" in key]
    assert not [route for route, _, _ in counts if "nothing" in route or "job_" in route]


def test_an_answer_is_timed_until_it_begins_and_a_wait_is_not(world: World) -> None:
    with world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        client.get(f"/jobs/{job}", params={"wait": 1})
        with client.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as reply:
            lines = reply.iter_lines()  # kept: the stream is closed with it
            next(lines)
            time.sleep(1.5)
            found = scrape(world)
    labels = (("method", "GET"), ("route", "/v1/jobs/{id}/events"))
    assert found["afdc_http_request_seconds_count", labels] == 1
    assert found["afdc_http_request_seconds_sum", labels] < 1
    assert ("afdc_http_request_seconds_count", (("method", "GET"), ("route", "/v1/jobs/{id}"))) not in found
    assert requests_of(world)["/v1/jobs/{id}", "GET", "200"] == 1


def test_refusals_are_counted_by_their_reason(world: World, tmp_path: Path) -> None:
    with world.client() as client:
        path = f"/jobs/{post_job(client, post_seeds(client))['id']}"
        with client.stream("GET", f"{path}/events", headers={"Accept": "text/event-stream"}) as reply:
            lines = reply.iter_lines()  # kept: the stream is closed with it
            next(lines)
            assert client.get(f"{path}/events", headers={"Accept": "text/event-stream"}).status_code == 503
            assert client.get(path, params={"wait": 1}).status_code == 503
    assert refused_of(world) == {"streams": 1, "waits": 1}
    with idle(tmp_path / "other", requests_per_minute=2, queued_jobs=1) as other, other.client() as client:
        assert [client.get("/jobs").status_code for _ in range(4)] == [200, 200, 429, 429]
        assert refused_of(other) == {"requests": 2}
