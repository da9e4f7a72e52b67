"""Downloads: ranges, conditions and headers as RFC 9110 asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from afdc_server.api.files import Span, attachment, parse_range
from tests.service.datasets_fixture import World, running

FILE = "data/train-00000.parquet"


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-9", Span(0, 10)),
        ("bytes=90-", Span(90, 10)),
        ("bytes=90-1000", Span(90, 10)),
        ("bytes=-1", Span(99, 1)),
        ("bytes=-500", Span(0, 100)),
        ("BYTES=0-0", Span(0, 1)),
        ("bytes=0-" + "9" * 5000, Span(0, 100)),
        ("bytes=-" + "9" * 5000, Span(0, 100)),
        ("bytes=" + "0" * 5000 + "7-8", Span(7, 2)),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=٣-٤", None),
        ("", None),
    ],
)
def test_ranges_are_read(value: str, expected: Span | None) -> None:
    assert parse_range(value, 100) == expected


@pytest.mark.parametrize(("value", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-0", 0), ("bytes=-5", 0)])
def test_what_no_byte_is_in_is_416(value: str, size: int) -> None:
    with pytest.raises(HTTPException) as caught:
        parse_range(value, size)
    assert caught.value.status_code == 416
    assert caught.value.headers == {"Content-Range": f"bytes */{size}"}


@given(value=st.from_regex(r"\Abytes=[0-9, -]{0,12}\Z") | st.text(max_size=20), size=st.integers(0, 1000))
def test_a_range_is_never_outside_the_file(value: str, size: int) -> None:
    try:
        span = parse_range(value, size)
    except HTTPException as exc:
        assert exc.status_code == 416  # noqa: PT017 - either ending is right
        return
    assert span is None or (span.start >= 0 < span.length and span.start + span.length <= size)


def test_names_of_downloads_are_escaped() -> None:
    assert attachment("a.md") == "attachment; filename=\"a.md\"; filename*=UTF-8''a.md"
    assert attachment('ü"\r\n.md') == "attachment; filename=\"____.md\"; filename*=UTF-8''%C3%BC%22%0D%0A.md"


async def test_a_file_is_sent_whole_and_in_parts(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    listed = {file["path"]: file for file in (await client.get(f"/datasets/{id}")).json()["files"]}
    url, tag = f"/datasets/{id}/files/{FILE}", f'"{listed[FILE]["sha256"]}"'
    whole = await client.get(url)
    size = listed[FILE]["bytes"]
    assert (whole.status_code, len(whole.content), whole.headers["content-length"]) == (200, size, str(size))
    assert (whole.headers["etag"], whole.headers["accept-ranges"]) == (tag, "bytes")
    assert whole.headers["content-type"] == "application/vnd.apache.parquet"
    assert whole.headers["content-disposition"].startswith('attachment; filename="train-00000.parquet"')
    joined = b""
    for start in range(0, size, 1000):
        part = await client.get(url, headers={"Range": f"bytes={start}-{start + 999}", "If-Range": tag})
        assert part.status_code == 206
        last = min(start + 999, size - 1)
        assert part.headers["content-range"] == f"bytes {start}-{last}/{size}"
        assert int(part.headers["content-length"]) == len(part.content)
        joined += part.content
    assert joined == whole.content
    tail = await client.get(url, headers={"Range": "bytes=-10"})
    assert tail.content == whole.content[-10:]


@pytest.mark.parametrize("condition", ['"another"', "Wed, 21 Oct 2015 07:28:00 GMT", "weak"])
async def test_a_range_of_another_file_gets_the_whole(world: World, condition: str) -> None:
    client, id = world.client(), world.add_dataset()
    url = f"/datasets/{id}/files/{FILE}"
    tag = (await client.head(url)).headers["etag"]
    headers = {"Range": "bytes=0-0", "If-Range": f"W/{tag}" if condition == "weak" else condition}
    assert (await client.get(url, headers=headers)).status_code == 200


async def test_head_and_conditions(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    url = f"/datasets/{id}/files/README.md"
    head = await client.head(url, headers={"Range": "bytes=0-0"})
    body = await client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == body.headers["content-length"] == str(len(body.content))
    assert head.headers["content-type"] == "text/markdown; charset=utf-8"
    tag = head.headers["etag"]
    for value in (tag, f'"x", W/{tag}', "*"):
        unchanged = await client.get(url, headers={"If-None-Match": value})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_a_range_behind_the_end_is_a_problem(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    reply = await client.get(f"/datasets/{id}/files/README.md", headers={"Range": "bytes=99999999-"})
    assert (reply.status_code, reply.json()["code"]) == (416, "range_not_satisfiable")
    assert reply.headers["content-range"].startswith("bytes */")


@pytest.mark.parametrize("path", ["data/none.parquet", "../../afdc.db", "%2e%2e/afdc.db", "/etc/passwd", "data", ""])
async def test_only_listed_files_are_sent(world: World, path: str) -> None:
    client, id = world.client(), world.add_dataset()
    reply = await client.get(f"/datasets/{id}/files/{path}")
    assert reply.status_code == 404


async def test_a_file_that_is_gone_is_an_error_and_no_empty_download(world: World) -> None:
    client, id = world.client(), world.add_dataset()
    world.artifacts.delete(f"datasets/{id}")
    reply = await client.get(f"/datasets/{id}/files/{FILE}")
    assert (reply.status_code, reply.json()["code"]) == (503, "storage")


async def test_files_of_an_adapter(world: World) -> None:
    client, id = world.client(), world.add_adapter()
    found = (await client.get(f"/adapters/{id}")).json()
    assert (found["name"], found["round"], found["rank"], found["final"]) == ("job-r1-0123456789ab", 1, 16, True)
    assert [file["path"] for file in found["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    url = f"/adapters/{id}/files/adapter_model.safetensors"
    part = await client.get(url, headers={"Range": "bytes=0-7"})
    assert (part.status_code, len(part.content)) == (206, 8)
    assert (await client.head(url)).headers["content-type"] == "application/octet-stream"
    assert (await client.get(f"/adapters/{id}/files/adapter_model.bin")).status_code == 404


async def test_another_tenant_sees_nothing(world: World) -> None:
    dataset, adapter, other = world.add_dataset(), world.add_adapter(), world.client("b")
    for path in (
        f"/datasets/{dataset}",
        f"/datasets/{dataset}/rows",
        f"/datasets/{dataset}/files/README.md",
        f"/datasets/{dataset}/export?format=jsonl",
        f"/datasets/{dataset}/labelstudio-config",
        f"/adapters/{adapter}",
        f"/adapters/{adapter}/files/manifest.json",
        "/datasets/nonsense",
        f"/adapters/{dataset}",
    ):
        reply = await other.get(path)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), path
    body = {"reviews": [{"row": "s_0", "decision": "accept"}]}
    assert (await other.post(f"/datasets/{dataset}/reviews", json=body)).status_code == 404
    assert (await world.client("reader").post(f"/datasets/{dataset}/reviews", json=body)).status_code == 403
    assert (await other.get(f"/datasets/{dataset}", headers={"Authorization": ""})).status_code == 401
