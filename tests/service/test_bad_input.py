"""Requests that are wrong, hostile or endless: a problem in reply, in bounded memory and time, and nothing stored."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import func, select

from afdc_server.api.bodies import MAX_DEPTH
from afdc_server.api.connections import PatientProtocol
from afdc_server.db.schema import idempotency, seed_sets, service_jobs
from tests.fakes.engine import FakeEngine
from tests.service.world import World, fake_parts, make_settings, seed_body

MIB = 1 << 20
PROBLEM = "application/problem+json"
BODIES = ("/seeds", "/seeds/validate", "/jobs", "/jobs/estimate", "/jobs/preview", "/predict", "/generate", "/score")


class Impatient(PatientProtocol):
    head_s = 1.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With little patience, and small limits."""
    limits = {"json_bytes": 8 * MIB, "upload_bytes": 256 * MIB, "body_idle_s": 0.5, "seed_rows": 50_000}
    made = World(make_settings(tmp_path_factory.mktemp("bad"), limits=limits), fake_parts(FakeEngine()))
    made._server.config.http = Impatient
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _nothing_is_stored(world: World) -> Iterator[None]:
    before = stored(world)
    yield
    assert stored(world) == before


def stored(world: World) -> Any:
    """Rows of the tables that requests fill, and the folders that they make."""
    with world.services.db.read() as connection:
        counts = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (seed_sets, service_jobs, idempotency)
        ]
    folders = ("artifacts", "uploads")
    return counts, sorted(
        str(path) for name in folders for path in (world.services.settings.data / name).rglob("*") if path.is_file()
    )


class Watched:
    """Growth of this process (server and client live in it) and seconds, while a block runs."""

    def __init__(self, mib: float, seconds: float) -> None:
        self._mib, self._seconds = mib, seconds
        self._process = psutil.Process()

    def __enter__(self) -> None:
        self._before = self._highest = self._process.memory_info().rss
        self._started, self._over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            assert time.monotonic() - self._started < self._seconds
            assert (self._highest - self._before) / MIB < self._mib


def refused(reply: httpx.Response, *statuses: int) -> dict[str, Any]:
    assert reply.status_code in (statuses or (422,)), reply.text[:300]
    assert reply.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = reply.json()
    assert problem["status"] == reply.status_code
    assert len(reply.content) < 200_000
    return problem


def post_json(client: httpx.Client, path: str, body: bytes, **headers: str) -> httpx.Response:
    return client.post(path, content=body, headers={"Content-Type": "application/json", **headers})


BROKEN_JSON: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"seeds": "a',
    "no object": b"[]",
    "null": b"null",
    "a number": b"1",
    "two values": b"{} {}",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep in settings": b'{"seeds":"a","settings":' + b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 2),
    "huge integer": b'{"seeds": ' + b"9" * 100_000 + b"}",
    "long integer": b'{"seeds":"a","settings":{"seed":' + b"9" * 4000 + b"}}",
    "huge exponent": b'{"seeds":"a","settings":{"loop":{"holdout":1e999999}}}',
    "nan": b'{"seeds":"a","settings":{"loop":{"holdout":NaN}}}',
    "infinity": b'{"seeds":"a","settings":{"loop":{"holdout":-Infinity}}}',
    "lone surrogate": b'{"seeds":"a","name":"\\ud800"}',
    "surrogate in a key": b'{"seeds":"a","metadata":{"\\udfff":"x"}}',
    "nul": b'{"seeds":"a","name":"a\\u0000b"}',
    "raw nul": b'{"seeds":"a\x00"}',
    "not utf-8": b'{"seeds":"\xff\xfe"}',
    "utf-16": '{"seeds":"a"}'.encode("utf-16"),
    "key given twice": b'{"seeds":"a","seeds":"b"}',
    "inner key given twice": b'{"seeds":"a","metadata":{"k":"1","k":"2"}}',
    "a million keys": b"{" + b",".join(b'"k%d":0' % n for n in range(500_000)) + b"}",
    "a million faults": b'{"examples":[' + b"1," * 2_000_000 + b"1]}",
    "comments": b'{"seeds": "a" /* b */}',
    "single quotes": b"{'seeds': 'a'}",
    "form": b"seeds=a&name=b",
}


@pytest.mark.parametrize("what", BROKEN_JSON)
def test_json_that_cannot_be_used(client: httpx.Client, what: str) -> None:
    with Watched(600, 30):
        for path in BODIES:
            refused(post_json(client, path, BROKEN_JSON[what]), 413, 422)


def test_a_byte_order_mark_is_no_fault(client: httpx.Client) -> None:
    reply = post_json(client, "/seeds/validate", b"\xef\xbb\xbf" + json.dumps(seed_body()).encode())
    assert reply.json()["valid"]


def test_whole_surrogate_pairs_and_other_escapes_are_text(client: httpx.Client) -> None:
    body = seed_body()
    body["examples"][0]["text"] = "\U0001f600 Å \\u0000 written out"
    assert client.post("/seeds/validate", content=json.dumps(body)).json()["valid"]


@pytest.mark.parametrize(
    "kind", ["text/html", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "é"]
)
def test_bodies_of_another_type(client: httpx.Client, kind: str) -> None:
    for path in BODIES:
        body = json.dumps(seed_body()).encode()
        reply = client.post(path, content=body, headers={"Content-Type": kind.encode()})  # type: ignore[dict-item]  # httpx takes bytes
        assert refused(reply, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("coding", ["gzip", "deflate, gzip", "br"])
def test_compressed_bodies_are_refused_unopened(client: httpx.Client, coding: str) -> None:
    bomb = gzip.compress(b"0" * (64 * MIB))
    with Watched(100, 10):
        reply = post_json(client, "/seeds", bomb, **{"Content-Encoding": coding})
    assert refused(reply, 415)
    assert reply.headers["Accept-Encoding"] == "identity"


def test_a_length_past_the_limit_is_refused_before_the_body_comes(world: World) -> None:
    with Watched(50, 5):
        reply = raw(world, f"POST /v1/jobs HTTP/1.1\r\n{head(world)}Content-Length: 99999999999999\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 413")
    assert b'"code":"too_large"' in reply


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999999999", "0x10", "1, 2", " "])
def test_lengths_that_are_none(world: World, length: str) -> None:
    reply = raw(world, f"POST /v1/jobs HTTP/1.1\r\n{head(world)}Content-Length: {length}\r\n\r\n".encode())
    assert reply[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 413"} or reply == b""


def test_an_endless_chunked_body_ends_at_the_limit(client: httpx.Client) -> None:
    pieces = (b" " * MIB for _ in range(100_000))
    with Watched(120, 30):
        refused(post_stream(client, "/jobs", pieces, "application/json"), 413)


def post_stream(client: httpx.Client, path: str, pieces: Iterator[bytes], kind: str, **query: Any) -> httpx.Response:
    return client.post(path, content=pieces, headers={"Content-Type": kind}, params=query)


def test_a_body_that_stops_is_given_up(world: World) -> None:
    with Watched(50, 10):
        reply = raw(world, f"POST /v1/seeds HTTP/1.1\r\n{head(world)}Content-Length: 100\r\n\r\n{{".encode(), wait=8)
    assert reply.startswith(b"HTTP/1.1 408")
    assert b'"code":"slow_body"' in reply


def test_a_body_that_drips_is_given_up(world: World) -> None:
    start = f"POST /v1/seeds HTTP/1.1\r\n{head(world)}Content-Length: 100000\r\n\r\n".encode()
    begun = time.monotonic()
    with connected(world) as connection:
        reply = drip(connection, start, 0.1, 15)
    assert reply.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 8


def test_headers_that_drip_are_given_up(world: World) -> None:
    begun = time.monotonic()
    with connected(world) as connection:
        reply = drip(connection, b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: ", 0.1, 15)
    assert reply.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 5


def test_connections_without_a_word_are_closed(world: World) -> None:
    many = [connected(world) for _ in range(100)]
    begun = time.monotonic()
    for connection in many:
        connection.settimeout(10)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408")
        connection.close()
    assert time.monotonic() - begun < 5


def test_a_slow_head_after_an_answer_is_given_up_too(world: World) -> None:
    with connected(world) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert drip(connection, b"GET /healthz", 0.2, 8).startswith(b"HTTP/1.1 408")


def test_endless_headers_are_refused(world: World) -> None:
    with Watched(60, 15):
        reply = raw(
            world,
            b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n"
            + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(20_000)),
        )
    assert reply[:12] in {b"HTTP/1.1 431", b"HTTP/1.1 400"} or reply == b""


def test_headers_behind_a_stream_are_bounded(world: World) -> None:
    """A second request's endless head, while the first one is still being answered."""
    with Watched(60, 15):
        waiting = f"GET /v1/jobs/job_{'0' * 32}?wait=5 HTTP/1.1\r\n{head(world)}\r\n".encode()
        raw(world, waiting + b"GET / HTTP/1.1\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 300_000)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /v1/jobs\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        "GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ],
)
def test_what_is_no_http(world: World, request_line: bytes) -> None:
    reply = raw(world, request_line)
    assert reply[9:10] in {b"4", b""}, reply[:100]
    assert b"Traceback" not in reply


LONG_LINE = b'{"text": "' + b"x" * (100 * MIB) + b'", "label": "a"}\n'


def test_a_line_of_100_mb(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (LONG_LINE[start : start + MIB] for start in range(0, len(LONG_LINE), MIB))

    with Watched(60, 60):
        found = refused(post_stream(client, "/seeds", pieces(), "application/jsonl"))
    assert "longer than" in found["errors"][0]["message"]


def test_more_rows_than_are_allowed(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for n in range(0, 200_000, 1000):
            yield b"".join(b'{"text": "t%d", "label": "l%d"}\n' % (n + i, i % 3) for i in range(1000))

    with Watched(300, 60):
        refused(post_stream(client, "/seeds", pieces(), "application/jsonl"), 413)


def test_a_million_labels(client: httpx.Client) -> None:
    rows = (
        b"".join(b'{"text": "t%d", "label": "l%d"}\n' % (n + i, n + i) for i in range(1000))
        for n in range(0, 20_000, 1000)
    )
    with Watched(300, 60):
        found = refused(post_stream(client, "/seeds", rows, "application/jsonl"))
        assert "labels" in found["detail"]
        named = {"task": {"labels": [f"l{n}" for n in range(600_000)]}, "examples": [{"text": "a", "label": "l1"}]}
        refused(client.post("/seeds", json=named), 413, 422)
        refused(
            client.post(
                "/seeds",
                params={"label": [f"l{n}" for n in range(4000)]},
                content=b"",
                headers={"Content-Type": "text/csv"},
            )
        )


CSV_FAULTS = {
    "no header": b"Where is it?,card\n",
    "quote left open": b'text,label\n"Where is it?,card\n',
    "text behind a quote": b'text,label\n"Where" is it,card\n',
    "too many fields": b"text,label\na,b,c\n",
    "column twice": b"text,label,text\na,b,c\n",
    "not utf-8": b"text,label\n\xff\xfe,b\n",
    "nul": b"text,label\na\x00b,c\n",
    "only a header": b"text,label\n",
    "nothing": b"",
    "one label": b"text,label\na,x\nb,x\n",
}


@pytest.mark.parametrize("what", CSV_FAULTS)
def test_csv_that_cannot_be_used(client: httpx.Client, what: str) -> None:
    reply = client.post("/seeds", content=CSV_FAULTS[what], headers={"Content-Type": "text/csv"})
    found = refused(reply)
    assert found["code"] == "invalid_seeds"
    assert found["errors"]
    assert "uploads" not in reply.text


@pytest.mark.parametrize(
    "id", ["x" * 10_000, "job_", "%00", "..", "%2e%2e%2fsecret", "job_" + "g" * 32, "1' OR '1'='1", "%ff%fe"]
)
@pytest.mark.parametrize("kind", ["seeds", "jobs", "datasets", "adapters", "keys", "engine/adapters"])
def test_ids_that_are_none(client: httpx.Client, kind: str, id: str) -> None:
    for method in ("GET", "DELETE"):
        refused(client.request(method, f"/{kind}/{id}"), 404, 405)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=1e2",
        "limit=" + "9" * 5000,
        "after=%00",
        "after=" + "a" * 65,
        "after=%ff",
        "after=A-B",
    ],
)
def test_pages_that_are_none(client: httpx.Client, query: str) -> None:
    for path in ("/jobs", "/seeds", "/keys"):
        refused(client.get(f"{path}?{query}"))


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "\t", "é", "a\x7f"])
def test_idempotency_keys_that_are_none(client: httpx.Client, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1").strip()}
    refused(client.post("/seeds", json=seed_body(), headers=headers), 400, 422)  # type: ignore[arg-type]  # httpx takes bytes


def test_a_client_that_leaves_in_the_middle_is_no_fault(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(10):
        with connected(world) as connection:
            connection.sendall(f"POST /v1/seeds HTTP/1.1\r\n{head(world)}Content-Length: 1000\r\n\r\n{{".encode())
            time.sleep(0.02)
    time.sleep(0.3)
    assert "Traceback" not in capfd.readouterr().err


def test_a_refused_upload_is_answered_although_nobody_reads_it(client: httpx.Client) -> None:
    """The client sends 30 MiB before it looks at the answer, which comes after the first ones."""
    for headers in ({"Authorization": "Bearer afdc_wrong"}, {"Content-Type": "application/json"}):
        reply = client.post("/seeds", content=b"x" * (30 * MIB), headers=headers)
        refused(reply, 401, 413)


def test_a_full_disk_leaves_nothing(world: World, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afdc_server.artifacts.shutil.copytree", fail)
    reply = client.post("/seeds", json=seed_body())
    assert refused(reply, 503)["code"] == "storage"
    assert reply.headers["Retry-After"]
    assert "No space" not in reply.text
    assert str(world.services.settings.data) not in reply.text


def test_a_database_that_fails_leaves_no_rows_behind(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the canary of a bug")

    monkeypatch.setattr("afdc_server.api.seeds.keep_reply", fail)
    reply = client.post("/seeds", json=seed_body())
    found = refused(reply, 500)
    assert found["request_id"] == reply.headers["x-request-id"]
    assert "canary" not in reply.text


def head(world: World) -> str:
    return f"Host: x\r\nAuthorization: Bearer {world.key()}\r\nContent-Type: application/json\r\n"


def connected(world: World) -> socket.socket:
    host, port = world.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def raw(world: World, data: bytes, wait: float = 5) -> bytes:
    """Whatever comes back until the server closes, or says no more."""
    with connected(world) as connection:
        connection.settimeout(wait)
        sender = threading.Thread(target=_quietly, args=(lambda: connection.sendall(data),))
        sender.start()
        found = b""
        try:
            while piece := connection.recv(1 << 16):
                found += piece
                if b"content-length: 0" in found or found.endswith(b"}"):
                    break
        except OSError:
            pass
    sender.join()
    return found


def drip(connection: socket.socket, start: bytes, every_s: float, seconds: float) -> bytes:
    """Send a byte now and then until something comes back."""
    connection.sendall(start)
    connection.settimeout(every_s)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _quietly(lambda: connection.sendall(b"a"))
        try:
            return connection.recv(1 << 16)
        except TimeoutError:
            continue
    return b""


def _quietly(work: Callable[[], object]) -> None:
    try:
        work()
    except OSError:
        return


def test_no_file_of_an_upload_stays(world: World) -> None:
    folder: Path = world.services.settings.data / "uploads"
    assert not folder.exists() or os.listdir(folder) == []
