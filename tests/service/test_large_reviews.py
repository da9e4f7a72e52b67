"""An export of Label Studio that is larger than other JSON bodies may be: whole or not at all, and in nobody's way."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from afdc import Client
from afdc.sdk.exceptions import InvalidRequestError
from afdc_server.api import arrays
from afdc_server.datasets.publish import insert_dataset, publish_dataset
from afdc_server.export.dataset import write_dataset
from afdc_server.service.ids import DATASET, new_id
from tests.fakes.engine import FakeEngine
from tests.service import datasets_fixture
from tests.service.datasets_fixture import LABELS, card_facts, kept_rows, make_row
from tests.service.test_bad_input import MIB, Watched, refused
from tests.service.world import World, fake_parts, make_settings

KEPT = [row["id"] for row in kept_rows()]
KIB = 1 << 10


@contextmanager
def serving(data: Path, rows: int, **limits: Any) -> Iterator[tuple[World, str, httpx.Client]]:
    """A whole server with a data set of so many rows: the server, the id and a client."""
    world = World(make_settings(data, limits=limits), fake_parts(FakeEngine()))
    world.start(with_runner=False)
    try:
        id = new_id(DATASET)
        write_dataset(data / "made", (make_row(i) for i in range(rows)), iter([]), card_facts())
        facts = publish_dataset(world.services.artifacts, data / "made", id)
        with world.services.db.write() as connection:
            insert_dataset(connection, "default", "job_gone", id, facts, version=1, parent=None, reviewed=0)
        with world.client() as client:
            yield world, id, client
    finally:
        world.stop()


def task_of(row: str, label: str = LABELS[0], padding: int = 0) -> dict[str, Any]:
    region = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
    annotation = {"id": 1, "completed_by": 7, "result": [region], "lead_time": 2.5, "history": "x" * padding}
    data = {"text": 'a "text" {with} [all] \\ kinds, 技术问题', "afdc_row": row}
    return {"id": 1, "data": data, "annotations": [annotation]}


def tasks_of(rows: int, padding: int) -> list[dict[str, Any]]:
    return [task_of(make_row(i)["id"], padding=padding) for i in range(rows)]


def post(client: httpx.Client, id: str, body: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return client.post(f"/datasets/{id}/reviews", content=body, headers=headers, timeout=120)


def left_over(world: World) -> list[str]:
    """What an upload has left in the data folder, and versions beyond the first."""
    data = world.services.settings.data
    spool = [path.name for path in (data / "uploads").glob("*")]
    return spool + [path.name for path in (data / "artifacts" / "datasets").iterdir()][1:]


def test_ten_thousand_tasks_are_one_version_and_hold_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path, 10_000) as (world, id, client):
        body = json.dumps(tasks_of(10_000, padding=2900)).encode()
        assert len(body) > 30 * MIB
        replies: list[httpx.Response] = []
        posting = threading.Thread(target=lambda: replies.append(post(client, id, body)))
        with Watched(150, 100), world.client() as other:
            posting.start()
            seen = 0
            while posting.is_alive():
                assert other.get("/jobs").status_code == 200
                seen += 1
            posting.join()
        assert replies[0].status_code == 201, replies[0].text
        assert (replies[0].json()["version"], replies[0].json()["reviewed"]) == (2, 10_000)
        assert seen > 20
        assert len(left_over(world)) == 1, "the new version, and nothing of the upload"


def test_what_is_over_the_limit_is_refused_with_it(tmp_path: Path) -> None:
    with serving(tmp_path, 30, json_bytes=64 * KIB, review_bytes=256 * KIB) as (world, id, client):
        large = json.dumps(tasks_of(30, padding=10 * KIB)).encode()
        for sent in (post(client, id, large), client.post(f"/datasets/{id}/reviews", content=iter([large]))):
            problem = refused(sent, 413)
            assert (problem["code"], "262,144 bytes" in problem["detail"]) == ("too_large", True)
            assert "fewer tasks" in problem["detail"]
        own = {"reviews": [{"row": make_row(0)["id"], "decision": "accept"}], "reviewer": "x", "a": "y" * 65 * KIB}
        assert "export" in refused(post(client, id, json.dumps(own).encode()), 413)["detail"]
        one = [task_of(make_row(0)["id"], padding=100 * KIB)]
        assert "element 0" in refused(post(client, id, json.dumps(one).encode()), 413)["detail"]
        assert left_over(world) == []
        others = {"content": large, "headers": {"Content-Type": "application/json"}}
        assert "65,536" in refused(client.post("/jobs", **others), 413)["detail"]
        assert client.post("/jobs", content=large, headers={"Content-Type": "text/csv"}).status_code == 413
        assert post(client, id, json.dumps(tasks_of(30, padding=5 * KIB)).encode()).json()["reviewed"] == 30


def test_the_sdk_carries_such_a_file(tmp_path: Path) -> None:
    path, limits = tmp_path / "export.json", {"json_bytes": 64 * KIB, "review_bytes": 4 * MIB}
    with serving(tmp_path / "data", 30, **limits) as (world, id, _), Client(world.address, world.key()) as client:
        path.write_text(json.dumps(tasks_of(30, padding=50 * KIB)))
        made = client.datasets.review_file(id, path)
        assert made.dataset.reviewed == 30
        assert client.datasets.review_file(id, path).id == made.id
        path.write_text(json.dumps(tasks_of(30, padding=MIB)))
        with pytest.raises(InvalidRequestError, match="larger than 4,194,304 bytes"):
            client.datasets.review_file(id, path)


@pytest_asyncio.fixture
async def small(tmp_path: Path) -> AsyncIterator[datasets_fixture.World]:
    async with datasets_fixture.running(tmp_path) as made:
        yield made


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("spaces", ["", "\n\t ", "\ufeff"])
async def test_where_the_body_is_cut_makes_no_difference(
    small: datasets_fixture.World, monkeypatch: pytest.MonkeyPatch, block: int, spaces: str
) -> None:
    monkeypatch.setattr(arrays, "BLOCK", block)
    ids = [KEPT[at] for at in range(6, 12)]
    extras: list[dict[str, Any]] = [{"data": {"a": [-1.5e-7, 12345678901234567890, None, True, "\u2028\\u0041"]}}, {}]
    body = [*extras, *(task_of(id, LABELS[2]) for id in ids)]
    text = spaces + json.dumps(body, ensure_ascii=False, indent=1 if spaces else None) + spaces.strip("\ufeff")
    reply = await send(small, text.encode())
    assert reply.status_code == 201, reply.text
    assert reply.json()["reviewed"] == 6


async def send(world: datasets_fixture.World, body: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return await world.client().post(f"/datasets/{world.add_dataset()}/reviews", content=body, headers=headers)


GOOD = json.dumps(task_of(KEPT[6])).encode()


@pytest.mark.parametrize("block", [5, 1 << 18])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"[" + GOOD, ""),
        (b"[" + GOOD + b",", "/1"),
        (b"[" + GOOD + b",]", "/1"),
        (b"[" + GOOD + b" " + GOOD + b"]", ""),
        (b"[" + GOOD + b"] []", ""),
        (b"[" + GOOD + b', {"data": {"text": "x}]', "/1"),
        (b"[" + GOOD + b', {"data": {"text": x}}]', "/1"),
        (b"[" + GOOD + b', {"data": ' + b"[" * 100_000, "/1"),
        (b"[" + GOOD + b', {"data": {"text": "\\ud800"}}]', "/1"),
        (b"[" + GOOD + b", " + b"1" * 100_000 + b"]", "/1"),
        (b"[" + GOOD + b', {"data": {"text": "\xff"}}]', ""),
        (b"[" + GOOD + b', "no task"]', "/1"),
        (b"[" + b"{}, " * 10_000 + GOOD + b"]", ""),
    ],
)
async def test_what_is_broken_is_named_and_nothing_is_stored(
    small: datasets_fixture.World, monkeypatch: pytest.MonkeyPatch, block: int, body: bytes, pointer: str
) -> None:
    monkeypatch.setattr(arrays, "BLOCK", block)
    reply = await send(small, body)
    assert reply.status_code == 422, reply.text
    assert [fault["pointer"] for fault in reply.json()["errors"]] == [pointer]
    assert len(list((small.settings.data / "artifacts" / "datasets").iterdir())) == 1
    assert list((small.settings.data / "uploads").iterdir()) == []
