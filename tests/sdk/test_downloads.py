"""Downloads: resumed, checked, in place only when whole, and never outside their folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc.errors import InputError, StorageError, UsageError
from afdc.sdk.exceptions import DownloadError, InvalidRequestError, NotFoundError, ReplyError, UnreachableError
from afdc.sdk.parts import Part, inside, storing
from tests.sdk.conftest import MakeClient
from tests.sdk.service import ADAPTER, DATASET, JOB, NOW, TASK, Body, Service, Time, collect, problem, settle

CONTENT = b"0123456789abcdef"
PATH = "data/train-00000.parquet"
FILES = f"/v1/datasets/{DATASET}/files"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Files:
    """The files of a data set, with Range and If-Range; `cuts` are the bytes that single connections last."""

    def __init__(self, service: Service, files: dict[str, bytes], cuts: list[int] | None = None) -> None:
        self.files = files
        self.cuts = cuts or []
        self.ranges: list[str | None] = []
        self.resumes = True
        self.service = service
        self.list_files(files)
        for path in files:
            service.on(f"GET {FILES}/{path}", self._send)

    def list_files(self, files: dict[str, bytes], **extra: Any) -> None:
        listed = [{"path": p, "bytes": len(content), "sha256": digest(content)} | extra for p, content in files.items()]
        found = {"id": DATASET, "job": JOB, "version": 1, "task": TASK, "rows": 1, "rejected": 0, "created_at": NOW}
        self.service.on(f"GET /v1/datasets/{DATASET}", found | {"files": listed})

    def _send(self, request: httpx.Request) -> httpx.Response:
        content = self.files[request.url.path.removeprefix(f"{FILES}/")]
        asked = request.headers.get("range")
        self.ranges.append(asked)
        etag = f'"{digest(content)}"'
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        is_part = self.resumes and asked is not None and request.headers["if-range"] == etag
        rest = content[start:] if is_part else content
        headers = {"ETag": etag}
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.cuts.pop(0) if self.cuts else None
        error = None if cut is None else httpx.ReadError("cut")
        pieces = [bytes([byte]) for byte in rest[:cut]]
        return httpx.Response(206 if is_part else 200, headers=headers, stream=Body(pieces, error))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def download(client: Any, folder: Path, **options: Any) -> Path:
    found: Path = await settle(client.datasets.download(DATASET, folder, **options))
    return found


async def test_a_folder(client: Any, service: Service, tmp_path: Path) -> None:
    contents = {PATH: CONTENT, "README.md": b"# card", "empty": b"", "with space/\u00e4#?%.txt": b"x"}
    files = Files(service, contents)
    assert await download(client, tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert everything(tmp_path / "new" / "out") == contents
    assert files.ranges == [None] * 4
    assert all(request.headers["accept-encoding"] == "identity" for request in service.requests[1:])
    await download(client, tmp_path / "new" / "out")
    assert files.ranges == [None] * 4, "files that are there are not fetched again"


async def test_cut_at_every_byte(client: Any, service: Service, tmp_path: Path, time: Time) -> None:
    for place in range(len(CONTENT) + 1):
        files = Files(service, {PATH: CONTENT}, cuts=[place])
        folder = tmp_path / str(place)
        await download(client, folder)
        assert everything(folder) == {PATH: CONTENT}
        expected = [None, f"bytes={place}-"] if 0 < place < len(CONTENT) else [None, None][: 2 - bool(place)]
        assert files.ranges == expected, "only what is missing is asked for"


async def test_killed_at_every_byte(client: Any, service: Service, tmp_path: Path) -> None:
    for place in range(len(CONTENT) + 1):
        files = Files(service, {PATH: CONTENT})
        target = tmp_path / str(place) / PATH
        target.parent.mkdir(parents=True)
        target.with_name(f"{target.name}.part").write_bytes(CONTENT[:place])
        await download(client, tmp_path / str(place))
        assert everything(tmp_path / str(place)) == {PATH: CONTENT}
        assert files.ranges == ([f"bytes={place}-"] if 0 < place < len(CONTENT) else [None] * (not place))


async def test_any_number_of_cuts_is_survived_while_bytes_come(
    client: Any, service: Service, tmp_path: Path, time: Time
) -> None:
    Files(service, {PATH: CONTENT}, cuts=[1] * len(CONTENT))
    await download(client, tmp_path)
    assert everything(tmp_path) == {PATH: CONTENT}


async def test_no_bytes_no_patience(client: Any, service: Service, tmp_path: Path, time: Time) -> None:
    files = Files(service, {PATH: CONTENT}, cuts=[5, *[0] * 20])
    with pytest.raises(UnreachableError):
        await download(client, tmp_path)
    assert files.ranges == [None, *["bytes=5-"] * 4]
    assert everything(tmp_path) == {f"{PATH}.part": CONTENT[:5]}
    files.cuts.clear()
    await download(client, tmp_path)
    assert files.ranges[-1] == "bytes=5-"
    assert everything(tmp_path) == {PATH: CONTENT}


async def test_a_stream_that_ends_early_without_a_word(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {PATH: CONTENT})
    short = httpx.Response(200, stream=Body([CONTENT[:3]]))
    headers = {"Content-Range": f"bytes 3-15/{len(CONTENT)}"}
    service.on(
        f"GET {FILES}/{PATH}", lambda r: short, lambda r: httpx.Response(206, headers=headers, content=CONTENT[3:])
    )
    await download(client, tmp_path)
    assert everything(tmp_path) == {PATH: CONTENT}


async def test_a_server_without_ranges(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {PATH: CONTENT}, cuts=[7]).resumes = False
    await download(client, tmp_path)
    assert everything(tmp_path) == {PATH: CONTENT}


async def test_a_wrong_hash_leaves_nothing(client: Any, service: Service, tmp_path: Path) -> None:
    files = Files(service, {PATH: b"0123456789abcdeX"})
    files.list_files({PATH: CONTENT})
    with pytest.raises(DownloadError, match="SHA-256"):
        await download(client, tmp_path)
    assert everything(tmp_path) == {}
    assert files.ranges == [None]


async def test_an_old_part_of_something_else_is_fetched_anew(client: Any, service: Service, tmp_path: Path) -> None:
    for stale in (b"XXXX", b"X" * len(CONTENT), b"X" * 40):
        files = Files(service, {"a.bin": CONTENT})
        (tmp_path / "a.bin.part").write_bytes(stale)
        (tmp_path / "a.bin").write_bytes(b"an older version")
        await download(client, tmp_path)
        assert everything(tmp_path) == {"a.bin": CONTENT}
        assert files.ranges[-1] is None


async def test_too_many_bytes_are_not_stored(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {PATH: CONTENT + b"more"}).list_files({PATH: CONTENT})
    with pytest.raises(DownloadError, match="more than the 16 bytes"):
        await download(client, tmp_path)
    assert everything(tmp_path) == {}


async def test_answers_that_do_not_fit(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {"a": CONTENT})
    (tmp_path / "a.part").write_bytes(CONTENT[:4])
    for headers in ({}, {"Content-Range": "bytes 0-15/16"}, {"Content-Range": "x"}):
        service.on(f"GET {FILES}/a", httpx.Response(206, headers=headers, content=CONTENT[4:]))
        with pytest.raises(ReplyError):
            await download(client, tmp_path)
    assert everything(tmp_path) == {"a.part": CONTENT[:4]}
    service.on(f"GET {FILES}/a", problem(416, "range_not_satisfiable"), httpx.Response(200, content=CONTENT))
    await download(client, tmp_path)
    assert everything(tmp_path) == {"a": CONTENT}


async def test_refusals_rise(client: Any, service: Service, tmp_path: Path, time: Time) -> None:
    Files(service, {"a": CONTENT})
    service.on(f"GET {FILES}/a", problem(404, "not_found"))
    with pytest.raises(NotFoundError):
        await download(client, tmp_path)
    service.on(f"GET {FILES}/a", problem(503, "busy", {"Retry-After": "9"}), httpx.Response(200, content=CONTENT))
    await download(client, tmp_path)
    assert time.slept == [9.25]


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "a/../x",
        "",
        ".",
        "..",
        "a//b",
        "./a",
        "a/",
        "a\\..\\x",
        "C:x",
        "a\0b",
        "a\nb",
        "link/x",
    ],
)
async def test_paths_that_leave_the_folder(client: Any, service: Service, tmp_path: Path, path: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    Files(service, {}).list_files({"good": b"", path: CONTENT})
    with pytest.raises(DownloadError, match="no path inside a folder"):
        await download(client, folder)
    assert len(service.requests) == 1, "nothing is fetched of a listing like that"
    assert not (tmp_path / "x").exists()


def test_paths_that_stay(tmp_path: Path) -> None:
    for path in ("a", "a/b.c", "..a/b..", "a b/\u00e4", ".hidden"):
        assert inside(tmp_path, path) == tmp_path / path


async def test_a_listing_without_hashes_is_refused(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {}).list_files({"a": CONTENT}, sha256="")
    with pytest.raises(DownloadError, match="without a SHA-256"):
        await download(client, tmp_path)


async def test_targets_that_cannot_be_written(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {"a": CONTENT})
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        await download(client, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        await download(client, tmp_path / "file")


async def test_a_full_disk(client: Any, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Files(service, {"a": CONTENT})

    def full(self: Any, piece: bytes) -> None:
        with storing(self.path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        await download(client, tmp_path)
    monkeypatch.undo()
    await download(client, tmp_path)
    assert everything(tmp_path) == {"a": CONTENT}


async def test_a_part_of_the_folder(client: Any, service: Service, tmp_path: Path) -> None:
    Files(service, {PATH: CONTENT, "messages/train-00000.parquet": b"x", "README.md": b"x"})
    await download(client, tmp_path, include="data/*")
    assert everything(tmp_path) == {PATH: CONTENT}


async def test_an_adapter(client: Any, service: Service, tmp_path: Path) -> None:
    base = {"base_model": "m", "base_revision": "r", "rank": 8, "task": TASK, "created_at": NOW}
    listed = [{"path": "adapter_config.json", "bytes": 2, "sha256": digest(b"{}")}]
    one = {"id": ADAPTER, "name": "n", "job": JOB, "round": 1, "final": True, "files": listed, **base}
    service.on(f"GET /v1/adapters/{ADAPTER}", one)
    service.on(f"GET /v1/adapters/{ADAPTER}/files/adapter_config.json", httpx.Response(200, content=b"{}"))
    await settle(client.adapters.download(ADAPTER, tmp_path / "one"))
    await settle((await settle(client.adapters.get(ADAPTER))).download(tmp_path / "two"))
    assert everything(tmp_path / "one") == everything(tmp_path / "two") == {"adapter_config.json": b"{}"}
    await settle(client.adapters.download(ADAPTER, tmp_path / "three", include="*.safetensors"))
    assert not (tmp_path / "three").exists()


EXPORT = f"GET /v1/datasets/{DATASET}/export"
NAMED = {"Content-Disposition": 'attachment; filename="rows"'}


async def test_an_export(client: Any, service: Service, tmp_path: Path) -> None:
    cut = httpx.Response(200, stream=Body([b"01234"], httpx.ReadError("cut")), headers=NAMED)
    service.on(
        EXPORT, lambda r: cut, httpx.Response(200, content=CONTENT, headers={"ETag": f'"{digest(CONTENT)}"', **NAMED})
    )
    path = await settle(client.datasets.export(DATASET, "csv", tmp_path / "rows.csv"))
    assert path.read_bytes() == CONTENT
    assert everything(tmp_path) == {"rows.csv": CONTENT}
    assert dict(service.requests[0].url.params) == {"format": "csv", "split": "default"}
    service.on(EXPORT, httpx.Response(200, content=CONTENT, headers=NAMED))
    await settle(client.datasets.export(DATASET, "csv", tmp_path / "rows.csv", split="rejected"))
    assert service.requests[-1].url.params["split"] == "rejected"


async def test_an_export_that_is_wrong(make_client: MakeClient, service: Service, tmp_path: Path) -> None:
    client = make_client(max_retries=1)
    service.on(EXPORT, httpx.Response(200, content=CONTENT, headers={"ETag": f'"{"0" * 64}"', **NAMED}))
    with pytest.raises(DownloadError, match="SHA-256"):
        await settle(client.datasets.export(DATASET, "jsonl", tmp_path / "rows"))
    assert everything(tmp_path) == {}
    service.on(EXPORT, problem(422, "unknown_format"))
    with pytest.raises(InvalidRequestError):
        await settle(client.datasets.export(DATASET, "x", tmp_path / "rows"))
    service.on(EXPORT, lambda r: httpx.Response(200, stream=Body([b"0"], httpx.ReadError("cut")), headers=NAMED))
    with pytest.raises(UnreachableError):
        await settle(client.datasets.export(DATASET, "x", tmp_path / "rows"))
    assert not (tmp_path / "rows").exists()


async def test_a_file_of_reviews_has_the_key_of_its_content(client: Any, service: Service, tmp_path: Path) -> None:
    new = {"id": "ds_2", "job": JOB, "version": 2, "task": TASK, "rows": 1, "rejected": 0, "created_at": NOW}
    service.on(f"POST /v1/datasets/{DATASET}/reviews", new)
    path = tmp_path / "export.json"
    keys = []
    for content in (b"[]", b"[]", b"[1]"):
        path.write_bytes(content)
        assert (await settle(client.datasets.review_file(DATASET, path))).dataset.version == 2
        sent = service.requests[-1]
        assert (sent.content, sent.headers["Content-Type"]) == (content, "application/json")
        keys.append(sent.headers["Idempotency-Key"])
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(InputError, match="No such file"):
        await settle(client.datasets.review_file(DATASET, tmp_path / "nowhere"))


async def test_labelling_set_up(client: Any, service: Service) -> None:
    service.on(f"GET /v1/datasets/{DATASET}/labelstudio-config", httpx.Response(200, text="<View/>"))
    assert await settle(client.datasets.labelstudio_config(DATASET)) == "<View/>"


async def test_a_filter_that_there_is_not_is_refused(client: Any) -> None:
    with pytest.raises(UsageError, match="reviews"):
        await collect(client.datasets.rows(DATASET, reviews="needed"))


async def test_a_page_of_somebody_else_is_no_export(client: Any, service: Service, tmp_path: Path) -> None:
    service.on(EXPORT, httpx.Response(200, content=b"<html>hello</html>"))
    with pytest.raises(ReplyError, match="no exported file"):
        await settle(client.datasets.export(DATASET, "csv", tmp_path / "rows.csv"))
    assert everything(tmp_path) == {}


async def test_rows_and_reviews(client: Any, service: Service) -> None:
    files = Files(service, {})
    files.list_files({})
    row = {"id": "g_1", "text": "t", "label": "up", "confidence": 0.9}
    service.on(f"GET /v1/datasets/{DATASET}/rows", {"data": [row], "has_more": True, "last_id": "g_1"}, {"data": [row]})
    found = await collect(client.datasets.rows(DATASET, label="up", min_confidence=0.25, review="needed", q="a&b"))
    assert [one.confidence for one in found] == [0.9, 0.9]
    wanted = {"label": "up", "min_confidence": "0.25", "review": "needed", "q": "a&b", "limit": "100"}
    assert dict(service.requests[0].url.params) == wanted
    handle = await settle(client.datasets.get(DATASET))
    assert len(await collect(handle.rows(split="rejected", limit=1))) == 1
    new = {"id": "ds_2", "job": JOB, "version": 2, "task": TASK, "rows": 1, "rejected": 0, "created_at": NOW}
    service.on(f"POST /v1/datasets/{DATASET}/reviews", problem(503, "busy"), new)
    reviews = [{"row": "g_1", "decision": "relabel", "label": "down"}]
    assert (await settle(handle.reviews(reviews, reviewer="me"))).dataset.version == 2
    assert json.loads(service.requests[-1].content) == {"reviews": reviews, "reviewer": "me"}
    assert (
        len({request.headers["Idempotency-Key"] for request in service.requests[-2:]}) == 1
    )  # made once, all the same
