"""To Label Studio and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import pytest_asyncio

from afdc.task import Task
from afdc_server.datasets.labelstudio import labelling_config
from tests.service.datasets_fixture import LABELS, OPEN_TASK, TASK, World, kept_rows, make_row, rejected_rows, running

KEPT = [row["id"] for row in kept_rows()]
LEFT = [row["id"] for row in rejected_rows()]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def tasks_of(world: World, id: str, split: str = "default") -> list[dict[str, Any]]:
    reply = await world.client().get(f"/datasets/{id}/export", params={"format": "labelstudio", "split": split})
    found: list[dict[str, Any]] = json.loads(reply.content)
    return found


def choose(*labels: str, name: str = "label", **fields: Any) -> dict[str, Any]:
    """An annotation as Label Studio exports it."""
    region = {"id": "x", "from_name": name, "to_name": "text", "type": "choices", "value": {"choices": list(labels)}}
    return {"id": 1, "completed_by": 7, "was_cancelled": False, "result": [region], "lead_time": 2.5, **fields}


def annotated(row: str, *annotations: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": 12, "data": {"text": "?", "afdc_row": row}, "annotations": list(annotations), "project": 3, **fields}


async def test_tasks_hold_row_and_prediction(world: World) -> None:
    id = world.add_dataset()
    tasks = await tasks_of(world, id)
    assert [task["data"]["afdc_row"] for task in tasks] == KEPT
    row, task = make_row(1), tasks[7]
    assert task["data"]["text"] == row["text"]
    assert task["meta"] == {
        "row": row["id"],
        "dataset": id,
        "split": "default",
        "source": "generated",
        "reason": "kept",
        "intended": row["label"],
    }
    prediction = task["predictions"][0]
    assert (prediction["score"], prediction["model_version"]) == (row["confidence"], row["scorer"])
    assert prediction["result"] == [
        {
            "id": row["id"],
            "from_name": "label",
            "to_name": "text",
            "type": "choices",
            "value": {"choices": [row["label"]]},
        }
    ]
    rejected = await tasks_of(world, id, "rejected")
    assert [len(task["predictions"]) for task in rejected] == [1] * 5 + [0] * 2


async def test_annotations_become_reviews(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    labels = {row["id"]: row["label"] for row in kept_rows() + rejected_rows()}
    old, new = {"updated_at": "2026-01-01T00:00:00Z"}, {"updated_at": "2026-01-02T00:00:00Z"}
    body = [
        annotated(KEPT[6], choose(labels[KEPT[6]])),
        annotated(KEPT[7], choose(LABELS[0])),
        annotated(KEPT[8], choose("reject", name="verdict")),
        annotated(LEFT[0], choose(labels[LEFT[0]], name="my own name")),
        annotated(KEPT[9], choose(LABELS[1], **new), choose(LABELS[2], **old)),
        annotated(KEPT[10], choose(LABELS[1], ground_truth=True, **old), choose(LABELS[2], **new)),
        annotated(KEPT[11], choose(LABELS[1], was_cancelled=True)),
        annotated(KEPT[12]),
        annotated(KEPT[13], choose(result=[])),
        annotated(KEPT[14], choose("  ")),
        {"data": {"text": "?"}, "meta": {"row": LEFT[6]}, "annotations": [choose(LABELS[0])]},
        annotated("not ours, not annotated"),
    ]
    reply = await client.post(f"/datasets/{id}/reviews", json=body)
    assert reply.status_code == 201, reply.text
    made = reply.json()
    assert (made["version"], made["reviewed"], made["rows"]) == (2, 7, 31)
    found = await client.get(f"/datasets/{made['id']}/rows", params={"review": "done", "limit": 100})
    assert {row["id"]: (row["label"], row["review_state"]) for row in found.json()["data"]} == {
        KEPT[6]: (labels[KEPT[6]], "accepted"),
        KEPT[7]: (LABELS[0], "relabelled"),
        LEFT[0]: (labels[LEFT[0]], "accepted"),
        KEPT[9]: (LABELS[1], "accepted" if labels[KEPT[9]] == LABELS[1] else "relabelled"),
        KEPT[10]: (LABELS[1], "accepted" if labels[KEPT[10]] == LABELS[1] else "relabelled"),
        LEFT[6]: (LABELS[0], "relabelled"),
    }


async def test_the_whole_way_round(world: World) -> None:
    """What is exported, and annotated as the predictions say, accepts every row."""
    client, id = world.client(), world.add_dataset()
    body = [
        {**task, "annotations": [{"result": task["predictions"][0]["result"], "completed_by": {"email": "a@b.c"}}]}
        for task in await tasks_of(world, id)
    ]
    made = (await client.post(f"/datasets/{id}/reviews", json=body)).json()
    assert made["reviewed"] == made["rows"] == 30


@pytest.mark.parametrize(
    ("task", "pointer", "code"),
    [
        (annotated("c_none", choose(LABELS[0])), "/1/data/afdc_row", "unknown_row"),
        (annotated(KEPT[7], choose("nonsense")), "/1/annotations/0/result", "unknown_label"),
        (annotated(KEPT[7], choose(), choose(LABELS[0], LABELS[1])), "/1/annotations/1/result", "several_labels"),
        (annotated(KEPT[6], choose(LABELS[1])), "/1/data/afdc_row", "repeated_row"),
        ({"data": {"text": "x"}, "annotations": [choose(LABELS[0])]}, "/1", "no_row"),
        ({"data": {"afdc_row": 7}, "annotations": [choose(LABELS[0])]}, "/1", "no_row"),
        ({"data": 7}, "/1/data", "dict_type"),
    ],
)
async def test_what_cannot_be_used_is_named_and_nothing_is_stored(
    world: World, task: dict[str, Any], pointer: str, code: str
) -> None:
    client, id = world.client(), world.add_dataset()
    body = [annotated(KEPT[6], choose(LABELS[0])), task]
    reply = await client.post(f"/datasets/{id}/reviews", json=body)
    assert reply.status_code == 422
    assert [(fault["pointer"], fault["code"]) for fault in reply.json()["errors"]] == [(pointer, code)]
    assert len(list((world.settings.data / "artifacts" / "datasets").iterdir())) == 1


async def test_an_export_without_annotations_is_no_review(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    for body in ([], [annotated(KEPT[6])], await tasks_of(world, id)):
        reply = await client.post(f"/datasets/{id}/reviews", json=body)
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_reviews")


async def test_answers_come_back_too(world: World) -> None:
    rows = [make_row(i, label=f"answer {i}", label_history=[]) for i in range(3)]
    client, id = world.client(), world.add_dataset(rows, [], task=OPEN_TASK)

    def answer(*texts: str) -> dict[str, Any]:
        region = {"from_name": "answer", "to_name": "text", "type": "textarea", "value": {"text": list(texts)}}
        return {"result": [region]}

    body = [annotated(rows[0]["id"], answer("Paris")), annotated(rows[1]["id"], answer("answer 1"))]
    made = await client.post(f"/datasets/{id}/reviews", json=body)
    found = (await client.get(f"/datasets/{made.json()['id']}/rows", params={"review": "done"})).json()["data"]
    assert [(row["label"], row["review_state"]) for row in found] == [
        ("Paris", "relabelled"),
        ("answer 1", "accepted"),
    ]
    two = await client.post(f"/datasets/{id}/reviews", json=[annotated(rows[0]["id"], answer("a", "b"))])
    assert two.json()["errors"][0]["code"] == "several_labels"


async def test_the_set_up_is_xml_of_the_labels(world: World) -> None:
    reply = await world.client().get(f"/datasets/{world.add_dataset()}/labelstudio-config")
    assert reply.headers["content-type"].startswith("application/xml")
    root = ElementTree.fromstring(reply.text)  # noqa: S314 - made here
    choices = root.find("Choices[@name='label']")
    assert choices is not None
    assert [choice.get("value") for choice in choices] == list(LABELS)
    text = root.find("Text")
    assert text is not None
    assert (text.get("name"), text.get("value")) == ("text", "$text")
    header = root.find("Header")
    assert header is not None
    assert header.get("value") == TASK.instruction


def test_labels_are_data_in_the_set_up() -> None:
    names = ['"/><Choice value="x', "a&amp;b", "two\nlines", "</View>", "'", "bell\x07"]
    task = Task.model_validate({"labels": [{"name": name, "description": name} for name in names]})
    root = ElementTree.fromstring(labelling_config(task))  # noqa: S314 - made here
    found = root.find("Choices[@name='label']")
    assert found is not None
    assert [choice.get("value") for choice in found] == [*names[:5], "bell\ufffd"]
    assert [choice.get("hint") for choice in found] == [*names[:5], "bell\ufffd"]


def test_open_tasks_have_a_text_area() -> None:
    root = ElementTree.fromstring(labelling_config(OPEN_TASK))  # noqa: S314 - made here
    assert root.find("TextArea[@name='answer']") is not None
    assert root.find("Choices[@name='label']") is None
