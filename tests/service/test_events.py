"""Events, uploads and downloads over a network that breaks: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from afdc.files import sha256_file
from afdc.sdk.client import AsyncClient, Client
from afdc_server.api import events as api_events
from afdc_server.jobs.hub import EventHub
from afdc_server.ledger.events import append_event
from tests.service.proxy import Cut, FaultProxy, Plan, always, first, proxied
from tests.service.world import SETTINGS, World, events_of, finished, post_job, post_seeds, running, seed_body, wait_for

MIB = 1 << 20


@dataclass(frozen=True)
class Done:
    """A world with a finished job."""

    world: World
    key: str
    job: str
    dataset: str
    stream: bytes
    events: list[dict[str, Any]]

    def client(self, proxy: FaultProxy, **options: Any) -> Client:
        return Client(proxy.address, self.key, sleep=lambda _: None, **{"max_retries": 6, **options})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with running(tmp_path_factory.mktemp("events")) as world, world.client() as client:
        job = finished(client, post_job(client, post_seeds(client))["id"])
        stream = client.get(f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}).content
        yield Done(world, world.key(), job["id"], job["dataset"], stream, events_of(client, job["id"]))


def ids(done: Done, plan: Plan) -> list[int]:
    with proxied(done.world.address, plan) as proxy, done.client(proxy) as client:
        return [event.id for event in client.jobs.stream(done.job)]


def cut_points(done: Done) -> list[int]:
    """Every byte around some frames' borders, and a spread over the whole stream with its head."""
    size = len(done.stream) + 300
    border = done.stream.index(b"\n\nid: 2\n") + 300
    return [*range(8), *range(border - 12, border + 12), *range(100, size, size // 40)]


def test_a_stream_that_is_cut_anywhere_is_gapless(done: Done) -> None:
    wanted = [one["id"] for one in done.events]
    for after in cut_points(done):
        assert ids(done, first(Cut("down", after))) == wanted, after


def test_a_stream_that_is_cut_again_and_again_gets_there(done: Done) -> None:
    assert ids(done, always(Cut("down", 1500))) == [one["id"] for one in done.events]


def test_a_request_that_is_cut_on_its_way_up(done: Done) -> None:
    wanted = [one["id"] for one in done.events]
    for after in (0, 1, 30, 120):
        assert ids(done, first(Cut("up", after), Cut("up", after))) == wanted


def test_a_running_job_is_followed_through_cuts(done: Done) -> None:
    plan: Plan = lambda number: Cut("down", 900 + 700 * (number % 6))  # noqa: E731 - a plan is a function of one line
    with done.world.client() as plain, proxied(done.world.address, plan) as proxy:
        job = post_job(plain, post_seeds(plain))["id"]
        with done.client(proxy) as client:
            seen = [(event.id, event.kind) for event in client.jobs.stream(job)]
        assert seen == [(one["id"], one["kind"]) for one in events_of(plain, job)]
        assert proxy.connections > 3


def jobs_of(done: Done) -> set[str]:
    with done.world.client() as client:
        return {one["id"] for one in client.get("/jobs", params={"limit": 100}).json()["data"]}


@pytest.mark.parametrize("after", [0, 1, 20, 200])
def test_a_reply_that_is_lost_after_the_commit_makes_one_job(done: Done, after: int) -> None:
    before = jobs_of(done)
    cut = Cut("down", after)
    with (
        done.world.client() as plain,
        proxied(done.world.address, first(cut, cut)) as proxy,
        done.client(proxy) as client,
    ):
        job = client.jobs.create(post_seeds(plain), settings=SETTINGS)
        assert jobs_of(done) - before == {job.id}
        finished(plain, job.id)


def test_an_upload_that_is_cut_anywhere_makes_one_set(done: Done, tmp_path: Path) -> None:
    path = tmp_path / "seeds.csv"
    path.write_text("text,label\n" + "".join(f"a text with number {n},{'ABC'[n % 3]}\n" for n in range(20_000)))
    for after in (0, 100, 400, 70_000, path.stat().st_size - 10):
        before = sets_of(done)
        with proxied(done.world.address, first(Cut("up", after))) as proxy, done.client(proxy) as client:
            made = client.seeds.create(path)
        assert made.report.rows == 20_000
        assert sets_of(done) - before == {made.id}
    for after in (0, 50):
        before = sets_of(done)
        with proxied(done.world.address, first(Cut("down", after))) as proxy, done.client(proxy) as client:
            made = client.seeds.create(path)
        assert sets_of(done) - before == {made.id}


def sets_of(done: Done) -> set[str]:
    with done.world.client() as client:
        return {one["id"] for one in client.get("/seeds", params={"limit": 100}).json()["data"]}


@pytest.mark.parametrize("after", [0, 100, 700, 3000, 12_000])
def test_a_download_that_is_cut_is_whole_in_the_end(done: Done, tmp_path: Path, after: int) -> None:
    plan: Plan = lambda number: Cut("down", after + 900 * number)  # noqa: E731 - a plan is a function of one line
    with proxied(done.world.address, plan) as proxy, done.client(proxy, max_retries=20) as client:
        listed = done_files(done)
        client.datasets.download(done.dataset, tmp_path / "out")
    for path, sha256 in listed.items():
        assert sha256_file(tmp_path / "out" / path) == sha256
    assert not list((tmp_path / "out").rglob("*.part*"))


def done_files(done: Done) -> dict[str, str]:
    with done.world.client() as client:
        return {one["path"]: one["sha256"] for one in client.get(f"/datasets/{done.dataset}").json()["files"]}


def test_fifty_posts_of_one_key_make_one_job(done: Done) -> None:
    before = jobs_of(done)
    with done.world.client() as plain:
        seeds = post_seeds(plain)
    body = {"seeds": seeds, "settings": SETTINGS}
    headers = {"Authorization": f"Bearer {done.key}", "Idempotency-Key": "fifty"}
    gate = threading.Barrier(50)

    def post(_number: int) -> httpx.Response:
        gate.wait(30)
        return httpx.post(f"{done.world.address}/v1/jobs", json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(post, range(50)))
    assert {reply.status_code for reply in replies} <= {202, 409}
    made = {reply.json()["id"] for reply in replies if reply.status_code == 202}
    assert jobs_of(done) - before == made
    assert len(made) == 1
    refused = [reply.json() for reply in replies if reply.status_code == 409]
    assert all(one["code"] == "request_in_flight" and one["retryable"] for one in refused)


async def test_fifty_clients_with_one_key_get_the_same_job(done: Done) -> None:
    before = await asyncio.to_thread(jobs_of, done)
    async with AsyncClient(done.world.address, done.key, max_retries=30) as client:
        seeds = await client.seeds.create([{"text": f"t{n}", "label": "ABC"[n % 3]} for n in range(9)])
        made = await asyncio.gather(
            *(client.jobs.create(seeds.id, settings=SETTINGS, idempotency_key="clients") for _ in range(50))
        )
    assert len({job.id for job in made}) == 1
    assert await asyncio.to_thread(jobs_of, done) - before == {made[0].id}


@pytest.mark.parametrize("id", ["x", "-1", "1.5", "9" * 17, "0" * 30 + "9" * 200, "9" * 6000, "1 2", "\u00b2"])
def test_last_event_ids_that_are_none(done: Done, id: str) -> None:
    with done.world.client() as client:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": id.encode("latin-1")}
        reply = client.get(f"/jobs/{done.job}/events", headers=headers)  # type: ignore[arg-type]  # httpx takes bytes
        assert reply.status_code == 422
        assert reply.json()["code"] == "invalid_input"


def test_a_position_behind_the_last_event_waits_for_more(done: Done) -> None:
    with done.world.client() as client:
        page = client.get(f"/jobs/{done.job}/events", params={"after": 10_000}).json()
        assert (page["data"], page["has_more"]) == ([], False)


def slow_reader(done: Done, job: str) -> socket.socket:
    """Asks for events and reads none."""
    host, port = done.world.address.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
    connection.sendall(f"{head}Authorization: Bearer {done.key}\r\n\r\n".encode())
    return connection


def test_readers_that_do_not_read_cost_little_and_are_dropped(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_events, "SEND_S", 4.0)
    with done.world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        finished(client, job)
        db = done.world.services.db
        for _ in range(10):
            with db.write() as connection:
                for number in range(400):
                    append_event(connection, job, "note", {"text": f"{number} " + "x" * 4000})
        process = psutil.Process()
        before = process.memory_info().rss
        readers = [slow_reader(done, job) for _ in range(40)]
        hub = done.world.services.hub
        wait_for(lambda: hub.watchers == 40, 20)
        time.sleep(2)
        assert (process.memory_info().rss - before) / MIB < 150
        assert client.get(f"/jobs/{job}").status_code == 200
        wait_for(lambda: hub.watchers == 0, 20)
        for reader in readers:
            reader.close()
        with Client(done.world.address, done.key) as sdk:
            assert len(sdk.jobs.events(job, after=3000).data) == 100


def test_a_reader_that_leaves_is_forgotten(done: Done) -> None:
    with done.world.client() as client:
        reply = client.post("/jobs", json={"seeds": post_seeds(client), "settings": SETTINGS})
        readers = [slow_reader(done, reply.json()["id"]) for _ in range(20)]
        for reader in readers:
            reader.close()
        finished(client, reply.json()["id"])
        wait_for(lambda: done.world.services.hub.watchers == 0, 20)
        assert client.post("/seeds", json=seed_body()).status_code == 201


def test_a_long_history_is_told_without_waiting_for_the_poll(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afdc_server.jobs.hub.POLL_S", 3600.0)
    with running(tmp_path) as world, world.client() as client:
        job = post_job(client, post_seeds(client))["id"]
        finished(client, job)
        client.get(f"/jobs/{job}/events", headers={"Accept": "text/event-stream"})
        with world.services.db.write() as connection:
            for number in range(1500):
                append_event(connection, job, "note", {"text": str(number)})
            append_event(connection, job, "job_succeeded", {})
        total = len(events_of(client, job))
        with Client(world.address, world.key()) as reader:
            seen = [event.id for event in reader.jobs.stream(job)]
            assert seen[:10] == list(range(1, 11))
            assert seen == list(range(1, len(seen) + 1))
            first_end = len(seen)
            seen += [event.id for event in reader.jobs.stream(job, after=first_end)]
        assert seen == list(range(1, total + 1))


async def test_watchers_who_have_seen_everything_share_the_look_at_what_is_new(done: Done) -> None:
    hub, last = EventHub(done.world.services.db), done.events[-2]["id"]
    asked: list[int] = []
    real = hub._query

    def query(job: str, after: int) -> Any:
        asked.append(after)
        return real(job, after)

    hub._query = query  # type: ignore[method-assign]
    with hub.watch(done.job) as channel:
        channel.last, channel.stale = last, True
        found = await asyncio.gather(*(hub.read(channel, done.job, last) for _ in range(20)))
    assert [[event.id for event in one] for one in found] == [[last + 1]] * 20
    assert asked == [last]


@pytest.mark.parametrize("beyond", [0, 100_000])
def test_whoever_comes_back_behind_the_last_event_is_told_that_it_was_the_last(done: Done, beyond: int) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(done.events[-1]["id"] + beyond)}
    with done.world.client() as client:
        assert client.get(f"/jobs/{done.job}/events", headers=headers, timeout=10).text == "retry: 1000\n\n"
