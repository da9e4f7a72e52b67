"""moto's S3 server on loopback: real HTTP, every request seen, and any of them refused or cut off on demand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import httpx
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET = "AKIAAFDCTESTS", "a-canary-of-the-bucket"
ENOUGH = 1000
ACCESS_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


@dataclass(frozen=True)
class Seen:
    """A request. `range`: its Range header."""

    method: str
    path: str
    query: str
    range: str


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """A test tells of what went wrong itself."""


class S3Server:
    """One server with as many buckets as tests make. The variables have to lead to it before it starts.

    Attributes:
        seen: every request so far.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.seen: list[Seen] = []
        self._denied: Callable[[Seen], bool] = _none
        self._cut: Callable[[Seen], bool] = _none

    def start(self) -> None:
        self._thread.start()
        self._client = boto3.session.Session().client("s3")

    def stop(self) -> None:
        self._client.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def make(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket)

    def buckets(self) -> set[str]:
        return {one["Name"] for one in self._client.list_buckets()["Buckets"]}

    def keys(self, bucket: str) -> set[str]:
        """Names of everything in the bucket, as another client lists them."""
        page = self._client.list_objects_v2(Bucket=bucket, MaxKeys=ENOUGH)
        assert not page["IsTruncated"]
        return {one["Key"] for one in page.get("Contents", ())}

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=bucket, Key=key, Body=body)

    @contextlib.contextmanager
    def denying(self, which: Callable[[Seen], bool]) -> Iterator[None]:
        """Such requests are answered with 403."""
        self._denied = which
        try:
            yield
        finally:
            self._denied = _none

    @contextlib.contextmanager
    def cutting(self, which: Callable[[Seen], bool]) -> Iterator[None]:
        """Such requests get half of their answer."""
        self._cut = which
        try:
            yield
        finally:
            self._cut = _none

    @contextlib.contextmanager
    def knowing_no_key(self) -> Iterator[None]:
        """moto checks keys against those that IAM has made: none."""
        _let_in(self.url, "0")
        try:
            yield
        finally:
            _let_in(self.url, "inf")

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_RANGE")
        one = Seen(*(str(environ.get(name, "")) for name in names))
        self.seen.append(one)
        if self._denied(one):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [ACCESS_DENIED]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return _halved(answer) if self._cut(one) else answer


def _none(_: Seen) -> bool:
    return False


def _halved(answer: Iterable[bytes]) -> Iterator[bytes]:
    body = b"".join(answer)
    yield body[: len(body) // 2]
    raise ConnectionError("cut")  # werkzeug then closes the connection without a word


def _let_in(url: str, requests: str) -> None:
    """How many requests are answered before keys are looked at."""
    assert httpx.post(f"{url}/moto-api/reset-auth", content=requests).status_code == 200


def lead_to(url: str, patch: pytest.MonkeyPatch) -> None:
    """The usual variables; files and the network of the machine that runs the tests say nothing beside them."""
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_MAX_ATTEMPTS", "1")
    patch.setattr(S3FileSystem, "retries", 1)  # within each of these are those of AWS_MAX_ATTEMPTS
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        patch.setenv(name, "/dev/null")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1")
