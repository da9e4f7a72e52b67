"""What one tenant has is not there for another: every operation of the OpenAPI document with an id in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from afdc_server.api.app import make_app
from tests.service.world import SETTINGS, World, dump, finished, post_job, post_seeds, running, seed_body

PATHS: dict[str, dict[str, Any]] = make_app().openapi()["paths"]
OPERATORS = ("/v1/keys", "/v1/tenants", "/v1/engine", "/v1/generate", "/v1/score")
OWNED = [
    (method.upper(), path)
    for path, item in PATHS.items()
    for method in item
    if "{" in path and not path.startswith(OPERATORS)
]
LISTS = [path for path, item in PATHS.items() if "get" in item and "{" not in path and path.startswith("/v1/")]
ADMIN = [(method.upper(), path) for path, item in PATHS.items() for method in item if path.startswith(OPERATORS)]
KEY_ID = "key_" + "0" * 32
SCOPES = {"GET": "read", "HEAD": "read", "POST": "jobs", "DELETE": "jobs"}


@dataclass(frozen=True)
class Owned:
    """A world in which one tenant has one of everything."""

    world: World
    ids: dict[str, str]
    path: str

    def fill(self, path: str) -> str:
        """The path with the owner's ids in it."""
        kind = path.split("/")[2]
        return path.removeprefix("/v1").replace("{id}", self.ids.get(kind, "")).replace("{path}", self.path)

    def snapshot(self) -> str:
        """Everything that the owner can see."""
        with self.world.client("owner") as client:
            lists = [client.get(path).json() for path in ("/seeds", "/jobs")]
            ones = [client.get(f"/{kind}/{id}").json() for kind, id in self.ids.items() if kind != "keys"]
        return dump([lists, ones])


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    with running(tmp_path_factory.mktemp("tenants")) as world, world.client("owner") as client:
        seeds = post_seeds(client)
        job = finished(client, post_job(client, seeds)["id"])
        ids = {
            "keys": KEY_ID,
            "seeds": seeds,
            "jobs": job["id"],
            "datasets": job["dataset"],
            "adapters": job["adapter"],
        }
        yield Owned(world, ids, client.get(f"/datasets/{ids['datasets']}").json()["files"][0]["path"])


def ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """With a body that is well-formed where one is wanted, so that nothing else can be wrong."""
    body: Any = None
    if "requestBody" in PATHS[f"/v1{path}" if f"/v1{path}" in PATHS else _template(path)].get(method.lower(), {}):
        body = {"reviews": [{"row": "c_0", "decision": "accept"}]} if path.endswith("/reviews") else {}
    return client.request(method, path, json=body, params={"format": "jsonl"} if path.endswith("/export") else None)


def _template(path: str) -> str:
    parts = path.split("/")
    return next(
        known
        for known in PATHS
        if known.split("/")[2] == parts[1] and known.split("/")[4:5] == parts[3:4] and "{" in known
    )


@pytest.mark.parametrize(("method", "path"), OWNED)
@pytest.mark.parametrize("scopes", [("read", "jobs"), ("admin",)], ids=["jobs", "admin"])
def test_another_tenants_object_is_not_there(owned: Owned, method: str, path: str, scopes: tuple[str, ...]) -> None:
    before = owned.snapshot()
    with owned.world.client("stranger", *scopes) as stranger:
        reply = ask(stranger, method, owned.fill(path))
        never = ask(stranger, method, owned.fill(path).replace(owned.ids[path.split("/")[2]], "job_" + "0" * 32))
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert never.status_code == 404
    assert owned.snapshot() == before


@pytest.mark.parametrize(("method", "path"), [one for one in OWNED if one[0] != "HEAD"])
def test_its_words_do_not_tell_whether_it_exists(owned: Owned, method: str, path: str) -> None:
    real, made_up = owned.ids[path.split("/")[2]], ""
    made_up = real[:-32] + "0" * 32
    with owned.world.client("stranger") as stranger:
        told = [ask(stranger, method, owned.fill(path).replace(real, id)).json() for id in (real, made_up)]
    assert told[0]["detail"].replace(real, made_up) == told[1]["detail"]
    assert told[0]["code"] == told[1]["code"]


@pytest.mark.parametrize(("method", "path"), OWNED + ADMIN)
def test_a_key_without_the_scope_is_refused(owned: Owned, method: str, path: str) -> None:
    needed = "admin" if path.startswith(OPERATORS) else SCOPES[method]
    scopes = {"read": (), "jobs": ("read",), "admin": ("read", "jobs")}[needed]
    if not scopes:
        return
    with owned.world.client("owner", *scopes) as client:
        filled = owned.fill(path.replace("{name}", "x"))
        if needed == "admin":
            reply = client.request(method, filled, json=_example(path, method))
        else:
            reply = ask(client, method, filled)
    assert reply.status_code == 403


def _example(path: str, method: str) -> dict[str, Any] | None:
    content = PATHS[path][method.lower()].get("requestBody", {}).get("content", {}).get("application/json", {})
    return next(iter(content["examples"].values()))["value"] if content else None


@pytest.mark.parametrize("path", [path for path in LISTS if not path.startswith(OPERATORS)])
def test_lists_are_empty(owned: Owned, path: str) -> None:
    with owned.world.client("stranger") as stranger:
        assert stranger.get(path.removeprefix("/v1")).json()["data"] == []


@pytest.mark.parametrize("kind", ["seeds", "jobs"])
def test_a_foreign_cursor_shows_nothing(owned: Owned, kind: str) -> None:
    with owned.world.client("stranger") as stranger:
        newer = owned.ids[kind][:-32] + "f" * 32
        assert stranger.get(f"/{kind}", params={"after": newer}).json()["data"] == []


@pytest.mark.parametrize("field", ["seeds", "eval", "unlabeled", "reviews"])
@pytest.mark.parametrize("path", ["/jobs", "/jobs/preview", "/jobs/estimate"])
def test_a_job_cannot_name_what_is_another_tenants(owned: Owned, path: str, field: str) -> None:
    with owned.world.client("stranger") as stranger:
        foreign: Any = [owned.ids["datasets"]] if field == "reviews" else owned.ids["seeds"]
        body = {"seeds": post_seeds(stranger), "settings": SETTINGS, field: foreign}
        assert stranger.post(path, json=body).status_code == 404


@pytest.mark.parametrize("field", ["job", "adapter"])
def test_predict_and_the_engine_see_ones_own_adapters_only(owned: Owned, field: str) -> None:
    id = owned.ids["jobs" if field == "job" else "adapters"]
    with owned.world.client("stranger") as stranger, owned.world.client("owner") as client:
        assert stranger.post("/predict", json={field: id, "texts": ["a"]}).status_code == 404
        assert stranger.post("/engine/adapters", json={"adapter": owned.ids["adapters"]}).status_code == 404
        assert client.post("/predict", json={field: id, "texts": ["a"]}).status_code == 200


def test_keys_of_two_tenants_do_not_meet(owned: Owned) -> None:
    headers = {"Idempotency-Key": "the-same"}
    with owned.world.client("stranger") as stranger, owned.world.client("owner") as client:
        made = [one.post("/seeds", json=seed_body(), headers=headers) for one in (client, stranger)]
        assert [reply.status_code for reply in made] == [201, 201]
        assert made[0].json()["id"] != made[1].json()["id"]
        replayed = stranger.post("/seeds", json=seed_body(), headers=headers)
        assert replayed.json()["id"] == made[1].json()["id"]
        assert stranger.post("/seeds", json=seed_body(5), headers=headers).status_code == 422


def test_the_matrix_is_whole() -> None:
    assert {path.split("/")[2] for _, path in OWNED} == {"seeds", "jobs", "datasets", "adapters"}
    assert len(OWNED) >= 23


def test_files_of_the_server_are_out_of_reach(owned: Owned, tmp_path: Path) -> None:
    with owned.world.client("owner") as client:
        for path in (
            "../../../secret",
            "..%2f..%2fsecret",
            "%2e%2e/%2e%2e/secret",
            "/etc/passwd",
            "a%00b",
            "x" * 10_000,
        ):
            for kind in ("datasets", "adapters"):
                reply = client.get(f"/{kind}/{owned.ids[kind]}/files/{path}")
                assert reply.status_code == 404, path
