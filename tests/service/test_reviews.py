"""Reviews make versions, and versions never change."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from httpx import AsyncClient, Response
from sqlalchemy import Connection, event, insert, select

from afdc.errors import ConflictError
from afdc.presets import config_hash
from afdc_server.datasets.reviewed import reviewed_examples
from afdc_server.datasets.store import get_dataset
from afdc_server.datasets.verdicts import Verdict
from afdc_server.datasets.versions import Reviewing
from afdc_server.db import schema
from afdc_server.db.open import READ_ONLY
from afdc_server.export.dataset import read_summary, verify_dataset
from afdc_server.service.errors import NotFoundError
from afdc_server.service.ids import DATASET, new_id
from tests.service.datasets_fixture import (
    LABELS,
    OPEN_TASK,
    World,
    card_facts,
    kept_rows,
    left_out,
    make_row,
    rejected_rows,
    running,
)

KEPT = [row["id"] for row in kept_rows()]
LEFT = [row["id"] for row in rejected_rows()]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


def word(row: str, decision: str = "accept", label: str | None = None) -> dict[str, Any]:
    return {"row": row, "decision": decision, **({"label": label} if label is not None else {})}


async def review(client: AsyncClient, id: str, *words: dict[str, Any], reviewer: str = "ada") -> Response:
    return await client.post(f"/datasets/{id}/reviews", json={"reviews": list(words), "reviewer": reviewer})


async def rows_of(client: AsyncClient, id: str, split: str = "default") -> dict[str, dict[str, Any]]:
    reply = await client.get(f"/datasets/{id}/rows", params={"split": split, "limit": 100})
    return {row["id"]: row for row in reply.json()["data"]}


def folder_hash(world: World, id: str) -> str:
    digest = hashlib.sha256()
    for path in sorted((world.settings.data / "artifacts" / "datasets" / id).rglob("*")):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def stored(world: World, id: str) -> Path:
    return world.settings.data / "artifacts" / "datasets" / id


async def test_a_review_makes_a_new_version(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    before = folder_hash(world, id)
    reply = await review(
        client,
        id,
        word(KEPT[7]),
        word(KEPT[8], "relabel", LABELS[0]),
        word(KEPT[9], "reject"),
        word(LEFT[0]),
        word(LEFT[6], "relabel", LABELS[1]),
        word(LEFT[1], "reject"),
    )
    assert reply.status_code == 201, reply.text
    made = reply.json()
    assert reply.headers["location"] == f"/v1/datasets/{made['id']}"
    assert (made["version"], made["parent"], made["reviewed"], made["rows"], made["rejected"]) == (2, id, 6, 31, 6)
    rows, left = await rows_of(client, made["id"]), await rows_of(client, made["id"], "rejected")
    assert list(rows) == [row for row in KEPT if row != KEPT[9]] + sorted([LEFT[0], LEFT[6]])
    assert list(left) == [row for row in LEFT if row not in (LEFT[0], LEFT[6])] + [KEPT[9]]
    assert sum(made["per_label"].values()) == 31
    assert folder_hash(world, id) == before
    assert (await client.get(f"/datasets/{id}")).json()["version"] == 1
    verify_dataset(stored(world, made["id"]))
    done = await client.get(f"/datasets/{made['id']}/rows", params={"review": "done"})
    assert [row["id"] for row in done.json()["data"]] == [KEPT[7], KEPT[8], LEFT[0], LEFT[6]]


async def test_what_a_decision_makes_of_a_row(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    words = [word(KEPT[7]), word(KEPT[8], "relabel", LABELS[0]), word(KEPT[9], "reject"), word(LEFT[0])]
    made = (await review(client, id, *words)).json()["id"]
    old, rows = await rows_of(client, id), await rows_of(client, made)
    same = {"review_state": "accepted", "review_value": 0.0}
    assert rows[KEPT[7]] == {**old[KEPT[7]], **same}
    relabelled = rows[KEPT[8]]
    assert (relabelled["label"], relabelled["source"], relabelled["review_state"]) == (
        LABELS[0],
        "human",
        "relabelled",
    )
    assert (relabelled["confidence"], relabelled["weight"], relabelled["distribution"]) == (1.0, 1.0, [1.0, 0.0, 0.0])
    taken = rows[LEFT[0]]
    assert (taken["source"], taken["reason"], taken["review_state"]) == ("generated", "review", "accepted")
    assert (taken["confidence"], taken["weight"], taken["margin"]) == (1.0, 1.0, 1.0)
    thrown = (await rows_of(client, made, "rejected"))[KEPT[9]]
    assert (thrown["reason"], thrown["review_state"], thrown["weight"]) == ("review", "rejected", 0.0)
    assert (thrown["label"], thrown["confidence"]) == (old[KEPT[9]]["label"], old[KEPT[9]]["confidence"])
    assert rows[KEPT[20]] == old[KEPT[20]]


async def test_versions_build_on_each_other(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    second = (await review(client, id, word(KEPT[9], "reject"), word(KEPT[10]))).json()
    third = (await review(client, second["id"], word(KEPT[9], "relabel", LABELS[2]), word(LEFT[0]))).json()
    assert (third["version"], third["parent"], third["reviewed"]) == (3, second["id"], 3)
    rows = await rows_of(client, third["id"])
    assert (rows[KEPT[9]]["label"], rows[KEPT[9]]["review_state"]) == (LABELS[2], "relabelled")
    assert rows[KEPT[10]]["review_state"] == "accepted"


async def test_the_papers_are_written_again(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    made = (await review(client, id, word(KEPT[9], "reject"))).json()["id"]
    old, new = read_summary(stored(world, id)), read_summary(stored(world, made))
    for name in ("job", "config_hash", "model", "model_revision", "adapter", "labels"):
        assert new[name] == old[name], name
    assert new["config_hash"] == config_hash(card_facts().config)
    assert (new["rows"], new["content_sha256"] != old["content_sha256"]) == (29, True)
    card = (stored(world, made) / "README.md").read_text()
    assert "reviewed by people" in card
    assert "80.0 %" in card, "the accuracy that the job measured"
    assert "too long" in card
    assert "below threshold" in card
    assert (stored(world, made) / "task.json").read_text() == (stored(world, id) / "task.json").read_text()


async def test_a_data_set_whose_job_is_forgotten_can_be_reviewed(world: World) -> None:
    client, id = world.client(), world.add_dataset(job="job_gone")
    made = await review(client, id, word(KEPT[9], "reject"))
    assert made.status_code == 201
    assert "80.0 %" not in (stored(world, made.json()["id"]) / "README.md").read_text()


async def test_a_data_set_of_another_version_of_the_settings_is_refused(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    path = stored(world, id) / "job.yaml"
    path.write_text(path.read_text().replace("preset:", "forgotten_setting: 1\n  preset:"))
    listed = get_files(world, id)
    with world.db.write() as connection:
        files = [{**file, "bytes": path.stat().st_size} if file["path"] == "job.yaml" else file for file in listed]
        connection.execute(schema.datasets.update().where(schema.datasets.c.id == id).values(files=files))
    reply = await review(client, id, word(KEPT[9], "reject"))
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")


def get_files(world: World, id: str) -> list[dict[str, Any]]:
    with world.db.read() as connection:
        return [file.model_dump() for file in get_dataset(connection, "a", id).wire.files]


async def test_open_answers_are_corrected(world: World) -> None:
    rows = [make_row(i, label=f"answer {i}", label_history=[f"answer {i}"]) for i in range(4)]
    client, id = world.client(), world.add_dataset(rows, [], task=OPEN_TASK)
    reply = await review(client, id, word(rows[1]["id"], "relabel", " Paris\n"), word(rows[2]["id"], "reject"))
    assert reply.status_code == 201, reply.text
    found = await rows_of(client, reply.json()["id"])
    assert (found[rows[1]["id"]]["label"], found[rows[1]["id"]]["source"]) == ("Paris", "human")
    assert found[rows[0]["id"]]["label_history"] == ["answer 0"]
    assert rows[2]["id"] not in found
    for wrong in ("", "a\0b"):
        refused = await review(client, id, word(rows[1]["id"], "relabel", wrong))
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/reviews/0/label")


async def test_every_review_that_cannot_be_used_is_named(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    reply = await review(
        client,
        id,
        word(KEPT[7]),
        word("c_none"),
        word(KEPT[7], "reject"),
        word(KEPT[8], "relabel", "billling"),
        word(LEFT[6]),
        word("a\0b"),
    )
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (422, "invalid_reviews")
    assert [(fault["pointer"], fault["code"]) for fault in problem["errors"]] == [
        ("/reviews/1/row", "unknown_row"),
        ("/reviews/2/row", "repeated_row"),
        ("/reviews/3/label", "unknown_label"),
        ("/reviews/4/decision", "no_label"),
        ("/reviews/5/row", "unknown_row"),
    ]
    assert "billing" in problem["errors"][2]["message"]
    assert count(world, schema.reviews) == 0
    assert count(world, schema.datasets) == 1
    assert len(list((world.settings.data / "artifacts" / "datasets").iterdir())) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"reviews": []}', 422),
        (b'{"reviews": [{"row": "s_0", "decision": "relabel"}]}', 422),
        (b'{"reviews": [{"row": "s_0", "decision": "accept", "label": "billing"}]}', 422),
        (b'{"reviews": [{"row": "s_0", "decision": "maybe"}]}', 422),
        (b'{"reviews": [{"row": "s_0", "decision": "accept"}], "more": 1}', 422),
        (b'{"reviews"', 422),
        (b'{"reviews": [{"row": "\\ud800", "decision": "accept"}]}', 422),
        (b"[" * 100_000, 422),
        (b"", 422),
        (b"17", 422),
        (b"\xff", 422),
    ],
)
async def test_a_body_that_is_none_is_422(world: World, body: bytes, status: int) -> None:
    client, id = world.client(), world.add_dataset()
    reply = await client.post(f"/datasets/{id}/reviews", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert count(world, schema.reviews) == 0


async def test_other_types_are_415(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    reply = await client.post(f"/datasets/{id}/reviews", content=b"x", headers={"Content-Type": "text/csv"})
    assert reply.status_code == 415


def count(world: World, table: Any) -> int:
    with world.db.read() as connection:
        return len(list(connection.execute(select(table))))


async def test_to_relabel_with_the_same_label_is_to_accept(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    label = make_row(1)["label"]
    made = (await review(client, id, word(KEPT[7], "relabel", label.upper()))).json()["id"]
    row = (await rows_of(client, made))[KEPT[7]]
    assert (row["review_state"], row["source"], row["confidence"]) == ("accepted", "generated", 0.55)


def accept(row: str) -> Verdict:
    return Verdict(row, "accept", None, "", "", "", "")


def version_of(connection: Connection, made: Any) -> int:
    return int(made.version)


async def test_reviews_at_once_get_versions_of_their_own(world: World) -> None:
    id = world.add_dataset()
    reviewing = Reviewing(world.db, world.artifacts, world.settings.work)
    versions: list[int] = []
    threads = [
        threading.Thread(
            target=lambda at=at: versions.append(reviewing.review("a", id, [accept(KEPT[at])], version_of))
        )
        for at in range(6, 12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [2, 3, 4, 5, 6, 7]
    assert list(world.settings.work.iterdir()) == []


def compete(world: World, times: int) -> None:
    """Somebody else takes the version, just before ours is inserted, so many times."""
    left, busy = [times], [False]

    def take(connection: Connection, clause: Any, *_: Any) -> None:
        if busy[0] or not left[0] or getattr(clause, "table", None) is not schema.datasets or not clause.is_insert:
            return
        left[0], busy[0] = left[0] - 1, True
        connection.execute(insert(schema.datasets).values(dict(clause.compile().params) | {"id": new_id(DATASET)}))
        busy[0] = False

    event.listen(world.db.engine, "before_execute", take)


async def test_a_version_that_is_taken_is_tried_once_more(world: World) -> None:
    id = world.add_dataset()
    compete(world, 1)
    reviewing = Reviewing(world.db, world.artifacts, world.settings.work)
    assert reviewing.review("a", id, [accept(KEPT[7])], version_of) == 2
    assert count(world, schema.reviews) == 1


async def test_a_version_that_is_taken_again_is_a_conflict(world: World) -> None:
    id = world.add_dataset()
    compete(world, 2)
    reviewing = Reviewing(world.db, world.artifacts, world.settings.work)
    with pytest.raises(ConflictError):
        reviewing.review("a", id, [accept(KEPT[7])], version_of)
    assert [count(world, table) for table in (schema.datasets, schema.reviews)] == [1, 0]
    assert len(list((world.settings.data / "artifacts" / "datasets").iterdir())) == 1


async def test_a_data_set_that_is_deleted_meanwhile_gets_no_version(world: World) -> None:
    client, id = world.client(), world.add_dataset()

    def forget(connection: Connection, clause: Any, *_: Any) -> None:
        is_write = not connection.get_execution_options().get(READ_ONLY)
        if is_write and getattr(clause, "is_select", False) and "FROM datasets" in str(clause):
            connection.exec_driver_sql("DELETE FROM datasets")

    event.listen(world.db.engine, "before_execute", forget)
    assert (await review(client, id, word(KEPT[7]))).status_code == 404
    assert len(list((world.settings.data / "artifacts" / "datasets").iterdir())) == 1


async def test_reviewed_rows_are_gold_for_the_next_job(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    second = (await review(client, id, word(KEPT[8]), word(KEPT[9], "reject"), word(LEFT[0]))).json()["id"]
    third = (
        await review(
            client, second, word(KEPT[8], "relabel", LABELS[0]), word(LEFT[0], "reject"), word(KEPT[11]), word("s_1")
        )
    ).json()["id"]
    rows = {row["id"]: row for row in kept_rows() + rejected_rows()}
    with world.db.read() as connection:
        assert reviewed_examples(connection, "a", [id]) == []
        found = reviewed_examples(connection, "a", [second])
        assert {example.id: example.label for example in found} == {
            KEPT[8]: rows[KEPT[8]]["label"],
            LEFT[0]: rows[LEFT[0]]["label"],
        }
        latest = reviewed_examples(connection, "a", [third, second])
        assert {example.id: example.label for example in latest} == {
            KEPT[8]: LABELS[0],
            KEPT[11]: rows[KEPT[11]]["label"],
            "s_1": LABELS[1],
        }
        assert all(example.text == rows[example.id]["text"] for example in latest)
        with pytest.raises(NotFoundError):
            reviewed_examples(connection, "b", [third])


async def test_of_two_rows_with_one_text_the_last_word_counts(world: World) -> None:
    rows = [make_row(0, text="Same text"), make_row(1, text="Same  text"), make_row(2, text="Same text")]
    client, id = world.client(), world.add_dataset(rows, [left_out(0)])
    second = (await review(client, id, word(rows[0]["id"]))).json()["id"]
    third = (await review(client, second, word(rows[1]["id"], "relabel", LABELS[2]))).json()["id"]
    last = (await review(client, third, word(rows[2]["id"], "reject"))).json()["id"]
    with world.db.read() as connection:
        found = reviewed_examples(connection, "a", [last])
    assert [(example.id, example.label) for example in found] == [(rows[1]["id"], LABELS[2])]


async def test_all_rows_may_be_rejected(world: World) -> None:
    rows = [make_row(0), make_row(1)]
    client, id = world.client(), world.add_dataset(rows, [])
    reply = await review(client, id, *(word(row["id"], "reject") for row in rows))
    assert (reply.json()["rows"], reply.json()["rejected"]) == (0, 2)
    assert await rows_of(client, reply.json()["id"]) == {}
