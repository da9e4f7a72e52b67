"""The export formats, read back by what reads them elsewhere."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from httpx import Response

from afdc.prompting import system_prompt
from afdc.wire.datasets import EXPORT_FORMATS
from afdc_server.artifacts import ArtifactStore
from afdc_server.datasets.export import FORMATS, csv_cell
from afdc_server.datasets.publish import publish_dataset
from afdc_server.datasets.sinks import parquet_pieces, zip_pieces
from afdc_server.export.dataset import verify_dataset, write_dataset
from afdc_server.export.schema import AUDIT_COLUMNS
from tests.service.datasets_fixture import (
    OPEN_TASK,
    TASK,
    World,
    card_facts,
    kept_rows,
    make_row,
    rejected_rows,
    running,
)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def export(world: World, id: str, format: str, split: str = "default") -> Response:
    return await world.client().get(f"/datasets/{id}/export", params={"format": format, "split": split})


def lines(reply: Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.content.decode().splitlines()]


def audit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in AUDIT_COLUMNS} for row in rows]


def test_every_format_has_a_writer() -> None:
    assert set(FORMATS) == set(EXPORT_FORMATS)


async def test_jsonl_is_every_column_of_every_row(world: World) -> None:
    id = world.add_dataset()
    reply = await export(world, id, "jsonl")
    assert lines(reply) == audit(kept_rows())
    assert reply.headers["content-type"] == "application/jsonl"
    assert f'filename="{id}.jsonl"' in reply.headers["content-disposition"]
    rejected = await export(world, id, "jsonl", "rejected")
    assert lines(rejected) == audit(rejected_rows())
    assert f'filename="{id}-rejected.jsonl"' in rejected.headers["content-disposition"]


async def test_not_a_number_becomes_null(world: World) -> None:
    id = world.add_dataset([make_row(0, confidence=float("nan"), distribution=[float("nan")] * 3)])
    row = lines(await export(world, id, "jsonl"))[0]
    assert (row["confidence"], row["distribution"]) == (None, [None] * 3)


async def test_parquet_is_one_file(world: World) -> None:
    id = world.add_dataset()
    reply = await export(world, id, "parquet")
    table = pq.read_table(io.BytesIO(reply.content))
    assert table.to_pylist() == audit(kept_rows())
    assert (await export(world, id, "parquet")).content == reply.content


async def test_csv_can_be_read_and_holds_no_formula(world: World) -> None:
    id = world.add_dataset()
    reply = await export(world, id, "csv")
    rows = list(csv.DictReader(io.StringIO(reply.content.decode(), newline="")))
    assert list(rows[0]) == list(AUDIT_COLUMNS)
    assert rows[10]["text"] == '\'=HYPERLINK("http://x")'
    assert [row["text"] for row in rows if row["text"][0] != "'"] == [
        row["text"] for row in kept_rows() if row["text"][0] != "="
    ]
    assert json.loads(rows[7]["distribution"]) == make_row(1)["distribution"]
    assert float(rows[7]["confidence"]) == make_row(1)["confidence"]
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    assert reply.content.count(b"\r\n") == 31


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_formulas_get_an_apostrophe(start: str) -> None:
    assert csv_cell(f"{start}1+1") == f"'{start}1+1"


def test_numbers_and_lists_are_no_formulas() -> None:
    assert [csv_cell(value) for value in (-0.5, None, ["=1"], "a=1")] == ["-0.5", "", '["=1"]', "a=1"]


async def test_a_separator_of_a_spreadsheet_opens_no_second_cell(world: World) -> None:
    id = world.add_dataset([make_row(0, text='a;=1+1 "b",\n=2')])
    body = (await export(world, id, "csv")).content.decode()
    assert '"a;=1+1 ""b"",\n=2"' in body


async def test_the_zip_is_the_folder(world: World, tmp_path: Path) -> None:
    id = world.add_dataset()
    reply = await export(world, id, "hf")
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    verify_dataset(tmp_path / "out" / id)
    assert reply.headers["content-type"] == "application/zip"
    assert (await export(world, id, "hf")).content == reply.content


async def test_training_formats_are_the_shapes_of_the_folder(world: World) -> None:
    id = world.add_dataset()
    messages = lines(await export(world, id, "messages"))
    system = {"role": "system", "content": system_prompt(TASK)}
    row = make_row(1)
    user, assistant = {"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}
    assert messages[7] == {"messages": [system, user, assistant], "weight": 0.5}
    pairs = lines(await export(world, id, "prompt_completion"))
    assert pairs[7] == {"prompt": [system, user], "completion": [assistant], "class_label": row["label"]}
    alpaca = lines(await export(world, id, "alpaca"))
    assert alpaca[7] == {"instruction": system_prompt(TASK), "input": row["text"], "output": row["label"]}
    assert len(messages) == len(pairs) == len(alpaca) == 30


async def test_open_tasks_are_exported_too(world: World) -> None:
    rows = [make_row(i, label=f"answer {i}", label_history=[]) for i in range(3)]
    id = world.add_dataset(rows, [], task=OPEN_TASK)
    assert lines(await export(world, id, "alpaca"))[2]["output"] == "answer 2"
    assert set(lines(await export(world, id, "prompt_completion"))[0]) == {"prompt", "completion"}
    assert lines(await export(world, id, "jsonl"))[2]["answer"] == "answer 2"
    found = json.loads((await export(world, id, "labelstudio")).content)
    region = found[1]["predictions"][0]["result"][0]
    assert (region["from_name"], region["type"], region["value"]) == ("answer", "textarea", {"text": ["answer 1"]})


@pytest.mark.parametrize("format", EXPORT_FORMATS)
async def test_an_empty_split_is_a_whole_file(world: World, format: str) -> None:
    id = world.add_dataset([], [])
    reply = await export(world, id, format)
    assert reply.status_code == 200
    if format == "labelstudio":
        assert json.loads(reply.content) == []
    if format == "parquet":
        assert pq.read_table(io.BytesIO(reply.content)).num_rows == 0


@pytest.mark.parametrize("format", ["messages", "prompt_completion", "alpaca"])
async def test_rows_that_were_left_out_are_not_for_training(world: World, format: str) -> None:
    reply = await export(world, world.add_dataset(), format, "rejected")
    assert reply.status_code == 422


async def test_an_unknown_format_is_422(world: World) -> None:
    assert (await export(world, world.add_dataset(), "xml")).status_code == 422


async def test_a_store_that_fails_is_a_problem_and_no_broken_file(world: World) -> None:
    id = world.add_dataset()
    world.artifacts.delete(f"datasets/{id}")
    for format in EXPORT_FORMATS:
        assert (await export(world, id, format)).status_code == 503, format


def test_a_damaged_file_never_ends_an_archive(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", [make_row(0)], [], card_facts())
    artifacts = ArtifactStore((tmp_path / "store").as_uri(), tmp_path / "cache")
    facts = publish_dataset(artifacts, tmp_path / "dataset", "ds_1")
    (tmp_path / "store" / facts.location / "README.md").write_text("another")
    with pytest.raises(Exception, match="does not match its hash"):
        list(zip_pieces(artifacts, facts.location, facts.files, "x"))


def test_large_exports_come_in_small_pieces(tmp_path: Path) -> None:
    rows = (make_row(i, text=f"{i * 7919 % 10_007} {'x' * 500}") for i in range(10_000))
    write_dataset(tmp_path / "dataset", rows, [], card_facts())
    table = pq.read_table(tmp_path / "dataset" / "data")
    pieces = [len(piece) for piece in parquet_pieces(table.schema, table.to_batches(1024))]
    assert len(pieces) > 9
    assert max(pieces) < 1 << 20
