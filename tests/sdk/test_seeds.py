"""Seed sets from files and from memory, and lists that page by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc.errors import InputError
from afdc.sdk.exceptions import InvalidRequestError, ReplyError
from afdc.task import Example, Label, Task
from tests.sdk.service import NOW, SEEDS, TASK, Service, collect, problem, seed_set, settle

ROWS = [{"text": "a \u2191 b", "label": "up"}, {"text": "c", "label": "down"}]
REPORT = {"rows": 2, "per_label": {"up": 1, "down": 1}, "valid": True}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


def body(request: httpx.Request) -> Any:
    return json.loads(request.content)


async def test_a_file_is_streamed_as_it_is(client: Any, service: Service, file: Path) -> None:
    service.on("POST /v1/seeds", seed_set())
    assert (await settle(client.seeds.create(file, task=TASK))).id == SEEDS
    request = service.requests[0]
    assert request.content == file.read_bytes()
    assert request.headers["content-type"] == "application/jsonl"
    assert request.headers["content-length"] == str(file.stat().st_size)
    assert request.url.params.get_list("label") == ["up", "down"]
    single = {name: value for name, value in request.url.params.items() if name != "label"}
    assert single == {"kind": "seeds", "instruction": "Which?", "on_invalid": "reject", "name": "seeds.jsonl"}


async def test_a_repeat_sends_the_whole_file_again(client: Any, service: Service, file: Path) -> None:
    service.on("POST /v1/seeds", httpx.ReadError("cut"), problem(503, "busy"), seed_set())
    await settle(client.seeds.create(str(file)))
    assert [request.content for request in service.requests] == [file.read_bytes()] * 3
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 1


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"text,label\nx,up\n", "text/csv"),
        ("a.data", b"text,label\nx,up\n", "text/csv"),
        ("a.data", b'\xef\xbb\xbf \n{"text": "x"}', "application/jsonl"),
        ("a.ndjson", b"", "application/jsonl"),
    ],
)
async def test_content_types(
    client: Any, service: Service, tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(content)
    service.on("POST /v1/seeds", seed_set())
    await settle(client.seeds.create(tmp_path / name, name="mine", kind="gold", on_invalid="skip"))
    assert service.requests[0].headers["content-type"] == kind
    assert service.requests[0].content == content
    assert dict(service.requests[0].url.params) == {"kind": "gold", "on_invalid": "skip", "name": "mine"}


async def test_plain_text_becomes_lines_of_json(client: Any, service: Service, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text('one\n\nsays "two"\n')
    service.on("POST /v1/seeds", seed_set(kind="unlabeled", task=None))
    await settle(client.seeds.create(path, kind="unlabeled"))
    lines = service.requests[0].content.splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "one"}, {"text": 'says "two"'}]


@pytest.mark.parametrize(
    "task",
    [
        Task(labels=(Label(name="up", description="going up"), Label(name="down"))),
        Task(instruction="Answer.", labels=None),
    ],
)
async def test_what_no_query_can_say_goes_as_json(client: Any, service: Service, file: Path, task: Task) -> None:
    service.on("POST /v1/seeds", seed_set())
    await settle(client.seeds.create(file, task=task))
    sent = body(service.requests[0])
    assert sent["examples"] == ROWS
    assert sent["name"] == "seeds.jsonl"
    assert Task.model_validate(sent["task"]) == task
    assert service.requests[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (ROWS, ROWS),
        ([("a", "up"), ("b", "down")], [{"text": "a", "label": "up"}, {"text": "b", "label": "down"}]),
        ([Example(text="a", label="up", id="7")], [{"text": "a", "label": "up", "id": "7"}]),
        ({"a": 1, "b": 2}.keys(), [{"text": "a"}, {"text": "b"}]),
        ([{"text": "half \ud800"}], [{"text": "half \ud800"}]),
    ],
)
async def test_examples_in_memory(client: Any, service: Service, source: Any, expected: Any) -> None:
    service.on("POST /v1/seeds", seed_set())
    await settle(client.seeds.create(source, holdout=[("z", "up")], metadata={"who": "me"}))
    sent = body(service.requests[0])
    assert sent == {"examples": expected, "holdout": [{"text": "z", "label": "up"}], "metadata": {"who": "me"}}


async def test_many_examples_go_as_lines(client: Any, service: Service) -> None:
    service.on("POST /v1/seeds", seed_set())
    source = [{"text": f"{number} \u2191", "label": "up"} for number in range(1500)]
    await settle(client.seeds.create(source, task=TASK))
    request = service.requests[0]
    assert request.headers["content-type"] == "application/jsonl"
    assert [json.loads(line) for line in request.content.splitlines()] == source


@pytest.mark.parametrize("source", [[5], [("a", "b", "c")], [None], [{"text": object()}], [{"text": float("nan")}], []])
async def test_examples_that_are_none(client: Any, service: Service, source: Any) -> None:
    with pytest.raises(InputError):
        await settle(client.seeds.create(source))
    assert not service.requests


async def test_files_that_cannot_be_used(client: Any, service: Service, tmp_path: Path) -> None:
    for path in ("missing.jsonl", str(tmp_path)):
        with pytest.raises(InputError):
            await settle(client.seeds.create(tmp_path / path))
    with pytest.raises(InputError, match=r"task\.json"):
        await settle(client.seeds.create(ROWS, task=tmp_path / "task.json"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n{"text"\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2: broken JSON"):
        await settle(client.seeds.create(bad, holdout=ROWS))
    assert not service.requests


async def test_a_task_file(client: Any, service: Service, tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(TASK))
    service.on("POST /v1/seeds", seed_set())
    await settle(client.seeds.create(ROWS, task=str(path)))
    assert body(service.requests[0])["task"]["instruction"] == "Which?"
    with pytest.raises(InputError, match="labels"):
        await settle(client.seeds.create(ROWS, task={"labels": ["one"]}))


async def test_validate_stores_nothing(client: Any, service: Service, file: Path) -> None:
    errors = [{"line": 3, "code": "unknown_label", "message": "m"}]
    service.on("POST /v1/seeds/validate", REPORT | {"valid": False, "errors": errors})
    report = await settle(client.seeds.validate(file))
    assert (report.valid, report.errors[0].line) == (False, 3)
    assert "idempotency-key" not in service.requests[0].headers
    assert service.requests[0].content == file.read_bytes()


async def test_refused_examples(client: Any, service: Service) -> None:
    service.on(
        "POST /v1/seeds", problem(422, "invalid", errors=[{"pointer": "/examples/1", "code": "x", "message": "m"}])
    )
    with pytest.raises(InvalidRequestError, match="/examples/1: m"):
        await settle(client.seeds.create(ROWS))


def page(ids: list[str], has_more: bool, last: str | None = None) -> dict[str, Any]:
    data = [seed_set(id=id) for id in ids]
    return {"data": data, "has_more": has_more, "first_id": None, "last_id": last or (ids[-1] if ids else None)}


async def test_lists_page_by_themselves(client: Any, service: Service) -> None:
    service.on("GET /v1/seeds", page(["a", "b"], True), page(["c"], True), page([], False))
    assert [found.id for found in await collect(client.seeds.list())] == ["a", "b", "c"]
    assert [dict(request.url.params) for request in service.requests] == [
        {"limit": "100"},
        {"after": "b", "limit": "100"},
        {"after": "c", "limit": "100"},
    ]


async def test_a_limit_over_all_pages(client: Any, service: Service) -> None:
    service.on("GET /v1/seeds", page(["a", "b"], True), page(["c", "d"], True))
    assert [found.id for found in await collect(client.seeds.list(limit=3, after="z"))] == ["a", "b", "c"]
    assert [request.url.params["limit"] for request in service.requests] == ["3", "1"]
    assert await collect(client.seeds.list(limit=0)) == []
    assert len(service.requests) == 2


async def test_a_list_that_never_ends_is_refused(client: Any, service: Service) -> None:
    service.on("GET /v1/seeds", page(["a"], True, last="a"))
    with pytest.raises(ReplyError, match="where the next one begins"):
        await collect(client.seeds.list())


async def test_the_rest(client: Any, service: Service) -> None:
    service.on(f"GET /v1/seeds/{SEEDS}", seed_set())
    service.on(f"DELETE /v1/seeds/{SEEDS}", {"id": SEEDS, "deleted": True})
    service.on(f"GET /v1/seeds/{SEEDS}/examples", {"data": [{"id": "s_1", "text": "a", "label": "up"}]})
    assert (await settle(client.seeds.get(SEEDS))).task.names == ("up", "down")
    assert [found.text for found in await collect(client.seeds.examples(SEEDS))] == ["a"]
    assert (await settle(client.seeds.delete(SEEDS))).deleted


async def test_keys(client: Any, service: Service) -> None:
    key = {"id": "key_1", "tenant": "t", "scopes": ["read"], "hint": "afdc_ab", "created_at": NOW}
    service.on("POST /v1/keys", key | {"key": "afdc_abcdef"})
    service.on("GET /v1/keys", {"data": [key]})
    service.on("DELETE /v1/keys/key_1", {"id": "key_1"})
    assert (await settle(client.keys.create("mine", scopes=["read"], tenant="t"))).key == "afdc_abcdef"
    assert body(service.requests[0]) == {"name": "mine", "scopes": ["read"], "tenant": "t"}
    assert [found.hint for found in await collect(client.keys.list())] == ["afdc_ab"]
    assert (await settle(client.keys.revoke("key_1"))).id == "key_1"
    with pytest.raises(InputError, match="scopes"):
        await settle(client.keys.create(scopes=["everything"]))


async def test_a_refusal_names_the_file_and_says_each_thing_once(client: Any, service: Service, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n')
    fault = {"pointer": "/examples/0", "code": "invalid_example", "message": "line 1: unknown label 'x'"}
    told = {"detail": "line 1: unknown label 'x'", "errors": [fault]}
    service.on("POST /v1/seeds", problem(422, "invalid_seeds", **told))
    with pytest.raises(InvalidRequestError) as raised:
        await settle(client.seeds.create(path))
    assert str(raised.value).startswith(f"{path}: line 1: unknown label 'x'")
    assert str(raised.value).count("unknown label") == 1
