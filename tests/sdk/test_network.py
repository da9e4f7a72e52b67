"""Both clients against a real server on loopback."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from afdc import AsyncClient, Client
from afdc.sdk.exceptions import UnreachableError
from tests.sdk.service import DATASET, JOB, KEY, NOW, TASK, collect, event, frame, job, seed_set, settle

CONTENT = bytes(range(256)) * 2000
PATH = "data/train-00000.parquet"
KINDS = ["stage", "progress", "job_succeeded"]


class Handler(BaseHTTPRequestHandler):
    """Cuts every second download and every event stream off in the middle."""

    protocol_version = "HTTP/1.1"
    uploads: ClassVar[list[bytes]] = []
    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith("/events"):
            self._events(query)
        elif "/files/" in path:
            self._file()
        elif path.startswith("/v1/datasets"):
            file = {"path": PATH, "bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
            found = {"id": DATASET, "job": JOB, "version": 1, "task": TASK, "rows": 1, "rejected": 0, "created_at": NOW}
            self._json(found | {"files": [file]})
        else:
            self._json(job("succeeded"))

    def do_POST(self) -> None:
        self.uploads.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._json(seed_set())

    def _json(self, value: Any) -> None:
        self._head(200, {"Content-Length": str(len(json.dumps(value)))})
        self.wfile.write(json.dumps(value).encode())

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()

    def _file(self) -> None:
        asked = self.headers.get("Range")
        start = int(asked[6:-1]) if asked else 0
        self.ranges.append(asked)
        extra = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if asked else {}
        self._head(206 if asked else 200, {"Content-Length": str(len(CONTENT) - start), **extra})
        self.wfile.write(CONTENT[start:] if asked else CONTENT[:300_001])
        self.close_connection = True

    def _events(self, query: str) -> None:
        last = int(self.headers.get("Last-Event-ID", 0))
        if "after=" in query:
            self._json({"data": [event(n, kind) for n, kind in enumerate(KINDS, 1) if f"after={n - 1}&" in query]})
            return
        self._head(200, {"Content-Type": "text/event-stream", "Connection": "close"})
        if last < len(KINDS):
            self.wfile.write(b": ping\n\n" + frame(last + 1, KINDS[last]) + frame(last + 2)[:20])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def address() -> Iterator[str]:
    Handler.uploads.clear()
    Handler.ranges.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=[Client, AsyncClient])
async def client(request: pytest.FixtureRequest, address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # nobody is there: a server on this machine needs no proxy
    made = request.param(address, KEY)
    yield made
    await settle(made.close())


async def test_a_download_that_is_cut(client: Any, tmp_path: Path) -> None:
    await settle(client.datasets.download(DATASET, tmp_path))
    assert (tmp_path / PATH).read_bytes() == CONTENT
    assert Handler.ranges == [None, "bytes=300001-"]


async def test_an_event_stream_that_is_cut(client: Any) -> None:
    assert [found.kind for found in await collect(client.jobs.stream(JOB))] == KINDS


async def test_an_upload(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(b'{"text": "x", "label": "up"}\n' * 30_000)
    await settle(client.seeds.create(path))
    assert Handler.uploads == [path.read_bytes()]
    assert (await settle(client.jobs.wait(JOB))).status == "succeeded"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_nobody_is_there(kind: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        client = kind(address, max_retries=0)
        with pytest.raises(UnreachableError, match=r"cannot reach http://127\.0\.0\.1.*afdc-server"):
            await settle(client.jobs.get(JOB))
        await settle(client.close())
