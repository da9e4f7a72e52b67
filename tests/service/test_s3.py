"""Artifacts in a bucket: a whole server whose finished files lie behind a real S3 API, moto's."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from afdc.errors import AfdcError, StorageError, UsageError
from afdc_server.artifacts import AHEAD_BYTES, ArtifactStore
from afdc_server.jobs.sweep import OLD_S
from afdc_server.service.ids import ADAPTER, DATASET, SEED, new_id
from tests.service.s3 import S3Server, lead_to
from tests.service.test_sweep import sweeper
from tests.service.world import World, finished, post_job, post_seeds, running

BUCKET, PREFIX = "afdc-artifacts", "team/one"
ROWS = "data/train-00000.parquet"
SHORT: dict[str, Any] = {
    "augment": {"variants": 6, "rounds": 1, "context_seeds": 2},
    "loop": {"rounds": 1, "members": 1, "folds": 0},
}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        lead_to(server.url, patch)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    s3.make(BUCKET)
    with running(tmp_path_factory.mktemp("s3"), artifacts=f"s3://{BUCKET}/{PREFIX}") as found:
        yield found


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    with world.client() as found:
        yield found


@pytest.fixture(scope="module")
def done(world: World) -> dict[str, Any]:
    """A job at its end; nobody deletes it."""
    with world.client() as client:
        return run_job(client)


def run_job(client: httpx.Client) -> dict[str, Any]:
    job = finished(client, post_job(client, post_seeds(client), settings=SHORT)["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def get(client: httpx.Client, path: str, **options: Any) -> Any:
    reply = client.get(path, **options)
    assert reply.status_code == 200, reply.text
    return reply.json()


def stored(client: httpx.Client, job: dict[str, Any]) -> set[str]:
    """Where the job's files have to lie."""
    adapters = [one["id"] for one in get(client, f"/jobs/{job['id']}/checkpoints")["data"]]
    folders = [f"datasets/{job['dataset']}", *(f"adapters/{one}" for one in adapters)]
    files = {f"{one}/{file['path']}" for one in folders for file in get(client, f"/{one}")["files"]}
    return {f"{PREFIX}/{one}" for one in (*files, f"seeds/{job['seeds']}/rows.jsonl")}


def test_everything_lies_in_the_bucket(world: World, client: httpx.Client, done: dict[str, Any], s3: S3Server) -> None:
    wanted = stored(client, done)
    assert wanted <= s3.keys(BUCKET)
    assert len(wanted) > 10
    assert not (world.services.settings.data / "artifacts").exists()
    assert len(get(client, f"/seeds/{done['seeds']}/examples")["data"]) > 4


def test_files_come_whole_and_in_parts(client: httpx.Client, done: dict[str, Any]) -> None:
    adapter = get(client, f"/jobs/{done['id']}/checkpoints")["data"][0]["id"]
    for folder in (f"/datasets/{done['dataset']}", f"/adapters/{adapter}"):
        for file in get(client, folder)["files"]:
            url, tag, size = f"{folder}/files/{file['path']}", f'"{file["sha256"]}"', file["bytes"]
            whole = client.get(url)
            assert (whole.status_code, whole.headers["etag"]) == (200, tag)
            assert (len(whole.content), hashlib.sha256(whole.content).hexdigest()) == (size, file["sha256"])
            half = size // 2
            first = client.get(url, headers={"Range": f"bytes=0-{half - 1}", "If-Range": tag})
            rest = client.get(url, headers={"Range": f"bytes={half}-", "If-Range": tag})
            assert (first.status_code, rest.status_code) == (206, 206)
            assert rest.headers["content-range"] == f"bytes {half}-{size - 1}/{size}"
            assert first.content + rest.content == whole.content
            assert client.get(url, headers={"If-None-Match": tag}).status_code == 304
            assert client.head(url).headers["content-length"] == str(size)


def test_rows_and_exports(client: httpx.Client, done: dict[str, Any]) -> None:
    url = f"/datasets/{done['dataset']}"
    rows = get(client, f"{url}/rows", params={"limit": 5})
    more = get(client, f"{url}/rows", params={"limit": 5, "after": rows["last_id"]})
    assert len({one["id"] for one in rows["data"] + more["data"]}) == 10
    label = rows["data"][0]["label"]
    assert {one["label"] for one in get(client, f"{url}/rows", params={"label": label})["data"]} == {label}
    table = pq.read_table(io.BytesIO(client.get(f"{url}/export", params={"format": "parquet"}).content))
    assert table.num_rows == get(client, url)["rows"]
    lines = client.get(f"{url}/export", params={"format": "jsonl"}).text.splitlines()
    assert len(lines) == table.num_rows
    with zipfile.ZipFile(io.BytesIO(client.get(f"{url}/export", params={"format": "hf"}).content)) as packed:
        assert packed.testzip() is None
    assert set(packed.namelist()) == {f"{done['dataset']}/{file['path']}" for file in get(client, url)["files"]}


def test_adapters_answer(client: httpx.Client, done: dict[str, Any]) -> None:
    texts = ["river lamp ALPHA", "stone BRAVO"]
    by_job = client.post("/predict", json={"texts": texts, "job": done["id"]}).json()
    assert [len(one["probs"]) > 1 for one in by_job["data"]] == [True, True]
    for one in get(client, f"/jobs/{done['id']}/checkpoints")["data"]:
        reply = client.post("/predict", json={"texts": texts, "adapter": one["id"]})
        assert (reply.status_code, reply.json()["adapter"]) == (200, one["id"])
    assert by_job["adapter"] == done["adapter"]


def test_nothing_of_a_deleted_job_stays(client: httpx.Client, done: dict[str, Any], s3: S3Server) -> None:
    before = s3.keys(BUCKET)
    job = run_job(client)
    url, made = f"/datasets/{job['dataset']}", s3.keys(BUCKET) - before
    assert made == stored(client, job)
    row = get(client, f"{url}/rows", params={"review": "needed"})["data"][0]
    body = {"reviews": [{"row": row["id"], "decision": "reject"}], "reviewer": "ada"}
    reply = client.post(f"{url}/reviews", json=body)
    assert (reply.status_code, reply.json()["version"]) == (201, 2)
    newer = reply.json()
    assert newer["rows"] == get(client, url)["rows"] - 1
    assert row["id"] not in {one["id"] for one in get(client, f"/datasets/{newer['id']}/rows?limit=100")["data"]}
    of_review = s3.keys(BUCKET) - before - made
    assert of_review == {f"{PREFIX}/datasets/{newer['id']}/{file['path']}" for file in newer["files"]}
    assert client.delete(f"/jobs/{job['id']}").status_code == 200
    assert client.delete(f"/seeds/{job['seeds']}").status_code == 200
    assert s3.keys(BUCKET) == before
    assert client.get(f"/datasets/{newer['id']}").status_code == 404


def test_leftovers_are_swept(world: World, done: dict[str, Any], s3: S3Server) -> None:
    before = s3.keys(BUCKET)
    left = [f"seeds/{new_id(SEED)}", f"datasets/{new_id(DATASET)}", f"adapters/{new_id(ADAPTER)}"]
    for folder in left:
        s3.put(BUCKET, f"{PREFIX}/{folder}/data/half", b"x")
    s3.put(BUCKET, f"elsewhere/{left[0]}/data/half", b"x")
    assert sweeper(world, OLD_S / 2).sweep() == []
    assert set(left) <= set(sweeper(world, 2 * OLD_S).sweep())
    assert s3.keys(BUCKET) == before | {f"elsewhere/{left[0]}/data/half"}


def test_a_job_that_cannot_store_what_it_made_is_tried_again(client: httpx.Client, s3: S3Server) -> None:
    before = s3.keys(BUCKET)
    with s3.denying(lambda one: one.method == "PUT" and "/adapters/" in one.path):
        job = finished(client, post_job(client, post_seeds(client), settings=SHORT)["id"])
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "storage", True)
    client.post(f"/jobs/{job['id']}/retry")
    job = finished(client, job["id"])
    assert job["status"] == "succeeded"
    assert s3.keys(BUCKET) - before == stored(client, job)


def test_a_reply_that_is_cut_off_is_an_error_of_storage(
    client: httpx.Client, done: dict[str, Any], s3: S3Server
) -> None:
    with s3.cutting(lambda one: one.method == "GET" and one.path.endswith(ROWS)):
        replies = [client.get(f"/datasets/{done['dataset']}/{path}") for path in ("rows", f"files/{ROWS}")]
    assert [(one.status_code, one.json()["code"]) for one in replies] == [(503, "storage")] * 2
    assert all(s3.url not in one.text for one in replies)
    assert get(client, f"/datasets/{done['dataset']}/rows")["data"]


def test_what_another_server_stores_is_seen_at_once(s3: S3Server, tmp_path: Path) -> None:
    """Also by a server that has listed the folder when half of it was there."""
    s3.make("shared")
    ours, theirs = (ArtifactStore("s3://shared/x", tmp_path / name) for name in ("a", "b"))
    s3.put("shared", "x/datasets/ds_1/first", b"1")
    assert ours.folders("datasets") == ["datasets/ds_1"]
    assert ours.written_at("datasets/ds_1") > 0
    s3.put("shared", "x/datasets/ds_1/second", b"2")
    assert b"".join(ours.pieces("datasets/ds_1", "second", 0, 1)) == b"2"
    theirs.delete("datasets/ds_1")
    assert ours.folders("datasets") == []
    with pytest.raises(StorageError, match=r"at datasets/ds_1/second: it is not there\. Restore it"):
        ours.open("datasets/ds_1", "second")
    s3.put("shared", "x/datasets/ds_2/first", b"1")
    ours.delete("datasets/ds_2")
    assert s3.keys("shared") == set()


def test_a_part_of_a_large_file_is_not_read_with_all_that_follows(s3: S3Server, tmp_path: Path) -> None:
    s3.make("large")
    s3.put("large", "x/ad_1/weights", bytes(12 << 20))
    store = ArtifactStore("s3://large/x", tmp_path)
    begun = len(s3.seen)
    assert len(b"".join(store.pieces("ad_1", "weights", 5, 10))) == 10
    (asked,) = (one.range for one in s3.seen[begun:] if one.method == "GET")
    assert asked == f"bytes=5-{5 + 10 + AHEAD_BYTES - 1}"
    assert sum(map(len, store.pieces("ad_1", "weights", 0, 12 << 20))) == 12 << 20


REFUSED: dict[str, tuple[dict[str, str | None], str, type[AfdcError], str]] = {
    "no bucket": ({}, "s3://none/x", StorageError, "The specified bucket does not exist. Make the bucket first"),
    "no name": ({}, "s3://", UsageError, "names no bucket"),
    "bad name": ({}, "s3://a b/x", StorageError, 'Invalid bucket name "a b"'),
    "no credentials": ({"ACCESS_KEY_ID": None, "SECRET_ACCESS_KEY": None}, "", StorageError, "Unable to locate cred"),
    "half of them": ({"SECRET_ACCESS_KEY": None}, "", StorageError, "missing: AWS_SECRET_ACCESS_KEY"),
    "no profile": ({"PROFILE": "mine"}, "", StorageError, r"profile \(mine\) could not be found"),
    "no server": ({"ENDPOINT_URL": "http://127.0.0.1:9"}, "", StorageError, "Could not connect to the endpoint"),
    "bad address": ({"ENDPOINT_URL": "127.0.0.1:9"}, "", UsageError, "Invalid endpoint: 127.0.0.1:9"),
    "not installed": ({}, "gs://there/x", UsageError, "Please install gcsfs.*Install it in the server's environment"),
}


@pytest.mark.parametrize(("environ", "url", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_a_store_that_cannot_be_used_is_named_at_the_start(
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str | None],
    url: str,
    kind: type[AfdcError],
    words: str,
) -> None:
    for name, value in environ.items():
        if value is None:
            monkeypatch.delenv(f"AWS_{name}")
        else:
            monkeypatch.setenv(f"AWS_{name}", value)
    url = url or "s3://there/x"
    with pytest.raises(kind, match=words) as caught:
        ArtifactStore(url, tmp_path).check()
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not {"none", "there"} & s3.buckets(), "none is made"


@pytest.mark.parametrize(("method", "is_list"), [("PUT", False), ("GET", True), ("GET", False), ("DELETE", False)])
def test_each_right_that_is_missing_is_told_at_the_start(
    s3: S3Server, tmp_path: Path, method: str, is_list: bool
) -> None:
    bucket = f"right-{method}-{is_list}".lower()
    s3.make(bucket)
    store = ArtifactStore(f"s3://{bucket}", tmp_path)
    store.check()
    assert s3.keys(bucket) == set()
    with (
        s3.denying(lambda one: (one.method, "list-type" in one.query) == (method, is_list)),
        pytest.raises(StorageError, match=rf"at s3://{bucket}: Access Denied\. Check its address and credentials"),
    ):
        store.check()


def test_the_command_says_what_is_wrong_in_one_line(s3: S3Server, tmp_path: Path) -> None:
    with s3.knowing_no_key():
        command = [sys.executable, "-m", "afdc_server.service", "--port", "0", "--data", str(tmp_path)]
        command += ["--artifacts", "s3://refused/x"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (StorageError.exit_code, "")
    assert done.stderr.splitlines() == [
        "afdc-server: the artifact store failed at s3://refused/x: The AWS Access Key Id you provided does not exist in"
        " our records. Check its address and credentials, and their rights to read, write, list and delete"
        " (docs/deployment.md)"
    ]
