"""Errors: typed, with the server's own words, and never with the key."""

from __future__ import annotations

import traceback
from typing import Any

import httpx
import pytest

from afdc import AsyncClient, Client
from afdc.errors import AfdcError, UsageError
from afdc.sdk.exceptions import (
    ApiError,
    AuthError,
    ConflictApiError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    ReplyError,
    ServerFailedError,
    UnreachableError,
)
from afdc.sdk.options import resolve_options
from tests.sdk.conftest import MakeClient
from tests.sdk.service import JOB, KEY, Service, job, problem, settle

PATH = f"GET /v1/jobs/{JOB}"


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (400, InvalidRequestError, 5),
        (401, AuthError, 3),
        (402, ApiError, 6),
        (403, AuthError, 3),
        (404, NotFoundError, 4),
        (409, ConflictApiError, 5),
        (410, NotFoundError, 4),
        (413, InvalidRequestError, 5),
        (415, InvalidRequestError, 5),
        (422, InvalidRequestError, 5),
        (429, RateLimitedError, 8),
        (500, ServerFailedError, 8),
        (503, ServerFailedError, 8),
        (599, ServerFailedError, 8),
    ],
)
async def test_a_type_for_every_status(
    make_client: MakeClient, service: Service, status: int, kind: type[ApiError], exit_code: int
) -> None:
    faults = [{"pointer": "/settings/loop", "code": "extra", "message": "not known"}]
    service.on(PATH, problem(status, "some_code", request_id="req_1", errors=faults))
    with pytest.raises(ApiError) as caught:
        await settle(make_client(max_retries=0).jobs.get(JOB))
    error = caught.value
    assert type(error) is kind
    assert (error.exit_code, error.status, error.code, error.request_id) == (exit_code, status, "some_code", "req_1")
    assert error.problem.errors[0].pointer == "/settings/loop"
    assert "What is wrong (/settings/loop: not known) [request req_1]" in str(error)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (httpx.Response(502, text="<html>Bad gateway</html>", headers={"content-type": "text/html"}), "status 502"),
        (httpx.Response(404, text="no such page"), "no such page"),
        (httpx.Response(500, json=["x"]), "status 500"),
        (httpx.Response(500, content=b"\xff\xfe", headers={"content-type": "text/plain"}), "\ufffd"),
        (httpx.Response(503), "status 503"),
    ],
)
async def test_what_is_no_problem_document(
    make_client: MakeClient, service: Service, reply: httpx.Response, told: str
) -> None:
    service.on(PATH, reply)
    with pytest.raises(ApiError) as caught:
        await settle(make_client(max_retries=0).jobs.get(JOB))
    assert told in str(caught.value)
    assert caught.value.code == f"http_{reply.status_code}"


async def test_the_request_id_of_the_header(client: Any, service: Service) -> None:
    service.on(PATH, httpx.Response(404, headers={"X-Request-Id": "req_2"}))
    with pytest.raises(NotFoundError) as caught:
        await settle(client.jobs.get(JOB))
    assert caught.value.request_id == "req_2"


async def test_many_faults_and_control_characters(client: Any, service: Service) -> None:
    faults = [{"pointer": "", "code": "x", "message": f"bad\x1b[31m {n}"} for n in range(9)]
    service.on(PATH, problem(422, "x", detail="one\ntwo\x07", errors=faults))
    with pytest.raises(InvalidRequestError) as caught:
        await settle(client.jobs.get(JOB))
    assert "one two\ufffd" in str(caught.value)
    assert "and 4 more" in str(caught.value)
    assert not set(str(caught.value)) & {"\x1b", "\n", "\x07"}


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"id": 5}),
        httpx.Response(200),
        httpx.Response(204),
        httpx.Response(304),
        httpx.Response(200, content=b'{"id": "\xff"}'),
    ],
)
async def test_an_answer_that_is_not_ours(client: Any, service: Service, reply: httpx.Response) -> None:
    service.on(PATH, reply)
    with pytest.raises(ReplyError, match="the server's answer is no Job"):
        await settle(client.jobs.get(JOB))


async def test_no_redirect_is_followed(client: Any, service: Service) -> None:
    service.on(PATH, httpx.Response(307, headers={"location": "https://elsewhere.example/v1/jobs"}))
    with pytest.raises(ReplyError, match="elsewhere"):
        await settle(client.jobs.get(JOB))
    assert len(service.requests) == 1


async def test_unknown_fields_of_a_newer_server(client: Any, service: Service) -> None:
    service.on(PATH, job(new_field={"x": 1}))
    assert (await settle(client.jobs.get(JOB))).id == JOB


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout(""), False),
        (httpx.ReadError(""), True),
        (httpx.ReadTimeout(""), True),
        (httpx.DecodingError("x"), True),
    ],
)
async def test_unreachable(make_client: MakeClient, service: Service, error: Exception, sent: bool) -> None:
    service.on(PATH, error)
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:8741") as caught:
        await settle(make_client(max_retries=0).jobs.get(JOB))
    assert caught.value.exit_code == 8
    assert caught.value.sent is sent
    assert ("afdc-server" in str(caught.value)) is not sent


@pytest.mark.parametrize("answer", [problem(401, "x"), httpx.ReadError("cut"), httpx.Response(200), problem(500, "x")])
async def test_the_key_goes_out_and_is_never_shown(make_client: MakeClient, service: Service, answer: Any) -> None:
    client = make_client(max_retries=0)
    service.on(PATH, answer)
    with pytest.raises(AfdcError) as caught:
        await settle(client.jobs.get(JOB))
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert KEY not in shown
    things = (client, client._sender, client._sender.options, client._sender._http.headers, client.jobs)
    assert KEY not in "".join(map(repr, things))
    assert KEY not in repr(vars(caught.value))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["afdc_x\ny", "afdc_\u2026", "two words", "x\x00"])
def test_a_key_that_no_header_takes_is_refused_without_showing_it(kind: Any, key: str) -> None:
    with pytest.raises(UsageError, match="API key") as caught:
        kind(api_key=key)
    assert key not in str(caught.value)


def test_settings_from_the_environment() -> None:
    found = resolve_options(None, None, 5, 1, {"AFDC_SERVER": "https://h.example/base/v1/", "AFDC_API_KEY": " k "})
    assert (found.server, found.api_key, found.is_local) == ("https://h.example/base", "k", False)
    assert resolve_options("http://[::1]:1", "", 5, 1, {"AFDC_API_KEY": "k"}).api_key == ""
    assert resolve_options(None, None, 5, 1, {}).server == "http://127.0.0.1:8741"
    assert resolve_options("http://localhost", None, 5, 1, {}).is_local


@pytest.mark.parametrize(
    "server",
    ["ftp://x", "x", "http://", "http://x?y=1", "http://u:hunter2@x", "http://x:hunter2", "http://[x", "file:///x"],
)
def test_addresses_that_are_none(server: str) -> None:
    with pytest.raises(UsageError) as caught:
        Client(server)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"timeout": float("nan")}, {"max_retries": -1}])
def test_numbers_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Client(**settings)


@pytest.mark.parametrize("id", ["", "../keys", "a/b", "a?b", "a b", "\u00e9", ".", "x" * 300])
async def test_ids_stay_in_their_place(client: Any, service: Service, id: str) -> None:
    for call in (client.jobs.get, client.jobs.cancel, client.seeds.get, client.keys.revoke):
        with pytest.raises(UsageError, match="not an id"):
            await settle(call(id))
    assert not service.requests


async def test_who_asks(client: Any, service: Service) -> None:
    service.on("GET /healthz", {"status": "ok"})
    assert (await settle(client.health())).status == "ok"
    assert service.requests[0].headers["user-agent"].startswith("afdc/")


async def test_an_unready_server_answers_too(client: Any, service: Service) -> None:
    checks = {"database": "ok", "engine": "starting"}
    service.on("GET /readyz", httpx.Response(503, json={"status": "unready", "checks": checks}))
    found = await settle(client.ready())
    assert (found.status, found.checks, len(service.requests)) == ("unready", checks, 1)
    service.on("GET /readyz", httpx.Response(503, text="proxy"), problem(404, "not_found"))
    with pytest.raises(ReplyError):
        await settle(client.ready())
    with pytest.raises(NotFoundError):
        await settle(client.ready())


@pytest.mark.parametrize("answer", [[], {}, {"info": 3}, {"info": {"version": 3}}])
async def test_the_version_is_that_of_the_document(client: Any, service: Service, answer: Any) -> None:
    service.on("GET /openapi.json", {"info": {"version": "1.2"}}, httpx.Response(200, json=answer))
    assert await settle(client.version()) == "1.2"
    with pytest.raises(ReplyError, match="no version"):
        await settle(client.version())
