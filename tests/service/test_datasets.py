"""Data sets, pages of their rows and which rows are worth a review."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytest_asyncio
from httpx import AsyncClient

from afdc.errors import StorageError
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.filters import RowFilter, find_rows
from afdc_server.datasets.publish import publish_dataset
from afdc_server.datasets.reading import RowFiles
from afdc_server.datasets.value import Signals, review_value, row_values, signals_of, value_columns
from afdc_server.export.dataset import write_dataset
from tests.service.datasets_fixture import (
    LABELS,
    OPEN_TASK,
    World,
    card_facts,
    kept_rows,
    left_out,
    make_row,
    make_seed,
    rejected_rows,
    running,
)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def read_all(client: AsyncClient, id: str, limit: int = 7, **params: Any) -> list[dict[str, Any]]:
    """Every row, page by page."""
    rows: list[dict[str, Any]] = []
    after = ""
    while True:
        reply = await client.get(f"/datasets/{id}/rows", params={**params, "after": after, "limit": limit})
        assert reply.status_code == 200, reply.text
        page = reply.json()
        assert len(page["data"]) <= limit
        rows += page["data"]
        if not page["has_more"]:
            return rows
        after = page["last_id"]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


async def test_a_data_set_is_told_with_its_counts(world: World) -> None:
    id = world.add_dataset()
    found = (await world.client().get(f"/datasets/{id}")).json()
    assert (found["rows"], found["rejected"], found["version"], found["parent"]) == (30, 7, 1, None)
    assert found["per_label"] == dict.fromkeys(LABELS, 10)
    assert {file["path"] for file in found["files"]} >= {"README.md", "data/train-00000.parquet", "manifest.json"}
    assert found["task"]["labels"][2]["name"] == LABELS[2]
    assert found["created_at"].endswith("Z")


async def test_pages_hold_every_row_once_and_in_order(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    for limit in (1, 7, 30, 100):
        assert ids(await read_all(client, id, limit)) == ids(kept_rows())
    assert ids(await read_all(client, id, split="rejected")) == ids(rejected_rows())
    first = (await client.get(f"/datasets/{id}/rows", params={"limit": 2})).json()
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("0", "1", True)
    behind = (await client.get(f"/datasets/{id}/rows", params={"after": "5000"})).json()
    assert behind == {"data": [], "has_more": False, "first_id": None, "last_id": None}


async def test_a_row_tells_its_story(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    row = (await read_all(client, id))[6]
    made = make_row(0)
    assert {name: row[name] for name in ("id", "text", "label", "distribution", "seed_ids", "scorer", "weight")} == {
        name: made[name] for name in ("id", "text", "label", "distribution", "seed_ids", "scorer", "weight")
    }
    assert row["review_value"] == pytest.approx(1.0)
    dropped = (await read_all(client, id, split="rejected"))[-1]
    assert (dropped["label"], dropped["confidence"], dropped["reason"]) == (None, None, "too_long")


@pytest.mark.parametrize(
    ("params", "keep"),
    [
        ({"label": LABELS[2]}, lambda row: row["label"] == LABELS[2]),
        ({"source": "seed"}, lambda row: row["source"] == "seed"),
        ({"reason": "gold"}, lambda row: row["reason"] == "gold"),
        ({"min_confidence": 0.75}, lambda row: row["confidence"] >= 0.75),
        ({"max_confidence": 0.75}, lambda row: row["confidence"] <= 0.75),
        ({"q": "PARCEL 1"}, lambda row: "parcel 1" in row["text"].lower()),
        ({"q": "包裹", "label": LABELS[0]}, lambda row: "包裹" in row["text"] and row["label"] == LABELS[0]),
        ({"q": "(.*"}, lambda row: False),
        ({"review": "done"}, lambda row: False),
    ],
)
async def test_filters_narrow_rows_down(world: World, params: dict[str, Any], keep: Any) -> None:
    client, id = world.client(), world.add_dataset()
    assert ids(await read_all(client, id, 3, **params)) == ids([row for row in kept_rows() if keep(row)])


async def test_rows_without_a_confidence_are_outside_every_bound(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    assert len(await read_all(client, id, split="rejected", min_confidence=0)) == 5


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 101},
        {"after": "c_1"},
        {"after": "9" * 30},
        {"min_confidence": 2},
        {"min_confidence": "nan"},
        {"split": "all"},
        {"review": "needed", "after": "5000"},
    ],
)
async def test_wrong_parameters_are_422(world: World, params: dict[str, Any]) -> None:
    reply = await world.client().get(f"/datasets/{world.add_dataset()}/rows", params=params)
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")


async def test_the_most_valuable_rows_come_first(world: World) -> None:
    rows = [
        make_seed(0),
        make_row(1, margin=0.9),
        make_row(2, margin=0.9, intended=LABELS[0], label=LABELS[1]),
        make_row(3, margin=0.1),
        make_row(4, margin=0.0, review_state="accepted"),
        make_row(5, margin=0.9, label_history=[LABELS[0], LABELS[1]]),
        make_row(6, margin=1.0),
        make_row(7, margin=0.1),
        make_row(8, margin=None),
        make_row(9, margin=0.9, disagreement=0.5),
    ]
    client, id = world.client(), world.add_dataset(rows)
    expected = [rows[at]["id"] for at in (3, 7, 2, 9, 5, 1)]
    for limit in (1, 2, 3, 100):
        found = await read_all(client, id, limit, review="needed")
        assert ids(found) == expected
    values = [row["review_value"] for row in found]
    assert values == sorted(values, reverse=True)
    assert ids(await read_all(client, id, review="needed", label=LABELS[1])) == [
        rows[at]["id"] for at in (7, 2, 1) if rows[at]["label"] == LABELS[1]
    ]
    assert ids(await read_all(client, id, review="done")) == [rows[4]["id"]]


def signals(margin: float, divided: float = 0.0, off_target: bool = False, flips: float = 0.0) -> Signals:
    return Signals(np.array([margin]), np.array([divided]), np.array([off_target]), np.array([flips]))


def test_the_value_of_a_review() -> None:
    assert review_value(signals(1.0)) == 0
    assert review_value(signals(0.0)) == 1
    assert review_value(signals(float("nan"), divided=1.0)) == 0
    assert review_value(signals(1.0, divided=1.0)) == 0.5
    assert review_value(signals(1.0, divided=1.0, off_target=True, flips=1.0)) == pytest.approx(1 - 0.5 * 0.5 * 0.75)
    more = [signals(0.4), signals(0.4, flips=0.5), signals(0.4, flips=1.0), signals(0.4, divided=0.9)]
    more += [signals(0.4, off_target=True), signals(0.4, off_target=True, divided=1.0)]
    values = [float(review_value(one)[0]) for one in more]
    assert values == sorted(values)


def test_signals_are_read_off_rows() -> None:
    a, b = LABELS[:2]
    rows = [
        make_row(0, label=a, intended=a, label_history=[a, b, b, a]),
        make_row(1, label=a, intended=b, label_history=["", a, a], reason="labellers_disagree"),
        make_row(2, label=None, intended=None, label_history=[], margin=None),
        make_row(3, label=a, intended=a, label_history=[a], disagreement=math.log(2) / 4),
    ]
    columns = value_columns(is_open=False)
    batch = pa.RecordBatch.from_pylist([{name: row[name] for name in columns} for row in rows])
    for part, start in ((batch, 0), (batch.slice(1), 1), (batch.slice(2), 2), (batch.slice(4), 4)):
        found = signals_of(part)
        assert found.divided.tolist() == pytest.approx([0, 1, 0, 0.25][start:])
        assert found.off_target.tolist() == [False, True, False, False][start:]
        assert found.flips.tolist() == pytest.approx([2 / 3, 0, 0, 0][start:])
        assert np.isnan(found.margin).tolist() == [False, False, True, False][start:]
    assert row_values(batch)[2] == 0
    older = batch.select([name for name in columns if name != "disagreement"])
    assert signals_of(older).divided.tolist() == [0, 1, 0, 0]


async def test_open_tasks_have_answers_in_place_of_labels(world: World) -> None:
    rows = [make_row(i, label=f"answer {i}", label_history=["x", f"answer {i}"]) for i in range(12)]
    client, id = world.client(), world.add_dataset(rows, [], task=OPEN_TASK)
    found = await read_all(client, id)
    assert [row["label"] for row in found] == [row["label"] for row in rows]
    assert (found[3]["label_history"], found[3]["distribution"]) == (["x", "answer 3"], [])
    assert ids(await read_all(client, id, label="answer 3")) == [rows[3]["id"]]
    needed = await read_all(client, id, 5, review="needed")
    assert len(needed) == 12
    assert (await client.get(f"/datasets/{id}")).json()["per_label"] == {}
    assert await read_all(client, id, split="rejected") == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RowFiles:
    """20,000 rows in several row groups."""
    root = tmp_path_factory.mktemp("large")
    rows = (make_row(i, text=f"{i} " + "word " * 60, margin=(i * 7919 % 20_000) / 20_000) for i in range(20_000))
    write_dataset(root / "dataset", rows, [], card_facts())
    artifacts = ArtifactStore((root / "store").as_uri(), root / "cache")
    facts = publish_dataset(artifacts, root / "dataset", "ds_1")
    return RowFiles(artifacts, facts.location, facts.files, "data")


def test_rows_are_found_across_row_groups(large: RowFiles) -> None:
    numbers = [19_999, 0, 4095, 4096, 12_345, 4096]
    assert [row["id"] for row in large.take(numbers).to_pylist()] == [f"c_{i:016x}" for i in numbers]
    assert large.take([20_000, 5], ["id"]).to_pylist() == [{"id": f"c_{5:016x}"}]
    assert large.take([]).num_rows == 0
    assert large.take([], ["id"]).schema.names == ["id"]
    first, batch = next(large.batches(["id"], 5000))
    assert (first, batch.column(0)[0].as_py()) == (5000, f"c_{5000:016x}")
    assert sum(len(batch) for _, batch in large.batches(["id"], 5000)) == 15_000


def test_most_valuable_is_a_full_sort_cut_off(large: RowFiles) -> None:
    values = [(-(1 - (i * 7919 % 20_000) / 20_000), i) for i in range(20_000)]
    expected = [i for _, i in sorted(values)]
    wanted = RowFilter(review="needed")
    found = find_rows(large, wanted, -1, 50, is_open=False)
    assert found == expected[:50]
    assert find_rows(large, wanted, found[-1], 50, is_open=False) == expected[50:100]


def test_memory_does_not_grow_with_the_rows(large: RowFiles) -> None:
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    most = 0
    for _, batch in large.batches():
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12 << 20, "20,000 rows hold more than 12 MiB, 1,024 of them far less"
    assert peak < 4 << 20


def test_rows_are_read_from_stores_that_are_no_folder(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", kept_rows(), rejected_rows(), card_facts())
    artifacts = ArtifactStore("memory://afdc-test-rows", tmp_path / "cache")
    facts = publish_dataset(artifacts, tmp_path / "dataset", "ds_1")
    files = RowFiles(artifacts, facts.location, facts.files, "rejected")
    assert ids(list(files.rows())) == ids(rejected_rows())
    assert find_rows(files, RowFilter(reason="too_long"), -1, 9, is_open=False) == [5, 6]
    artifacts.delete(facts.location)


async def test_a_damaged_file_is_a_problem(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    path = Path(world.settings.data / "artifacts" / "datasets" / id / "data" / "train-00000.parquet")
    path.write_bytes(path.read_bytes()[:-200])
    reply = await client.get(f"/datasets/{id}/rows")
    assert (reply.status_code, reply.json()["code"]) == (503, "storage")
    assert str(world.root) not in reply.text


def test_a_folder_that_is_not_what_its_manifest_lists_is_not_published(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", [make_row(0)], [left_out(0)], card_facts())
    (tmp_path / "dataset" / "README.md").write_text("another")
    artifacts = ArtifactStore((tmp_path / "store").as_uri(), tmp_path / "cache")
    with pytest.raises(StorageError, match="not what its manifest lists"):
        publish_dataset(artifacts, tmp_path / "dataset", "ds_1")
