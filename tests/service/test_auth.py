"""Who may call: keys, scopes, revocation, and headers that are no credentials."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc_server.accounts import keys as account_keys
from afdc_server.accounts import store
from afdc_server.api.app import make_app
from tests.service.world import World, running, seed_body

PATHS: dict[str, dict[str, Any]] = make_app().openapi()["paths"]
GUARDED = [(method.upper(), path) for path, item in PATHS.items() for method in item if path.startswith("/v1/")]


@pytest.fixture
def anonymous(world: World) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{world.address}/v1", timeout=10) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_nothing_answers_without_a_key(anonymous: httpx.Client, method: str, path: str) -> None:
    filled = re.sub(r"\{\w+\}", "job_" + "0" * 32, path).removeprefix("/v1")
    for body in (b"", b"{}", b"not JSON at all", b"x" * 100_000):
        reply = anonymous.request(method, filled, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 401, body[:20]
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Basic YTpi",
        "afdc_without_a_scheme",
        "Bearer afdc_",
        "Bearer afdc_" + "x" * 43,
        "Bearer afdc_" + "x" * 10_000,
        "Bearer sk-somebody-elses",
        "Bearer afdc_' OR 1=1 --",
        "Bearer afdc_\u00e9\u00fc",
        "Bearer afdc_a afdc_b",
        "Bearer\tafdc_x",
        "Bearer " + "é" * 40,
    ],
)
def test_what_is_no_key_opens_nothing(anonymous: httpx.Client, value: str) -> None:
    reply = anonymous.get("/jobs", headers={"Authorization": value.encode("latin-1")})
    assert reply.status_code == 401
    assert "somebody" not in reply.text


def test_two_authorization_headers_open_nothing_more(world: World, anonymous: httpx.Client) -> None:
    headers = [("Authorization", "Bearer afdc_wrong"), ("Authorization", f"Bearer {world.key()}")]
    assert anonymous.get("/jobs", headers=headers).status_code == 401


def test_the_scheme_is_read_in_any_letter_case(world: World, anonymous: httpx.Client) -> None:
    assert anonymous.get("/jobs", headers={"Authorization": f"bearer {world.key()}"}).status_code == 200


def test_a_key_is_not_read_from_the_query_or_a_cookie(world: World, anonymous: httpx.Client) -> None:
    key = world.key()
    assert anonymous.get("/jobs", params={"api_key": key, "token": key}).status_code == 401
    assert anonymous.get("/jobs", headers={"Cookie": f"Authorization=Bearer {key}"}).status_code == 401


def test_a_revoked_key_opens_nothing_from_then_on(world: World, client: httpx.Client) -> None:
    made = client.post("/keys", json={"name": "short", "tenant": "brief"}).json()
    assert made["key"].startswith(made["hint"])
    with httpx.Client(base_url=f"{world.address}/v1", headers={"Authorization": f"Bearer {made['key']}"}) as brief:
        assert brief.get("/jobs").status_code == 200
        assert client.delete(f"/keys/{made['id']}").status_code == 200
        assert brief.get("/jobs").status_code == 401
        assert brief.post("/seeds", json=seed_body()).status_code == 401
    assert client.delete(f"/keys/{made['id']}").status_code == 200  # a repeat changes nothing
    listed = next(one for one in client.get("/keys").json()["data"] if one["id"] == made["id"])
    assert listed["revoked_at"]
    assert "key" not in listed


def test_keys_are_paged(client: httpx.Client) -> None:
    made = [client.post("/keys", json={"name": f"page {n}"}).json()["id"] for n in range(3)]
    first = client.get("/keys", params={"limit": 2}).json()
    assert [one["id"] for one in first["data"]] == [made[2], made[1]]
    assert first["has_more"]
    second = client.get("/keys", params={"limit": 1, "after": first["last_id"]}).json()
    assert [one["id"] for one in second["data"]] == [made[0]]


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (["read"], "GET", "/jobs", 200),
        (["read"], "POST", "/seeds", 403),
        (["read"], "POST", "/seeds/validate", 200),
        (["read"], "GET", "/keys", 403),
        (["jobs"], "GET", "/jobs", 200),
        (["jobs"], "POST", "/seeds", 201),
        (["jobs"], "GET", "/engine/adapters", 403),
        (["jobs"], "POST", "/keys", 403),
        (["admin"], "POST", "/seeds", 201),
        (["admin"], "GET", "/engine/adapters", 200),
    ],
)
def test_scopes(world: World, scopes: list[str], method: str, path: str, status: int) -> None:
    with world.client("scoped", *scopes) as client:
        body = ({"name": "x"} if path == "/keys" else seed_body()) if method == "POST" else None
        assert client.request(method, path, json=body).status_code == status


def test_a_tenant_has_a_name_that_can_stand_anywhere(client: httpx.Client) -> None:
    for name in ("Team", "a b", "../x", "a\u0000", "é", "-a", "x" * 64, "a\n"):
        assert client.post("/keys", json={"tenant": name}).status_code == 422, name
    for scopes in ([], ["root"], ["read"] * 10):
        assert client.post("/keys", json={"scopes": scopes}).status_code == 422


def test_only_digests_are_stored_and_they_are_compared_in_constant_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.key("timed", "read")
    compared: list[tuple[object, object]] = []
    in_constant_time = hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return in_constant_time(a, b)

    monkeypatch.setattr(store.hmac, "compare_digest", compare)
    with world.services.db.read() as connection:
        found = store.find_caller(connection, world.services.secret, key)
        wrong = store.find_caller(connection, b"another secret" * 4, key)
    assert found is not None
    assert found.tenant == "timed"
    assert wrong is None
    digest = account_keys.digest(world.services.secret, key)
    assert compared == [(digest, digest)]


def test_the_secret_is_the_owners_alone(tmp_path: Path) -> None:
    with running(tmp_path / "data") as world:
        path = world.services.settings.secret_path
        assert path.stat().st_mode & 0o077 == 0
        assert len(path.read_bytes()) == 32
        assert world.key() not in {world.key() for _ in range(20)}
        assert len(world.key()) > 45


def test_health_needs_no_key_and_tells_nothing(anonymous: httpx.Client, world: World) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        reply = httpx.get(f"{world.address}{path}")
        assert reply.status_code == 200
        assert str(world.services.settings.data) not in reply.text
